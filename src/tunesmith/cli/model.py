"""`tunesmith chat` and `eval`: a model or a run, used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.deciders import JudgeModel, JudgeUrl, Reward, RuleName
from tunesmith.cli.options import AsJson
from tunesmith.cli.winrate import NOBODY, Against, Decider, Duellists, report

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunesmith.data.tokenizer import Tokenizer
    from tunesmith.evaluate.harness import Evaluation
    from tunesmith.evaluate.values import Measured
    from tunesmith.export.opening import Opened, Wants, Which
    from tunesmith.export.shelf import Shelf
    from tunesmith.models.reference import Reference
    from tunesmith.rollout.generator import Sampling
    from tunesmith.types import Message

DEFAULT_METRICS = ("loss", "perplexity", "exact_match")
WEIGHTS = ("auto", "final", "best", "newest")
HELP = "[dim]/reset forgets the conversation, /use NAME goes to another model, /exit leaves. Ctrl-C stops.[/dim]"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a model or adapter folder, a .gguf file, starter, a hub id.", show_default=False
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", help="Weights of a run: final, best, newest; auto is final, else newest.")
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")]


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)
    app.command("eval")(evaluate_model)


def chat(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="As for eval; of several the first begins.", show_default=False),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this once and leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of the conversation.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0.001, max=1, help="Mass of the tokens drawn from.")] = 0.95,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws; every turn has its own.")] = 0,
    weights: Weights = "auto",
) -> None:
    """Talk to a model, or to several in turn (/use NAME); without a terminal every line of stdin is a turn."""
    from tunesmith.rollout.generator import Sampling

    shelf = shelf_of(models, weights)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    talk = Conversation(shelf.open(models[0]), sampling, system)
    if prompt is not None:
        for name in models:
            talk.answer_alone(prompt, shelf.open(name), name if len(models) > 1 else None)
        return
    for line in lines_of_stdin(talk.opened.source.told):
        if line == "/exit":
            return
        if line == "/reset":
            talk.reset()
        elif line.startswith("/use "):
            talk.try_to_use(shelf, line.removeprefix("/use ").strip())
        elif line:
            talk.try_to_say(line)


def evaluate_model(
    model: ModelName,
    data: Annotated[list[str], typer.Option("--data", help="Held-out records: file, folder or glob; repeatable.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metrics", "-m", help="Comma-separated or repeated.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n records of each.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    max_length: Annotated[int, typer.Option("--max-length", min=8, help="Longest record of the loss, tokens.")] = 2048,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts decoded together.")] = 32,
    shape: Annotated[str, typer.Option(help="Shape of the records; auto recognises it.")] = "auto",
    answers: Annotated[Path | None, typer.Option("--answers", help="Write every answer to this jsonl file.")] = None,
    examples: Annotated[int, typer.Option("--show", min=0, help="Answers shown beside their references.")] = 3,
    weights: Weights = "auto",
    against: Against = None,
    reward: Reward = None,
    rule: RuleName = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    json: AsJson = False,
) -> None:
    """Measure a model on held-out records: losses, its answers, pairs, how often it answers better than another."""
    from tunesmith.cli.output import console

    sources = [{"path": path, "shape": check_words([shape], shape_names(), "--shape")[0]} for path in data]
    settings = {
        "data": sources,
        "metrics": check_words(split_words(metrics) or [*DEFAULT_METRICS], metric_names(), "--metrics"),
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "limit": limit,
    }
    decider = Decider(reward, rule, judge, judge_model)
    if against is not None or decider != NOBODY:
        duellists = Duellists(model, against, choose_weights(weights), max_new_tokens, batch_size)
        report(duellists, sources, limit, decider, answers, examples=examples, as_json=json)
        return
    opened = open_for_use(model, weights, "any")
    if opened.source.outputs:
        if metrics:
            console().print("--metrics is left out: a reward model or classifier has metrics of its own")
        tell_values(measure_values(opened, sources, limit, max_length), answers, as_json=json)
        return
    tell_answers(measure(opened, settings, max_length), answers, examples, as_json=json)


def tell_answers(found: Evaluation, rows: Path | None, examples: int, *, as_json: bool) -> None:
    """Print the scores of answers, and write a row per answer when a file is named."""
    from tunesmith.cli.output import answer, emit_json
    from tunesmith.evaluate.harness import write_rows
    from tunesmith.track.files import disk_error, finite

    if rows is not None:
        try:
            write_rows(found.rows, rows, found.pairs)
        except OSError as error:
            raise disk_error(error, rows) from error
    tell_unused(found.unused)
    if as_json:
        emit_json(cast("dict[str, Any]", finite(found.to_json())))
        return
    for part in evaluation_view(found, examples):
        answer(part)


def tell_unused(unused: Mapping[str, Mapping[str, int]]) -> None:
    """What was left out of each task, by reason."""
    from tunesmith.cli.output import console

    for task, reasons in unused.items():
        for reason, count in reasons.items():
            console().print(f"{task}: {count} records left out: {reason.replace('_', ' ')}", markup=False)


def measure(opened: Opened, settings: dict[str, Any], max_length: int) -> Evaluation:
    from tunesmith.cli.output import console
    from tunesmith.data.config import DataConfig
    from tunesmith.evaluate.config import EvaluateConfig
    from tunesmith.evaluate.harness import evaluate, kind_held
    from tunesmith.track.progress import make_progress

    reading = DataConfig(max_length=max_length, overlong="split")
    asked = EvaluateConfig.model_validate(settings)
    compared = any(kind_held(source) != "sequence" for source in asked.data)
    reference = wanted_reference(opened) if compared else None
    with make_progress(console()) as progress:
        return evaluate(
            opened.model,
            opened.tokenizer,
            asked,
            reading,
            reference=reference,
            on_progress=lambda task, done, total: progress.phase(f"measuring {task}", done, total),
        )


def wanted_reference(opened: Opened) -> Reference | None:
    """What an adapter changes, or what a run with a reference was compared with; nothing for any other model."""
    from tunesmith.export.opening import reference_of
    from tunesmith.recipe import load_recipe

    source = opened.source
    if source.run is None or source.settings.reference.source == "none":
        return reference_of(opened) if source.run is None else None
    recipe = load_recipe(source.run.config_file, (), {}).recipe
    begun = recipe.model.adapter.kept == "adapter" and recipe.model.adapter_path is None
    return reference_of(opened) if begun or recipe.has_reference else None


def measure_values(opened: Opened, sources: list[dict[str, str]], limit: int | None, max_length: int) -> Measured:
    """What the values of a reward model or classifier are worth on held-out records."""
    from tunesmith.cli.output import console
    from tunesmith.data.config import DataConfig, SourceConfig
    from tunesmith.evaluate.values import evaluate_values
    from tunesmith.track.progress import make_progress

    with make_progress(console()) as progress:
        return evaluate_values(
            opened.model,
            opened.tokenizer,
            opened.source.meaning,
            [SourceConfig.model_validate(source) for source in sources],
            DataConfig(max_length=max_length, limit=limit),
            on_progress=lambda task, done, total: progress.phase(f"scoring {task}", done, total),
        )


def tell_values(found: Measured, rows: Path | None, *, as_json: bool) -> None:
    """Print the worth of values, and write a row per record when a file is named."""
    from tunesmith.cli.output import answer, emit_json
    from tunesmith.cli.values_view import values_view, write_rows
    from tunesmith.track.files import finite

    if rows is not None:
        write_rows(found.rows, rows)
    tell_unused(found.unused)
    if as_json:
        emit_json(cast("dict[str, Any]", finite(found.to_json())))
        return
    for part in values_view(found):
        answer(part)


class Conversation:
    """The turns so far; every answer is written to stdout while it is made."""

    def __init__(self, opened: Opened, sampling: Sampling, system: str | None) -> None:
        self.opened = opened
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        from tunesmith.types import Message

        self.messages = [Message("system", self.system)] if self.system is not None else []

    def say(self, text: str) -> None:
        """Answer one turn; Ctrl-C keeps what was said so far."""
        from dataclasses import replace

        from tunesmith.rollout.generator import stream
        from tunesmith.types import Message

        asked = [*self.messages, Message("user", text)]
        tokenizer: Tokenizer = self.opened.tokenizer
        sampling = replace(self.sampling, seed=self.sampling.seed + len(asked))
        said: list[str] = []
        with suppress(KeyboardInterrupt):
            for piece in stream(self.opened.model, tokenizer, tokenizer.prompt_ids(asked), sampling):
                said.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.messages = [*asked, Message("assistant", "".join(said))]

    def answer_alone(self, text: str, opened: Opened, name: str | None) -> None:
        """One model's answer to the first turn of a conversation of its own, below its name."""
        if name is not None:
            sys.stdout.write(f"{name}: ")
        self.opened = opened
        self.reset()
        self.say(text)

    def try_to_use(self, shelf: Shelf, name: str) -> None:
        """Go on with another model of those that were named; the conversation stays."""

        def change() -> None:
            self.opened = shelf.open(name)

        self.attempt(change)

    def try_to_say(self, text: str) -> None:
        """As `say`, but a turn that fails is told and forgotten, so that the conversation can go on."""
        self.attempt(lambda: self.say(text))

    def attempt(self, action: Callable[[], None]) -> None:
        from tunesmith.cli.output import show
        from tunesmith.errors import TunesmithError

        try:
            action()
        except TunesmithError as error:
            if not sys.stdin.isatty():
                raise
            show(error.diagnostic)


