"""`tunesmith eval --against`: two models answer the same prompts, and somebody says whose answers are better."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunesmith.data.config import SourceConfig
    from tunesmith.errors import Diagnostic
    from tunesmith.evaluate.label_config import LabelConfig
    from tunesmith.evaluate.win_rate import Duel, WinRate
    from tunesmith.export.opening import Which
    from tunesmith.export.shelf import Shelf
    from tunesmith.rollout.config import Held
    from tunesmith.rollout.generator import Generated
    from tunesmith.rollout.prompts import Prompt
    from tunesmith.track.progress import Progress

Against = Annotated[str | None, typer.Option("--against", help="Another model: whose answers are better?")]


@dataclass(frozen=True, slots=True)
class Decider:
    """Who says whose answer is better: exactly one of reward, rule and judge."""

    reward: str | None
    rule: str | None
    judge: str | None
    judge_model: str | None


WIDTHS = {"prompt": 2, "model": 3, "against": 3}  # shares of the table
TIE = 0.5
SHOWN = 300  # characters of an answer
BREAK = " \N{RETURN SYMBOL} "
NOBODY = Decider(None, None, None, None)


@dataclass(frozen=True, slots=True)
class Duellists:
    """Two models and how they answer; both always take the likeliest token."""

    model: str
    against: str | None
    which: Which
    max_new_tokens: int = 256
    batch_size: int = 32
    held: Held = "packed"


def duel(
    duellists: Duellists, sources: Sequence[SourceConfig], limit: int | None, settings: LabelConfig, votes: Path
) -> tuple[WinRate, list[Diagnostic], int]:
    """The win rate, what makes it doubtful, and how many prompts did not fit."""
    from tunesmith.cli.model import tell_sources
    from tunesmith.cli.output import console
    from tunesmith.errors import UsageError, Where
    from tunesmith.evaluate.labelling import check_choice, open_labeller
    from tunesmith.evaluate.win_rate import win_rate
    from tunesmith.export.shelf import Shelf
    from tunesmith.rollout.prompts import read_prompts
    from tunesmith.track.progress import make_progress

    check_choice(settings, "--")
    against = duellists.against
    if against is None:
        message = "--reward, --rule and --judge compare two models, and there is only one"
        raise UsageError("E020", message, where=Where("command line"), fixes=["--against MODEL"])
    prompts = [prompt for source in sources for prompt in read_prompts(source, limit=limit)]
    with make_progress(console()) as progress:
        shelf = Shelf.of([duellists.model, against], duellists.which)
        tell_sources(shelf.sources, duellists.which)
        ours = answers_of(duellists.model, shelf, duellists, prompts, progress)
        theirs = answers_of(against, shelf, duellists, prompts, progress)
        del shelf
        both = [at for at in range(len(prompts)) if at in ours and at in theirs]
        progress.phase("comparing")
        with open_labeller(settings, votes, "--") as labeller:
            found = win_rate(
                [prompts[at] for at in both],
                [ours[at] for at in both],
                [theirs[at] for at in both],
                labeller,
                lambda done, total: progress.phase("comparing", done, total),
            )
            return found, labeller.warnings(), len(prompts) - len(both)


def answers_of(
    name: str, shelf: Shelf, duellists: Duellists, prompts: Sequence[Prompt], progress: Progress
) -> dict[int, Generated]:
    """The answer to each prompt that fits the model's context, by its place; adapters of one base share it."""
    from tunesmith.rollout.generator import Sampling, context_length, generate

    progress.phase(f"loading {name}")
    opened = shelf.open(name)
    tokens = {at: prompt.tokens(opened.tokenizer) for at, prompt in enumerate(prompts)}
    fitting = [at for at, ids in tokens.items() if 0 < len(ids) < context_length(opened.model)]
    made = generate(
        opened.model,
        opened.tokenizer,
        [tokens[at] for at in fitting],
        Sampling(duellists.max_new_tokens),
        batch_size=duellists.batch_size,
        on_progress=lambda done, total: progress.phase(f"answers of {name}", done, total),
        held=duellists.held,
    )
    return dict(zip(fitting, made, strict=True))


