"""How an attempt of several ranks ended: the one that failed first, with its own error, and a line for each other."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.distributed.beats import Beat
from tunesmith.errors import Fix, RankDied, RankHung, TunesmithError, kind_of, restored

FOLLOWED = "E499"  # what a rank tells that only lost the others
SAID = 5  # last lines of a rank that ended without an error of ours


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one rank, as its process reports it; ours when the launcher killed it."""

    rank: int
    code: int
    by_us: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an attempt: exit code, error (None when all is well), the step that failed, stacks of a hang,
    and whether a signal had asked for a stop."""

    code: int = 0
    error: TunesmithError | None = None
    rank: int | None = None
    step: int = 0
    stacks: str = ""
    asked: bool = False

    def again(self) -> Ended:
        """The same end, which says that restarting did not help."""
        assert self.error is not None
        return replace(self, error=with_evidence(self.error, [f"step {self.step} failed twice: not started again"]))


def hang(folder: Path, beats: Sequence[Beat], hung: int, silence: float, stacks: Mapping[int, str]) -> Ended:
    """All ranks were killed because `hung` kept the others waiting; `stacks` are of those that still ran."""
    told = {rank: innermost(text) for rank, text in stacks.items()}
    lines = [f"rank {rank}: {beat}; {told.get(rank, 'ended')}" for rank, beat in enumerate(beats)]
    message = f"rank {hung} on {host()} hangs in step {beats[hung].step}: nothing new for {silence:.1f} s"
    error = RankHung("E497", message, evidence=[*lines, *mismatch(beats)], fixes=[way_on(folder)])
    texts = "".join(f"rank {rank}: {beats[rank]}\n{text}\n" for rank, text in stacks.items())
    return Ended(RankHung.exit_code, error, hung, beats[hung].step, texts)


def diagnosed(folder: Path, ends: Sequence[Ending], beats: Sequence[Beat], asked: int | None = None) -> Ended:
    """`ends` in the order in which they were noticed; `asked` is the signal that asked all ranks to stop."""
    words = {end.rank: word for end in ends if (word := last_word(folder, end.rank)) is not None}
    failed = [end for end in ends if not end.by_us and (end.code or end.rank in words)]
    if not failed:
        return Ended()
    first = min(failed, key=lambda end: end.rank in words and words[end.rank].diagnostic.code == FOLLOWED)
    if all(end.rank in words and words[end.rank].exit_code in (75, 130) for end in failed):
        first = min(failed, key=lambda end: end.rank)
    error = words.get(first.rank) or silent_end(folder, first, beats[first.rank])
    code = error.exit_code if first.rank in words or first.code < 0 else first.code
    if asked and first.rank not in words and first.code in (-asked, 128 + asked):
        code = 128 + asked
    others = [one_line(end, words.get(end.rank), beats[end.rank]) for end in ends if end is not first]
    place = f"rank {first.rank} on {host()}, {beats[first.rank]}"
    told = with_evidence(error, [place, *others, *mismatch(beats)])
    return Ended(code, told, first.rank, beats[first.rank].step, asked=asked is not None)


def last_word(folder: Path, rank: int) -> TunesmithError | None:
    """The error that a rank left for the launcher."""
    path = folder / f"rank{rank}.error"
    if not path.exists():
        return None
    content = json.loads(path.read_text("utf-8"))
    return restored(content["code"], content["diagnostics"])


def silent_end(folder: Path, end: Ending, beat: Beat) -> TunesmithError:
    """The error of a rank that ended without a word: by a signal, or by a code alone."""
    log = folder / f"rank{end.rank}.log"
    said = log.read_text("utf-8", errors="replace").strip().splitlines()[-SAID:] if log.exists() else []
    if end.code >= 0:
        message = f"rank {end.rank} ended with code {end.code} in step {beat.step} without a word"
        return kind_of(end.code)("E498", message, evidence=said, fixes=[way_on(folder)])
    name = signal.Signals(-end.code).name
    message = f"rank {end.rank} on {host()} was ended by {name} in step {beat.step}"
    if name == "SIGKILL":
        said.append("a SIGKILL that nobody sent comes from the kernel, when memory runs out")
    return RankDied("E498", message, evidence=said, fixes=[way_on(folder)])


def one_line(end: Ending, word: TunesmithError | None, beat: Beat) -> str:
    if end.by_us:
        how = "ended by the launcher"
    elif word is not None and word.diagnostic.code == FOLLOWED:
        how = "lost the others"
    elif word is not None:
        how = f"{word.diagnostic.code}, {word.diagnostic.message}"
    else:
        how = f"ended by {signal.Signals(-end.code).name}" if end.code < 0 else f"ended with code {end.code}"
    return f"rank {end.rank}: {how} ({beat})"


def mismatch(beats: Sequence[Beat]) -> list[str]:
    """A line where ranks were at the same exchange and did not mean the same."""
    meant: dict[int, set[tuple[str, int]]] = {}
    for beat in beats:
        meant.setdefault(beat.talks, set()).add((beat.talk, beat.size))
    if any(len(kinds) > 1 for kinds in meant.values()):
        return ["mismatch: ranks meant one exchange as different things: one was left out or had another shape"]
    if len(meant) > 1 and all(beat.stage == "waiting for the others" for beat in beats):
        return ["mismatch: ranks wait in different exchanges: one was left out"]
    return []


def innermost(stack: str) -> str:
    """The place where the main thread is, from what faulthandler wrote: its most recent call."""
    lines = stack.splitlines()
    current = next((index for index, line in enumerate(lines) if line.startswith("Current thread")), None)
    if current is None or current + 1 >= len(lines):
        return lines[0] if lines else ""
    return lines[current + 1].strip()


def with_evidence(error: TunesmithError, lines: Sequence[str]) -> TunesmithError:
    error.diagnostic = replace(error.diagnostic, evidence=(*error.diagnostic.evidence, *lines))
    error.args = (str(error.diagnostic),)
    return error


def way_on(folder: Path) -> Fix:
    named = folder / "run"
    run = named.read_text("utf-8") if named.exists() else "RUN"
    return Fix("go on from the newest checkpoint", command=f"tunesmith runs resume {run}")


def host() -> str:
    return socket.gethostname()
