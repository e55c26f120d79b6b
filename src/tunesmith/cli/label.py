"""`tunesmith label`: which answers are better, said by a model, a rule, a judge or a person."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.deciders import JudgeModel, JudgeUrl, Reward, RuleName, judge_settings, label_settings
from tunesmith.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunesmith.errors import Diagnostic
    from tunesmith.evaluate.label_config import LabelConfig
    from tunesmith.evaluate.labellers import Labeller
    from tunesmith.evaluate.outcomes import Choice, Labelled
    from tunesmith.evaluate.person import Shown

Criteria = Annotated[str | None, typer.Option("--judge-criteria", help="What makes an answer the better one.")]
KeyVariable = Annotated[str, typer.Option("--judge-key-variable", help="Environment variable with the API key.")]
DEFAULT_VARIABLE = "TUNESMITH_JUDGE_KEY"


def register(app: typer.Typer) -> None:
    app.command("label")(label)


def label(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Answers, pairs or rankings.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of records to learn from.")],
    reward: Reward = None,
    rule: RuleName = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_criteria: Criteria = None,
    judge_key_variable: KeyVariable = DEFAULT_VARIABLE,
    judge_timeout: Annotated[float, typer.Option("--judge-timeout", help="Seconds to wait for a reply.")] = 60.0,
    judge_concurrency: Annotated[int, typer.Option("--judge-concurrency", help="Requests at the same time.")] = 4,
    person: Annotated[bool, typer.Option("--person", help="You compare, in this terminal.")] = False,
    to: Annotated[str, typer.Option("--to", help="pairs (best against worst), rankings, feedback, sft.")] = "pairs",
    min_margin: Annotated[float, typer.Option("--min-margin", min=0, help="Least difference of marks.")] = 0.0,
    threshold: Annotated[float | None, typer.Option(help="Least mark of a good answer (feedback, sft).")] = None,
    unfinished: Annotated[str, typer.Option(help="Answers cut by their limit: worst, drop or keep.")] = "worst",
    seed: Annotated[int, typer.Option(min=0, help="Decides which answer a person sees first.")] = 0,
    json: AsJson = False,
) -> None:
    """Mark the answers to each prompt and write pairs, rankings, feedback or the best ones."""
    from tunesmith.cli.model import check_words
    from tunesmith.cli.output import answer, emit_json, show
    from tunesmith.evaluate.outcomes import Choice

    others = {"key_variable": judge_key_variable, "timeout": judge_timeout, "concurrency": judge_concurrency}
    if judge_criteria is not None:
        others["criteria"] = judge_criteria
    settings = label_settings(reward, rule, judge_settings(judge, judge_model, others))
    choice = Choice(
        to=cast("Any", check_words([to], ("pairs", "rankings", "feedback", "sft"), "--to")[0]),
        min_margin=min_margin,
        threshold=threshold,
        unfinished=cast("Any", check_words([unfinished], ("worst", "drop", "keep"), "--unfinished")[0]),
    )
    found, warnings = label_file(file, out, settings, choice, seed if person else None)
    for warning in warnings:
        show(warning)
    told = {"out": str(out), **found.to_json(), "warnings": [warning.to_json() for warning in warnings]}
    emit_json(told) if json else answer(view(found, out))


def label_file(
    file: str, out: Path, settings: LabelConfig, choice: Choice, person_seed: int | None
) -> tuple[Labelled, list[Diagnostic]]:
    """Read, mark, write; the output is complete or absent, and beside it stands how it came about.

    DataError E264 when no record comes out, UsageError E272 when the place is taken by another file.
    """
    from dataclasses import asdict

    from tunesmith.cli.output import console
    from tunesmith.errors import Fix, UsageError, Where
    from tunesmith.evaluate.outcomes import label as mark
    from tunesmith.evaluate.outcomes import write_records
    from tunesmith.rollout.answers import read_answers
    from tunesmith.track.files import replace_text, to_json
    from tunesmith.track.progress import make_progress

    side = out.with_name(f"{out.name}.label.json")
    if out.exists() and not side.exists():
        fixes = [Fix("write to another file: -o FILE"), "or move it away"]
        raise UsageError("E272", f"{out} is there and was not written by labelling", where=Where(str(out)), fixes=fixes)
    rows = read_answers(file)
    votes = out.with_name(f"{out.name}.votes.jsonl")
    with labeller_of(settings, votes, person_seed) as labeller:
        if person_seed is not None:
            found = mark(rows, labeller, choice)
        else:
            with make_progress(console()) as progress:
                progress.phase("marking answers")
                found = mark(rows, labeller, choice, lambda done, total: progress.phase("marks", done, total))
        who = {"person": True} if person_seed is not None else settings.model_dump(mode="json")
        about = {"answers": file, "labeller": who, "choice": asdict(choice), "found": found.to_json()}
        replace_text(side, to_json(about, indent=1) + "\n")
        write_records(found, out, file)
        return found, labeller.warnings()


@contextmanager
def labeller_of(settings: LabelConfig, votes: Path, person_seed: int | None) -> Iterator[Labeller]:
    from tunesmith.errors import UsageError, Where
    from tunesmith.evaluate.labellers import ByComparison
    from tunesmith.evaluate.labelling import open_labeller
    from tunesmith.evaluate.person import Person
    from tunesmith.rollout.journal import Journal

    if person_seed is None:
        with open_labeller(settings, votes, "--") as labeller:
            yield labeller
        return
    if any(value is not None for value in (settings.reward, settings.rule, settings.judge)):
        fixes = ["leave the others out"]
        raise UsageError("E270", "--person and another labeller", where=Where("command line"), fixes=fixes)
    if not sys.stdin.isatty():
        raise UsageError("E268", "a person votes in a terminal", where=Where("command line", field="--person"))
    with Journal(votes) as journal:
        yield ByComparison(Person(journal, read_key, show_question, person_seed))


def read_key() -> str:
    """One key of the terminal, without waiting for a line; empty at the end of input."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)  # what was typed ahead stays
        return os.read(descriptor, 1).decode("utf-8", "replace")
    except KeyboardInterrupt:
        return ""
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def show_question(shown: Shown) -> None:
    from tunesmith.cli.output import console
    from tunesmith.evaluate.person import KEYS

    terminal = console()
    terminal.rule(f"{shown.number} of {shown.total}")
    for part in question_view(shown):
        terminal.print(part)
    terminal.print(KEYS, style="dim")


