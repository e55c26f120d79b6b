"""vLLM as what decodes: its own OpenAI server, a child on this machine, behind our gate and our limits."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import Fix, MachineError, ModelError, Where
from tunesmith.export.opening import ModelSource, Which, find_model
from tunesmith.models.adapter_types import read_adapter_object
from tunesmith.models.kinds import kind_of_folder
from tunesmith.serve.body import read_json
from tunesmith.serve.mailbox import unless_gone
from tunesmith.serve.metrics import TYPE, Metrics
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.settings import Limits
from tunesmith.serve.tools import BARE, LISTED, NAMED, PARAMETERS, TAGGED, style_of
from tunesmith.serve.wire import Asked, ChatAsked, CompletionAsked, read
from tunesmith.track.kept import Kept

PARSERS = {TAGGED: "hermes", LISTED: "mistral", NAMED: "mistral", PARAMETERS: "llama3_json", BARE: None}
START = 900.0  # seconds that loading and compiling may take
END = 15.0  # seconds that the child may take to end
LAST = 8192  # bytes of its output that are looked at
EVIDENCE = 12  # last lines of its output that are shown
ONLY = "export the model with `tunesmith export`, and serve the folder"


def program() -> str:
    """The command of vLLM, beside our interpreter or on the path. MachineError E427 when there is none."""
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        fixes = [Fix("install it on a machine with a GPU", command="pip install vllm"), "leave --backend out"]
        raise MachineError("E427", "vLLM is not installed", where=Where("command line", field="--backend"), fixes=fixes)
    return found


def check_sources(sources: Mapping[str, ModelSource]) -> Path:
    """The base of all of them. ModelError E427 for what vLLM cannot take as it lies there."""
    bases = {source.base.resolve() for source in sources.values()}
    if len(bases) > 1:
        raise unfit("the models have more than one base", "serve each base by a server of its own")
    for name, source in sources.items():
        if source.checkpoint is not None or source.settings.merged_adapters or source.settings.new_tokens:
            raise unfit(f"{name} is no folder that vLLM reads", ONLY)
        if source.outputs:
            raise unfit(f"{name} gives values, not text", "leave --backend out")
        if source.settings.quantization.name != "none":
            raise unfit(f"the base of {name} is held in {source.settings.quantization.told()}", ONLY)
        if source.adapter is not None and kind_of_folder(source.adapter) != "lora":
            raise unfit(f"the adapter {name} is not plain LoRA", ONLY)
    return bases.pop()


def unfit(message: str, fix: str) -> ModelError:
    return ModelError("E427", f"vLLM cannot serve this: {message}", where=Where("command line"), fixes=[fix])


def arguments(sources: Mapping[str, ModelSource], limits: Limits, port: int) -> list[str]:
    """What follows the name of the program. The key goes by the environment, where other users cannot read it."""
    base = check_sources(sources)
    plain = [name for name, source in sources.items() if source.adapter is None]
    given = ["serve", str(base), "--host", "127.0.0.1", "--port", str(port)]
    given += ["--served-model-name", *(plain or [f"base-{secrets.token_hex(4)}"]), "--dtype", limits.dtype]
    given += ["--max-num-seqs", str(limits.batch_size), "--generation-config", "vllm"]
    adapters = {name: source.adapter for name, source in sources.items() if source.adapter is not None}
    if adapters:
        rank = max(read_adapter_object(folder).get("r") or 8 for folder in adapters.values())
        given += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(room_for(rank))]
        given += ["--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]
    if (parser := parser_of(base)) is not None:
        given += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    return given


def room_for(rank: int) -> int:
    """The sizes that vLLM knows."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320) if size >= rank), rank)


def parser_of(base: Path) -> str | None:
    """vLLM's name of the form of calls that the template teaches; None where it teaches none."""
    tokenizer = load_tokenizer(base)
    if not tokenizer.has_template:
        return None
    try:
        return PARSERS[style_of(tokenizer)]
    except Refusal:
        return None


class Child:
    """The program, which ends with us, and whatever it starts with it."""

    def __init__(self, command: list[str], key: str) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  for as long as the process
        self.program = Kept(command, self.output, {**os.environ, "VLLM_API_KEY": key})

    @property
    def runs(self) -> bool:
        return self.program.runs

    def said(self) -> list[str]:
        size = os.fstat(self.output.fileno()).st_size
        last = os.pread(self.output.fileno(), LAST, max(0, size - LAST))  # the place where the child writes stays
        return [line[:300] for line in last.decode("utf-8", "replace").splitlines()[-EVIDENCE:]]

    def close(self) -> None:
        self.program.end(END)
        self.output.close()


