"""`tunesmith eval`: a model measured, on records or at the tasks of a suite, alone or beside others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.deciders import JudgeModel, JudgeUrl, Reward, RuleName
from tunesmith.cli.forgetting import Base, Forgetting, General, GeneralWeight, report_forgetting
from tunesmith.cli.model import (
    Weights,
    check_words,
    choose_products,
    choose_weights,
    open_for_use,
    shape_names,
    split_words,
)
from tunesmith.cli.named_tasks import Chat, InType, NamedTasks, Shots, TasksFrom, is_named, report_named
from tunesmith.cli.options import AsJson, Products
from tunesmith.cli.suite import Out, RunCode, Suite, SuiteOptions, TrainData, report_suite
from tunesmith.cli.winrate import NOBODY, Against, Decider, Duellists, report

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunesmith.evaluate.harness import Evaluation
    from tunesmith.evaluate.values import Measured
    from tunesmith.export.opening import Opened
    from tunesmith.models.reference import Reference

DEFAULT_METRICS = ("loss", "perplexity", "exact_match")
MAX_NEW_TOKENS = 256
MAX_LENGTH = 2048

ModelNames = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Runs, model or adapter folders, .gguf files, starter, hub ids; with --suite the first is compared with.",
        show_default=False,
    ),
]
Longest = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens (256, or what a task says).")
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=8, help="Longest record of the loss, tokens (2048).")
]
Metrics = Annotated[
    list[str] | None, typer.Option("--metrics", "-m", help="Comma-separated or repeated.", show_default=False)
]
Data = Annotated[list[str] | None, typer.Option("--data", help="Held-out records: file, folder, glob; repeatable.")]


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate_model)


def evaluate_model(
    models: ModelNames,
    data: Data = None,
    suite: Suite = None,
    out: Out = None,
    train_data: TrainData = None,
    tasks_from: TasksFrom = None,
    shots: Shots = None,
    chat: Chat = False,
    dtype: InType = "auto",
    run_code: RunCode = False,
    metrics: Metrics = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n records or exercises of each.")] = None,
    max_new_tokens: Longest = None,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts decoded together.")] = 32,
    products: Products = "packed",
    shape: Annotated[str, typer.Option(help="Shape of the records; auto recognises it.")] = "auto",
    answers: Annotated[Path | None, typer.Option("--answers", help="Write every answer to this jsonl file.")] = None,
    examples: Annotated[int, typer.Option("--show", min=0, help="Answers shown beside their references.")] = 3,
    weights: Weights = "auto",
    forgetting: Forgetting = False,
    general: General = None,
    general_weight: GeneralWeight = None,
    base: Base = None,
    against: Against = None,
    reward: Reward = None,
    rule: RuleName = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    json: AsJson = False,
) -> None:
    """Measure models: on records, at the tasks of a suite, compared exercise by exercise, or against forgetting."""
    others = {"--reward": reward, "--rule": rule, "--judge": judge, "--judge-model": judge_model, "--against": against}
    given = {"--metrics": metrics, "--max-length": max_length, "--shape": unless("auto", shape)}
    named, code = NamedTasks.of(tasks_from, shots, chat, dtype), {"--run-code": run_code or None}
    if forgetting:
        chosen = {"--weights": unless("auto", weights), "--products": unless("packed", products), **named.given}
        left = {"--train-data": train_data, "--max-new-tokens": max_new_tokens, "--answers": answers, **code}
        refuse("with --forgetting", {**given, **others, **chosen, **left})
        figures = (general_weight, limit, batch_size, base)
        report_forgetting(models, (suite, *(data or ())), general, figures, out, as_json=json)
        return
    refuse("without --forgetting", {"--general": general, "--general-weight": general_weight, "--base": base})
    if suite is not None:
        refuse("with --suite", {"--data": data, "--answers": answers, **given, **others})
        work = (limit, max_new_tokens, batch_size, out, train_data or (), run_code, choose_products(products))
        at_tasks(models, suite, SuiteOptions(choose_weights(weights), *work), named, examples=examples, as_json=json)
        return
    refuse("without --suite", {"--out": out, "--train-data": train_data, **code, **named.given})
    sources = sources_of(models, data, shape)
    longest, held = max_new_tokens or MAX_NEW_TOKENS, choose_products(products)
    settings: dict[str, Any] = {"data": sources, "metrics": wanted_metrics(metrics), "batch_size": batch_size}
    settings |= {"max_new_tokens": longest, "products": held, "limit": limit}
    decider = Decider(reward, rule, judge, judge_model)
    if against is not None or decider != NOBODY:
        duellists = Duellists(models[0], against, choose_weights(weights), longest, batch_size, held)
        report(duellists, sources, limit, decider, answers, examples=examples, as_json=json)
        return
    on_records(models[0], weights, settings, max_length or MAX_LENGTH, Shown(answers, examples, json))


def unless(plain: str, given: str) -> str | None:
    """An option that is given, where its default says nothing."""
    return None if given == plain else given


def at_tasks(
    models: list[str], suite: str, how: SuiteOptions, named: NamedTasks, *, examples: int, as_json: bool
) -> None:
    """The tasks of a suite, or of the harness by their names."""
    if is_named(suite):
        report_named(models, suite, how, named, examples=examples, as_json=as_json)
        return
    refuse("without --suite harness:NAME", named.given)
    report_suite(models, suite, how, examples=examples, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Shown:
    """Where answers go, how many are shown, and in which form."""

    answers: Path | None
    examples: int
    as_json: bool


def on_records(model: str, weights: str, settings: dict[str, Any], max_length: int, shown: Shown) -> None:
    """Measure one model on records: its answers, or the values of its head."""
    from tunesmith.cli.output import console

    check_folder_of(shown.answers)
    opened = open_for_use(model, weights, "any")
    if opened.source.outputs:
        if settings["metrics"] != [*DEFAULT_METRICS]:
            console().print("--metrics is left out: a reward model or classifier has metrics of its own")
        measured = measure_values(opened, settings["data"], settings["limit"], max_length)
        tell_values(measured, shown.answers, as_json=shown.as_json)
        return
    tell_answers(measure(opened, settings, max_length), shown.answers, shown.examples, as_json=shown.as_json)


def refuse(when: str, given: Mapping[str, object]) -> None:
    """UsageError E455 for the first option that was given and says nothing here."""
    from tunesmith.errors import UsageError, Where

    for option, value in given.items():
        if value is not None:
            message = f"{option} says nothing {when}"
            fixes = [f"leave {option} out", "see docs/guides/evaluate.md"]
            raise UsageError("E455", message, where=Where("command line", field=option), fixes=fixes)


def check_folder_of(answers: Path | None) -> None:
    """UsageError E020, before anything is measured, for a file in a folder that is not there."""
    from tunesmith.errors import UsageError, Where

    if answers is not None and not answers.parent.is_dir():
        message = f"there is no folder {answers.parent} to write answers to"
        where, fixes = Where("command line", field="--answers"), [f"--answers {answers.name}"]
        raise UsageError("E020", message, where=where, fixes=fixes)


def sources_of(models: list[str], data: list[str] | None, shape: str) -> list[dict[str, str]]:
    """What one model is measured on. UsageError E455 unless there is one model and something to measure it on."""
    from tunesmith.errors import UsageError, Where

    where = Where("command line")
    if not data:
        fixes = ["--suite basic", "--data FILE"]
        raise UsageError("E455", "nothing says what the model is measured on", where=where, fixes=fixes)
    if len(models) > 1:
        fixes = ["--suite basic", f"tunesmith eval {models[0]} --against {models[1]} --data ... --judge ..."]
        raise UsageError("E455", "several models are compared at the tasks of a suite", where=where, fixes=fixes)
    read_as = check_words([shape], shape_names(), "--shape")[0]
    return [{"path": path, "shape": read_as} for path in data]


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


def wanted_metrics(given: list[str] | None) -> list[str]:
    return check_words(split_words(given) or [*DEFAULT_METRICS], metric_names(), "--metrics")


def metric_names() -> tuple[str, ...]:
    from typing import get_args

    from tunesmith.evaluate.config import Metric

    return get_args(Metric)


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
