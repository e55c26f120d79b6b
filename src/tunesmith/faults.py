"""Failpoints: named places where `TUNESMITH_FAULT` makes the program die, stop, fail or wait on purpose.

`TUNESMITH_FAULT="ckpt.after_rename@step=12:kill; ckpt.mid_write@file=state.json:errno:ENOSPC"` arms two faults.
Each is a point (or `*`), conditions and an action.
Conditions: `step=N`, `file=NAME`, `rank=N`, `above=N` (tokens of a microbatch),
`hit=N` (the Nth time that the rest matches).
Actions: `kill` `stop` `raise` `memory` `errno:NAME` `delay:MS` `become:NUMBER` (of a figure)
`trace:FILE` (append point, step and file name to FILE)
`flip[:NAME]` (change one bit of the file at hand, or of NAME in the folder at hand; at `train.weights` of the first
weight whose name holds NAME).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import Fix, UsageError, nearest

if TYPE_CHECKING:
    from torch.nn import Module

VARIABLE = "TUNESMITH_FAULT"

POINTS = (
    "train.step",
    "train.loss",
    "train.grad_norm",
    "train.backward",
    "train.weights",
    "log.before_write",
    "log.after_write",
    "log.before_flush",
    "log.after_flush",
    "ckpt.begin",
    "ckpt.before_stage",
    "ckpt.after_stage",
    "ckpt.before_open",
    "ckpt.mid_write",
    "ckpt.before_fsync",
    "ckpt.after_fsync",
    "ckpt.before_barrier",
    "ckpt.after_barrier",
    "ckpt.before_manifest",
    "ckpt.after_manifest",
    "ckpt.before_folder_fsync",
    "ckpt.after_folder_fsync",
    "ckpt.before_set_aside",
    "ckpt.after_set_aside",
    "ckpt.before_rename",
    "ckpt.after_rename",
    "ckpt.after_parent_fsync",
    "ckpt.before_latest",
    "ckpt.after_latest",
    "ckpt.before_replace",
    "ckpt.before_mark_best",
    "ckpt.after_mark_best",
    "ckpt.before_prune",
    "ckpt.mid_prune",
    "ckpt.mid_remove",
    "ckpt.after_prune",
    "ckpt.before_clean",
    "ckpt.mid_clean",
    "ckpt.after_clean",
    "ckpt.end",
    "online.after_sampling",
    "online.after_labelling",
    "online.after_round",
)

WEIGHTS = "train.weights"  # passed with a model, of which `flip` changes a bit
FIGURES = ("train.loss", "train.grad_norm")  # passed with a number, which a fault may change
ACTIONS = ("become", "kill", "stop", "raise", "memory", "errno", "delay", "flip", "trace")
CONDITIONS = ("step", "file", "rank", "above", "hit")
ERRORS = {name: number for number, name in errno.errorcode.items()}


class InjectedFault(Exception):
    """What the action `raise` raises; nothing catches it by name."""


@dataclass(slots=True)
class _Fault:
    point: str
    action: str
    argument: str = ""
    step: int | None = None
    file: str | None = None
    rank: int | None = None
    above: int | None = None
    hit: int | None = None
    hits: int = field(default=0, repr=False)

    @property
    def spoils(self) -> bool:
        return self.point == WEIGHTS and self.action == "flip"

    def matches(self, point: str, step: int | None, path: Path | None, tokens: int) -> bool:
        if self.point not in ("*", point) or self.step not in (None, step):
            return False
        if self.file is not None and (path is None or path.name != self.file):
            return False
        if self.rank not in (None, int(os.environ.get("RANK", "0"))):
            return False
        if self.above is not None and tokens <= self.above:
            return False
        self.hits += 1
        return self.hit in (None, self.hits)


_armed: tuple[_Fault, ...] | None = None


def fault(point: str, step: int | None = None, path: Path | None = None, tokens: int = 0) -> None:
    """Pass the failpoint `point`; does nothing unless `TUNESMITH_FAULT` names it.

    `path` is the file being written (or the folder at hand), for the condition `file` and the action `flip`.
    """
    if _armed == ():
        return
    _pass(point, step, path, tokens)


def _pass(point: str, step: int | None, path: Path | None, tokens: int) -> None:
    if _armed is None:
        arm(os.environ.get(VARIABLE, ""))
    for each in _armed or ():
        if each.action != "become" and not each.spoils and each.matches(point, step, path, tokens):
            _act(each, point, step, path)


def altered(figure: str, value: float, step: int) -> float:
    """The value of a figure, or what an armed fault makes of it."""
    _pass(figure, step, None, 0)
    found = [each for each in _armed or () if each.action == "become" and each.matches(figure, step, None, 0)]
    return float(found[-1].argument) if found else value


def spoil(point: str, step: int, model: Module) -> None:
    """Pass the failpoint; an armed `flip` there changes the lowest bit of the weight in the middle of its tensor."""
    if _armed == ():
        return
    _pass(point, step, None, 0)
    for each in _armed or ():
        if each.spoils and each.matches(point, step, None, 0):
            _flip_weight(each.argument, model)


def arm(text: str) -> None:
    """Replace the armed faults by those in `text` (empty: none); a UsageError names what it does not know."""
    global _armed
    _armed = _parsed(text)


def check_environment() -> None:
    """Refuse a mistyped `TUNESMITH_FAULT` (UsageError E149) before anything is begun."""
    _parsed(os.environ.get(VARIABLE, ""))


def _parsed(text: str) -> tuple[_Fault, ...]:
    return tuple(_parse(part.strip()) for part in text.split(";") if part.strip())


def _parse(text: str) -> _Fault:
    """`point[@condition=value...]:action[:argument]` as a fault."""
    head, _, tail = text.partition(":")
    point, *conditions = head.split("@")
    action, _, argument = tail.partition(":")
    if point != "*" and point not in POINTS:
        raise _refusal(text, f"there is no failpoint {point!r}", nearest(point, POINTS), POINTS)
    if action not in ACTIONS:
        raise _refusal(text, f"there is no fault action {action!r}", nearest(action, ACTIONS), ACTIONS)
    if action == "errno" and argument not in ERRORS:
        raise _refusal(text, f"there is no errno {argument!r}", nearest(argument, ERRORS), ("ENOSPC", "EIO"))
    if action == "delay" and not argument.isdecimal():
        raise _refusal(text, f"a delay is a number of milliseconds, not {argument!r}", None, ("delay:100",))
    if action == "become" and (point not in FIGURES or not _is_number(argument)):
        raise _refusal(text, f"{point}:become:{argument} is no figure with a number", None, ("train.loss:become:nan",))
    if action == "trace" and not argument:
        raise _refusal(text, "trace needs a file", None, ("trace:/tmp/points.txt",))
    parsed = _Fault(point, action, argument)
    for condition in conditions:
        name, _, value = condition.partition("=")
        if name == "file":
            parsed.file = value
        elif name in CONDITIONS and value.isdecimal():
            parsed = replace(parsed, **{name: int(value)})
        else:
            raise _refusal(text, f"{condition!r} is no condition", nearest(name, CONDITIONS), ("step=12", "hit=2"))
    return parsed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refusal(text: str, message: str, near: str | None, known: tuple[str, ...]) -> UsageError:
    fixes = [Fix(f"did you mean {near}?")] if near else []
    evidence = (text, "known: " + ", ".join(known))
    return UsageError("E149", f"{VARIABLE}: {message}", evidence=evidence, fixes=[*fixes, f"unset {VARIABLE}"])


def _act(armed: _Fault, point: str, step: int | None, path: Path | None) -> None:
    match armed.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise InjectedFault(f"{point} at step {step}")
        case "memory":
            raise MemoryError(f"{point}: out of memory on purpose")
        case "errno":
            number = ERRORS[armed.argument]
            raise OSError(number, os.strerror(number), str(path) if path else None)
        case "delay":
            time.sleep(int(armed.argument) / 1000)
        case "flip":
            _flip(point, path, armed.argument)
        case "trace":
            descriptor = os.open(armed.argument, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(descriptor, f"{point} {'-' if step is None else step} {path.name if path else '-'}\n".encode())
            os.close(descriptor)


def _flip_weight(name: str, model: Module) -> None:
    found = next((one for own, one in model.named_parameters() if name in own), None)
    if found is None:
        raise _refusal(f"{WEIGHTS}:flip:{name}", "no weight has such a name", None, (f"{WEIGHTS}:flip:q_proj",))
    import torch

    found.data.view(-1).view(torch.uint8)[found.numel() // 2 * found.element_size()] ^= 1


def _flip(point: str, path: Path | None, name: str) -> None:
    """Change the lowest bit of the middle byte of the file."""
    target = path / name if path is not None and path.is_dir() else path
    if target is None or not target.is_file():
        example = "ckpt.after_rename:flip:state.json"
        raise _refusal(f"{point}:flip:{name}", "there is no such file at this point", None, (example,))
    middle = target.stat().st_size // 2
    with target.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