@contextmanager
def termination_raised() -> Iterator[None]:
    """SIGTERM as an exception, as SIGINT is, so that the child is ended in order also while it loads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class VllmHouse:
    """Stands in the place of `House`: the same routes but for embeddings and scores, answered by the child."""

    def __init__(self, named: Mapping[str, str], limits: Limits, which: Which = "auto") -> None:
        found = program()
        self.sources = {name: find_model(model, which) for name, model in named.items()}
        self.limits, self.key, self.port = limits, secrets.token_urlsafe(32), free_port()
        self.schedulers: tuple[()] = ()  # of our own
        self.under_way = 0
        self.child = Child([found, *arguments(self.sources, limits, self.port)], self.key)
        try:
            with termination_raised():
                self.wait_until_ready()
        except BaseException:
            self.close()
            raise

    @property
    def worker(self) -> VllmHouse:
        """What the figures are read from."""
        return self

    @property
    def waiting(self) -> int:
        return max(0, self.under_way - self.limits.batch_size)

    def wait_until_ready(self) -> None:
        """MachineError E488, with the last of what it said, when the child ends or never answers."""
        import httpx

        until = time.monotonic() + START
        while time.monotonic() < until:
            if not self.child.runs:
                raise self.lost(f"vLLM ended with status {self.child.program.code}")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise self.lost(f"vLLM did not answer within {START:g} s")

    def lost(self, message: str) -> MachineError:
        fixes = ["read what it said last", "leave --backend out"]
        return MachineError("E488", message, evidence=self.child.said(), fixes=fixes)

    def start(self) -> None:
        """It runs already."""

    def close(self) -> None:
        self.child.close()

    def routes(self, metrics: Metrics) -> list[Route]:
        async def chat(request: Request) -> Response:
            return await self.forward(request, ChatAsked, "/v1/chat/completions")

        async def completions(request: Request) -> Response:
            return await self.forward(request, CompletionAsked, "/v1/completions")

        async def models(_: Request) -> Response:
            data = [{"id": name, "object": "model", "owned_by": "tunesmith"} for name in self.sources]
            return JSONResponse({"object": "list", "data": data})

        async def health(_: Request) -> Response:
            if not self.child.runs:
                raise self.lost("vLLM has ended")
            return JSONResponse({"status": "ok"})

        async def figures(_: Request) -> Response:
            return Response(metrics.text(), media_type=TYPE)

        return [
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/metrics", figures, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ]

    async def forward(self, request: Request, kind: type[Asked], path: str) -> Response:
        """A request that we would serve, as it came; its answer, as it comes. Refused as in `serve` before that."""
        import httpx

        body = await read_json(request, self.limits)
        asked = read(kind, body)
        self.check(asked)
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=None)  # noqa: S113  ours end it
        self.under_way += 1
        try:
            headers = {"Authorization": f"Bearer {self.key}"}
            sent = client.build_request("POST", path, json=self.limited(asked, body), headers=headers)
            answer = await unless_gone(asyncio.create_task(client.send(sent, stream=True)), request.receive)
        except httpx.TransportError as error:
            await self.leave(client)
            raise self.lost(f"vLLM does not answer: {type(error).__name__}") from error
        except BaseException:
            await self.leave(client)
            raise

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()  # an answer that nobody reads any more ends in vLLM, too
                await self.leave(client)

        told = {"Content-Type": answer.headers.get("content-type", "application/json")}
        return StreamingResponse(parts(), answer.status_code, told)

    async def leave(self, client: Any) -> None:
        self.under_way -= 1
        await client.aclose()

    def check(self, asked: Asked) -> None:
        if asked.model not in self.sources:
            fix = f"there are: {', '.join(self.sources)}"
            raise Refusal("E412", f"there is no model {asked.model[:200]!r}", field="model", fix=fix)
        if (asked.n or 1) > min(self.limits.choices, self.limits.batch_size):
            raise Refusal("E411", f"{asked.n} answers are too many", field="n", fix="ask for fewer")
        if self.under_way >= self.limits.batch_size + self.limits.queue:
            error = Refusal("E415", f"{self.waiting} requests wait already", fix="ask again later")
            error.headers["Retry-After"] = "1"
            raise error

    def limited(self, asked: Asked, body: Mapping[str, Any]) -> dict[str, Any]:
        """With our limit of an answer where none was named, and no temperature that is too small to draw with."""
        if asked.temperature is not None:
            body = {**body, "temperature": asked.temperature}
        named = asked.max_tokens or (isinstance(asked, ChatAsked) and asked.max_completion_tokens)
        room = self.limits.new_tokens if isinstance(asked, ChatAsked) else 16
        return {**body} if named else {**body, "max_tokens": room}


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]