def write_duels(found: WinRate, path: Path) -> None:
    """Both answers and the outcome of every prompt, one JSON object a line."""
    from tunesmith.track.files import replace_text

    rows = (json.dumps(asdict(each), ensure_ascii=False) for each in found.duels)
    replace_text(path, "".join(f"{row}\n" for row in rows))


def told(found: WinRate, duellists: Duellists, left_out: int, warnings: Sequence[Diagnostic]) -> dict[str, Any]:
    return {
        "model": duellists.model,
        "against": duellists.against,
        **found.to_json(),
        "left_out": left_out,
        "warnings": [warning.to_json() for warning in warnings],
    }


def view(found: WinRate, duellists: Duellists, left_out: int, examples: int) -> list[RenderableType]:
    """The rate with its interval, what length has to do with it, and a few duels."""
    from rich.table import Table
    from rich.text import Text

    rate = found.rate
    lines = [
        f"{duellists.model} wins {rate.value:.1%} of {rate.n} prompts against {duellists.against} "
        f"(95 % interval {rate.low:.0%} to {rate.high:.0%})",
        f"{found.wins} wins, {found.losses} losses, {found.ties} ties",
        f"characters per answer: {found.length.value:.0f} against {found.against_length.value:.0f}",
    ]
    if found.longer_wins is not None:
        lines.append(f"the longer answer won {found.longer_wins:.0%} of the decided duels")
    if found.open:
        lines.append(f"{found.open} prompts were not compared")
    if left_out:
        lines.append(f"{left_out} prompts were left out: they fill the context of a model")
    parts: list[RenderableType] = [Text("\n".join(lines))]
    shown = chosen_duels(found.duels, examples)
    if shown:
        table = Table(expand=True)
        for title, share in WIDTHS.items():
            table.add_column(title, ratio=share, no_wrap=True, overflow="ellipsis")
        table.add_column("better", width=len("against"), no_wrap=True)
        for each in shown:
            word = {1.0: "model", 0.0: "against"}.get(each.hit, "tie")
            table.add_row(*(Text(one_line(text)) for text in (each.prompt, each.answer, each.against)), word)
        parts.append(table)
    return parts


def chosen_duels(duels: Sequence[Duel], count: int) -> list[Duel]:
    """The first `count` of them, decided ones before ties."""
    return sorted(duels, key=lambda duel: duel.hit == TIE)[:count]


def one_line(text: str) -> str:
    """The beginning of a text on one line, line breaks as a mark."""
    lines = text.strip()[:SHOWN].splitlines()
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in BREAK.join(lines))


def report(
    duellists: Duellists,
    sources: Sequence[Mapping[str, Any]],
    limit: int | None,
    decider: Decider,
    rows: Path | None,
    *,
    examples: int,
    as_json: bool,
) -> None:
    """Compare and print, with some `examples`; `rows` takes every duel, and beside it a judge's verdicts are kept."""
    from tunesmith.cli.deciders import judge_settings, label_settings
    from tunesmith.cli.output import answer, emit_json, show
    from tunesmith.data.config import SourceConfig

    judge = judge_settings(decider.judge, decider.judge_model)
    settings = label_settings(decider.reward, decider.rule, judge)
    with tempfile.TemporaryDirectory() as folder:
        votes = Path(folder, "votes.jsonl") if rows is None else rows.with_name(f"{rows.name}.votes.jsonl")
        files = [SourceConfig.model_validate(source) for source in sources]
        found, warnings, left_out = duel(duellists, files, limit, settings, votes)
    if rows is not None:
        write_duels(found, rows)
    for warning in warnings:
        show(warning)
    if as_json:
        emit_json(told(found, duellists, left_out, warnings))
        return
    for part in view(found, duellists, left_out, examples):
        answer(part)
