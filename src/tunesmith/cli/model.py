"""What commands share that open a model: how it is named, which weights, and words that are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tunesmith.errors import UsageError
    from tunesmith.export.opening import ModelSource, Opened, Wants, Which
    from tunesmith.rollout.config import Held

PRODUCTS = ("packed", "shared", "int8")
ALSO = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "ggml": "gguf"}
WEIGHTS = ("auto", "final", "best", "newest")

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a model or adapter folder, a .gguf file, starter, a hub id.", show_default=False
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", help="Weights of a run: final, best, newest, step-40; auto: final, else newest.")
]


def open_for_use(model: str, weights: str, wants: Wants = "text") -> Opened:
    from tunesmith.cli.output import console
    from tunesmith.export.opening import open_model

    which = choose_weights(weights)
    with console().status(f"loading {model}"):
        opened = open_model(model, which=which, wants=wants)
    tell_sources({model: opened.source}, which)
    return opened


def tell_sources(sources: Mapping[str, ModelSource], which: Which) -> None:
    """A line for each model whose weights are rounded, and read as a plain copy.

    UsageError E020 where weights of a run are chosen and no model is a run.
    """
    from tunesmith.cli.output import console
    from tunesmith.models.rounded import rounded_copy

    if which != "auto" and not any(source.run for source in sources.values()):
        raise no_run(sources)
    for name, source in sources.items():
        if (told := rounded_copy(source.base, name)) is not None:
            console().print(told.message, markup=False, highlight=False, soft_wrap=True)


def check_runs(named: Mapping[str, str], which: Which) -> None:
    """UsageError E020, before anything is loaded, where weights of a run are chosen and no model is a run."""
    from tunesmith.export.opening import named_run

    if which != "auto" and not any(named_run(model) for model in named.values()):
        raise no_run(named)


def no_run(names: Iterable[str]) -> UsageError:
    from tunesmith.errors import UsageError, Where

    message = f"--weights chooses among those of a run, and {', '.join(names)} is none"
    fixes = ["leave --weights out", "name a run: last, runs/NAME"]
    return UsageError("E020", message, where=Where("command line", field="--weights"), fixes=fixes)


def choose_weights(word: str) -> Which:
    step = word.removeprefix("step-")
    if step != word and step.isascii() and step.isdigit():
        return int(step)
    return cast("Which", check_words([word], (*WEIGHTS, "step-N"), "--weights")[0])


def choose_products(word: str) -> Held:
    return cast("Held", check_words([word], PRODUCTS, "--products")[0])


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
            close = ALSO[word] if ALSO.get(word) in known else nearest(word, known)
            fixes = [f"did you mean {close}?"] if close else [f"one of these, such as {option} {known[0]}"]
            raise UsageError(
                "E020",
                f"{option} does not know {word!r}",
                where=Where("command line", field=option),
                evidence=[f"known: {', '.join(known)}"],
                fixes=fixes,
            )
    return list(dict.fromkeys(words))
