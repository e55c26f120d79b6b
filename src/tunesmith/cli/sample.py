"""`tunesmith sample`: several answers of a model to each prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.model import Weights
from tunesmith.cli.options import AsJson, Products

if TYPE_CHECKING:
    from torch import nn

    from tunesmith.data.tokenizer import Tokenizer
    from tunesmith.export.opening import ModelSource, Which
    from tunesmith.rollout.config import SamplingConfig
    from tunesmith.rollout.prompts import Prompt
    from tunesmith.rollout.sampling import Drawing, Sampled

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a model or adapter folder, a .gguf file, starter, a hub id.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    app.command("sample")(sample)


def sample(
    model: ModelName,
    prompts: Annotated[str, typer.Option("--prompts", help="Records with a prompt, in any shape; .txt: a line each.")],
    answers: Annotated[int, typer.Option("--answers", "-n", min=1, help="Answers per prompt.")] = 4,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file of answers.", show_default=False)] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", min=0.001, max=1, help="Mass of the tokens drawn from.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Answers decoded together.")] = 32,
    products: Products = "packed",
    texts: Annotated[
        str, typer.Option(help="A text prompt is asked: chat, plain; auto: lines of .txt as chat.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n prompts.")] = None,
    best_by: Annotated[
        str | None, typer.Option("--best-by", help="Reward model: also write the best answers.", show_default=False)
    ] = None,
    weights: Weights = "auto",
    json: AsJson = False,
) -> None:
    """Draw several answers to each prompt; a file that was begun is continued."""
    from tunesmith.cli.model import check_words, choose_products, choose_weights
    from tunesmith.cli.output import answer, emit_json
    from tunesmith.rollout.config import SamplingConfig
    from tunesmith.rollout.sampling import Drawing

    settings = SamplingConfig(
        answers=answers,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        products=choose_products(products),
        texts=check_words([texts], ("auto", "chat", "plain"), "--texts")[0],  # pyright: ignore[reportArgumentType]
    )
    source = find_writer(model, choose_weights(weights))
    target = out or Path(f"{Path(prompts).name.split('.')[0] or 'prompts'}.{title_of(source)}.answers.jsonl")
    made = draw(source, read_all(prompts, limit, settings), Drawing(settings, seed), target)
    told: dict[str, Any] = {"out": str(target), **made.to_json()}
    if best_by is not None:
        told["best"] = str(keep_best(target, best_by))
    if json:
        emit_json(told)
        return
    answer(view(made, target))
    if best_by is not None:
        answer(f"the best of each: {told['best']}")


def read_all(path: str, limit: int | None, settings: SamplingConfig) -> list[Prompt]:
    from tunesmith.data.config import SourceConfig
    from tunesmith.rollout.prompts import read_prompts

    return list(read_prompts(SourceConfig(path=path), limit=limit, texts=settings.texts))


def find_writer(name: str, which: Which) -> ModelSource:
    """The model of this name; ModelError E242 when it writes no text."""
    from tunesmith.cli.model import tell_sources
    from tunesmith.export.opening import check_gives, find_model

    source = find_model(name, which)
    check_gives(source, "text")
    tell_sources({name: source}, which)
    return source


def title_of(source: ModelSource) -> str:
    """The model in the name of a file: its run, or the folder of the adapter or model."""
    name = source.run.id if source.run else (source.adapter or source.base).name
    step = f"-step-{source.checkpoint.step}" if source.checkpoint else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{name}{step}").strip("-") or "model"


def draw(source: ModelSource, prompts: Sequence[Prompt], drawing: Drawing, target: Path) -> Sampled:
    """The answers of a model to all prompts, in `target`; it is loaded only when one is missing."""
    from dataclasses import replace

    from tunesmith.cli.output import console
    from tunesmith.export.identity import weights_identity
    from tunesmith.export.opening import open_source
    from tunesmith.rollout.answers import AnswerFile
    from tunesmith.rollout.sampling import draw_answers, drawing_identity
    from tunesmith.track.progress import make_progress

    identity = drawing_identity(drawing.settings, drawing.seed, weights_identity(source))
    with make_progress(console()) as progress, AnswerFile(target, identity) as file:

        def load() -> tuple[nn.Module, Tokenizer]:
            progress.phase(f"loading {source.told}")
            opened = open_source(source)
            return opened.model, opened.tokenizer

        told = replace(drawing, on_progress=lambda done, total: progress.phase("answers", done, total))
        return draw_answers(load, prompts, file, told)


def keep_best(answers: Path, reward: str) -> Path:
    """The answers that a reward model likes best, one per prompt, as records to learn from."""
    from tunesmith.cli.label import label_file
    from tunesmith.evaluate.label_config import LabelConfig
    from tunesmith.evaluate.outcomes import Choice

    out = answers.with_name(f"{answers.name.removesuffix('.jsonl')}.best.jsonl")
    label_file(str(answers), out, LabelConfig(reward=reward), Choice(to="sft", unfinished="keep"), None)
    return out


def view(made: Sampled, target: Path) -> str:
    """What was written, in three lines."""
    speed = f", {made.tokens_per_second:,.0f} tokens/s" if made.new else ""
    lines = [
        f"{made.completions:,} answers to {made.prompts:,} prompts in {target} ({made.new:,} new{speed})",
        f"{made.finished:.0%} came to their end, {made.mean_length:.0f} tokens on average, "
        f"{made.distinct:.0%} of the answers to a prompt differ",
    ]
    if made.left_out:
        lines.append(f"{made.left_out:,} prompts were left out: they fill the model's context")
    return "\n".join(lines)