def question_view(shown: Shown) -> list[RenderableType]:
    """The conversation and both answers; control characters of a text cannot reach the terminal."""
    from rich.panel import Panel
    from rich.text import Text

    from tunesmith.controls import visible

    def clean(text: str) -> Text:
        return Text(visible(text))

    turns = shown.question.prompt.turns
    asked = turns if isinstance(turns, str) else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
    return [clean(asked), *(Panel(clean(text), title=name) for name, text in (("1", shown.one), ("2", shown.two)))]


def view(found: Labelled, out: Path) -> str:
    """What was written, and what was left out and why."""
    lines = [f"{len(found.records):,} records from {found.prompts:,} prompts in {out}"]
    if found.ties:
        lines.append(f"{found.ties:,} prompts left out: a tie")
    lines += [f"{count:,} prompts left out: {reason}" for reason, count in found.left_out.items()]
    lines += [f"{count:,} answers not used: {reason}" for reason, count in found.dropped.items()]
    if found.unfinished:
        lines.append(f"{found.unfinished:,} answers were cut by their limit: marked worst")
    if found.mean_mark is not None and found.best_mark is not None:
        lines.append(f"marks: {found.mean_mark:.4g} on average, {found.best_mark:.4g} for the best answer to a prompt")
    if found.longer is not None:
        lines.append(f"the better answer is the longer one in {found.longer:.0%} of the prompts")
    return "\n".join(lines)
