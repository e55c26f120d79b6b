"""The process that renders a chat template: a sandbox with limits set by the kernel, free of Tunesmith imports."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.debug  # jinja2 would import it at the first error, when files can no longer be opened
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # no such limits on this system
    resource = None  # type: ignore[assignment]

SPARE_MEMORY = 160 << 20  # bytes above what the interpreter itself has mapped
MEMORY_PER_INPUT = 32
OUTPUT_PER_INPUT, SPARE_OUTPUT = 64, 1 << 20
MISTAKES = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, SyntaxError)
FAILURES = (TemplateError, *MISTAKES, OSError, ImportError)


class Refused(TemplateError):
    """`raise_exception` was called: the template does not accept these messages."""


class TooMuchOutput(Exception):
    pass


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses at once what jinja2 would turn into an undefined value."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))  # else constants are computed while compiling

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        if isinstance(obj, list | dict | set) and not attribute.startswith("_"):
            raise TemplateError(f"it changes a {type(obj).__name__} in place ({attribute}), which is not allowed")
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote; the mask does not rely on it, so it is only passed through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class SafeNamespace(jinja2.utils.Namespace):
    """A namespace that refuses names with a leading underscore."""

    def __init__(*given: Any, **attributes: Any) -> None:
        self, *rest = given
        values = dict(*rest, **attributes)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r} is not allowed")


def _make_dict(*given: Any, **items: Any) -> dict[Any, Any]:
    return dict(*given, **items)


def _raise_exception(message: object) -> None:
    raise Refused(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Sandbox:
    """What chat templates expect to find, less what could only harm; the clock stands still at the process's start."""
    now = datetime.now()
    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
    made.filters["tojson"] = _tojson
    for name in ("lipsum", "cycler", "joiner"):
        del made.globals[name]
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: now.strftime(form)
    made.globals["dict"] = _make_dict
    made.globals["namespace"] = SafeNamespace
    return made


def check_names(tree: jinja2.nodes.Template) -> None:
    """Refuse names of Python's machinery wherever they are written out; the sandbox catches the computed ones."""
    written: list[object] = [node.attr for node in tree.find_all(jinja2.nodes.Getattr)]
    written += [node.value for node in tree.find_all(jinja2.nodes.Const)]
    written += [node.name for node in tree.find_all(jinja2.nodes.Name)]
    for name in written:
        if isinstance(name, str) and len(name) > 4 and name.startswith("__") and name.endswith("__"):
            raise SecurityError(f"{name!r} is not allowed in a chat template")


def mapped_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30


class Limits:
    """CPU seconds, memory and output of one render; no file can be opened or written and no process started."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.mapped = mapped_bytes()

    def close_doors(self) -> None:
        if resource is None:
            return
        time.localtime()  # what is loaded on first use is loaded while files can still be opened
        environment().from_string("{% for x in [1.5] %}{{ 'a\\n' ~ x | tojson }}{% endfor %}").render()
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    def memory(self, input_size: int) -> None:
        if resource is not None:
            soft = self.mapped + SPARE_MEMORY + MEMORY_PER_INPUT * input_size
            resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def start_clock(self) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, self.seconds)  # SIGPROF ends the process, even inside one C call

    def stop_clock(self) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)


def collect(chunks: Iterator[str], limit: int) -> str:
    """Join the chunks of a render and stop as soon as they are longer than `limit` characters."""
    parts: list[str] = []
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooMuchOutput(f"more than {limit:,} characters")
        parts.append(chunk)
    return "".join(parts)


def guarded(limits: Limits, work: Any) -> Any:
    """Do `work()` under the clock; a failure becomes `{"error": kind, "message": ...}`."""
    limits.start_clock()
    try:
        return work()
    except SecurityError as error:
        return {"error": "security", "message": str(error)}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except Refused as error:
        return {"error": "refused", "message": str(error)}
    except (MemoryError, OverflowError) as error:
        return {"error": "memory", "message": str(error) or "too much memory"}
    except TooMuchOutput as error:
        return {"error": "output", "message": str(error)}
    except RecursionError:
        return {"error": "memory", "message": "nested too deeply"}
    except FAILURES as error:
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"}
    finally:
        limits.stop_clock()


def main() -> None:
    """Answer JSON lines on standard input with JSON lines on standard output; `template.py` is the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.reconfigure(encoding="ascii")  # type: ignore[union-attr]
    start = json.loads(sys.stdin.readline())
    limits = Limits(start["seconds"])
    limits.close_doors()
    limits.memory(len(start["template"]))
    made = environment()
    variables = start["variables"]

    def load() -> Any:
        tree = made.parse(start["template"])
        check_names(tree)
        return made.from_string(tree)

    template = guarded(limits, load)
    answer({"error": "", "message": ""} if isinstance(template, jinja2.Template) else template)
    for line in sys.stdin:
        limits.memory(len(line))
        request = json.loads(line)
        texts = []
        for count, add_generation_prompt in request["ask"]:
            names = dict(
                variables,
                messages=request["messages"][:count],
                tools=request["tools"],
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
            limit = OUTPUT_PER_INPUT * len(line) + SPARE_OUTPUT
            texts.append(guarded(limits, lambda names=names, limit=limit: collect(template.generate(names), limit)))
        answer(texts)


def answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
