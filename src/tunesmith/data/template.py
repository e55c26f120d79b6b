"""Chat templates: the model's own jinja text, rendered by a process that can harm nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import DataError, ModelError, TunesmithError, Unsafe, Where

MAX_TEMPLATE_BYTES = 256 << 10
RENDER_SECONDS = 2.0


class Ask(NamedTuple):
    """Render the first `messages` messages, with or without the text that asks the model to answer."""

    messages: int
    add_generation_prompt: bool


class Failure(NamedTuple):
    """Why one render gave no text: `refused` by the template itself, or `failed` inside it."""

    kind: str
    message: str


class Template:
    """A chat template in its own process, which stays alive and answers in about 50 µs; `origin` names its file.

    The kernel bounds CPU time and memory (memory on Linux only), so a hostile template costs at most two seconds.
    Raises Unsafe (E060-E062) for what breaks a limit or leaves the sandbox, ModelError (E063) for a syntax error.
    """

    def __init__(self, text: str, variables: Mapping[str, str], origin: str) -> None:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE_BYTES:
            raise Unsafe(
                "E060",
                f"the chat template has {size:,} bytes; at most {MAX_TEMPLATE_BYTES:,} are accepted",
                where=Where(file=origin),
                fixes=["use the template of the model's own publisher"],
            )
        self.text = text
        self.origin = origin
        self._start = {"template": text, "variables": dict(variables), "seconds": RENDER_SECONDS}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, messages: Sequence[Any], tools: Sequence[Any], asks: Sequence[Ask]) -> list[str | Failure]:
        """Render prefixes of JSON-able messages in one exchange."""
        request = json.dumps({"messages": messages, "tools": list(tools) or None, "ask": asks})
        with self._lock:
            process = self._running()
            answers = self._exchange(process, request)
        return [answer if isinstance(answer, str) else self._judge(answer) for answer in answers]

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return self._process
        worker = Path(__file__).with_name("template_worker.py")
        process = subprocess.Popen(
            [sys.executable, "-P", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )
        self._process, self._owner = process, os.getpid()
        weakref.finalize(self, _stop, process, os.getpid())
        loaded = self._exchange(process, json.dumps(self._start))
        if loaded["error"]:
            self._judge(loaded)
        return process

    def _exchange(self, process: subprocess.Popen[str], request: str) -> Any:
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("the worker has pipes")
        answered = False
        try:
            stdin.write(request + "\n")
            stdin.flush()
            answer = stdout.readline()
            answered = True
        except BrokenPipeError:
            answer, answered = "", True
        finally:
            if not answered:  # an interrupt: the late answer must not be taken for that of the next request
                process.kill()
                self._process = None
        if not answer.endswith("\n"):
            raise self._died(process)
        return json.loads(answer)

    def _died(self, process: subprocess.Popen[str]) -> TunesmithError:
        code = process.wait()
        self._process = None
        if hasattr(signal, "SIGPROF") and code == -signal.SIGPROF:
            return self._unsafe("E061", f"the chat template ran longer than {RENDER_SECONDS:g} s of CPU time")
        return self._unsafe("E061", f"the process that renders the chat template ended with code {code}")

    def _judge(self, answer: Mapping[str, str]) -> Failure:
        kind, message = answer["error"], answer["message"]
        if kind == "security":
            raise self._unsafe("E062", f"the chat template tries to leave its sandbox: {message}")
        if kind in ("memory", "output"):
            raise self._unsafe("E061", f"the chat template exceeds its limits: {message}")
        if kind == "syntax":
            raise ModelError(
                "E063",
                f"the chat template is not valid jinja: {message}",
                where=Where(file=self.origin),
                fixes=["restore the template file of the model's publisher"],
            )
        return Failure(kind, message)

    def _unsafe(self, code: str, message: str) -> Unsafe:
        return Unsafe(
            code,
            message,
            where=Where(file=self.origin),
            fixes=["do not use this model folder, or give it a template you trust"],
        )


def text_of(answer: str | Failure, where: Where) -> str:
    """The rendered text; DataError (E064) when the template did not accept the messages."""
    if isinstance(answer, str):
        return answer
    verb = "refuses" if answer.kind == "refused" else "fails on"
    raise DataError(
        "E064",
        f"the chat template {verb} this conversation: {answer.message}",
        where=where,
        fixes=["change the messages as the template asks", "leave such records out: data.on_bad=skip"],
    )


def _stop(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
    process.wait()