def lines_of_stdin(told: str) -> Iterator[str]:
    """Lines typed at a prompt, or those of a pipe or file; ends at the end of input and at Ctrl-C."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    from tunesmith.cli.output import console

    terminal = console()
    terminal.print(f"[bold]{told}[/bold]\n{HELP}")
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            terminal.print()
            return


def open_for_use(model: str, weights: str, wants: Wants = "text") -> Opened:
    from tunesmith.cli.output import console
    from tunesmith.export.opening import open_model

    which = choose_weights(weights)
    with console().status(f"loading {model}"):
        return open_model(model, which=which, wants=wants)


def shelf_of(names: list[str], weights: str) -> Shelf:
    from tunesmith.cli.output import console
    from tunesmith.export.shelf import Shelf

    which = choose_weights(weights)
    with console().status(f"loading {names[0]}"):
        return Shelf.of(names, which)


def choose_weights(word: str) -> Which:
    return cast("Which", check_words([word], WEIGHTS, "--weights")[0])


def metric_names() -> tuple[str, ...]:
    from typing import get_args

    from tunesmith.evaluate.config import Metric

    return get_args(Metric)


def shape_names() -> tuple[str, ...]:
    from typing import get_args

    from tunesmith.data.config import Shape

    return get_args(Shape)


def split_words(listed: list[str] | None) -> list[str]:
    return [word.strip() for entry in listed or [] for word in entry.split(",") if word.strip()]


def check_words(words: list[str], known: tuple[str, ...], option: str) -> list[str]:
    """The words without repetitions; UsageError E020 names the nearest known one."""
    from tunesmith.errors import UsageError, Where, nearest

    for word in words:
        if word not in known:
            close = nearest(word, known)
            fixes = [f"did you mean {close}?"] if close else []
            raise UsageError(
                "E020",
                f"{option} does not know {word!r}",
                where=Where("command line", field=option),
                evidence=[f"known: {', '.join(known)}"],
                fixes=fixes,
            )
    return list(dict.fromkeys(words))


def evaluation_view(found: Evaluation, examples: int) -> list[RenderableType]:
    """The scores as a table, groups of pairs, and the first answers beside their references, wrong ones first."""
    from rich.table import Table
    from rich.text import Text

    from tunesmith.cli.values_view import breakdown_view

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("task", "metric", "value", "95 % interval", "n"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right")
    for task, metrics in found.scores.items():
        for name, score in metrics.items():
            interval = f"{score.low:.4g} to {score.high:.4g}"
            table.add_row(Text(task), name, f"{score.value:.4g}", interval, f"{score.n:,}")
    parts: list[RenderableType] = [table]
    for detail in filter(None, found.detail.values()):
        parts.append(breakdown_view(detail.get("reward_breakdown") or detail["breakdown"]))
    rows = sorted(found.rows, key=lambda row: row.ok)[:examples]
    if rows:
        beside = Table(show_lines=True)
        for title in ("prompt", "answer", "reference"):
            beside.add_column(title, ratio=1, overflow="fold")
        for row in rows:
            mark = Text("✓ ", style="green") if row.ok else Text("✗ ", style="red")
            said = Text.assemble(mark, row.answer[:300])
            beside.add_row(Text(row.prompt[-300:]), said, Text(row.reference[:300]))
        parts.append(beside)
    return parts
