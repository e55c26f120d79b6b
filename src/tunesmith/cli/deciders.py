"""Options that say who decides which answer is better, for every command that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tunesmith.evaluate.label_config import LabelConfig

Reward = Annotated[str | None, typer.Option("--reward", help="A reward model: run, folder, hub id.")]
RuleName = Annotated[str | None, typer.Option("--rule", help="shorter, longer, json, exact, contains:TEXT, ...")]
JudgeUrl = Annotated[str | None, typer.Option("--judge", help="URL of an OpenAI-compatible server.")]
JudgeModel = Annotated[str | None, typer.Option("--judge-model", help="The model that judges there.")]


def judge_settings(url: str | None, model: str | None, others: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The judge of the options, None without a URL; UsageError E020 for one without a model."""
    from tunesmith.errors import UsageError, Where

    if url is None:
        return None
    if model is None:
        fixes = ["--judge-model NAME, as the server calls it"]
        raise UsageError("E020", "--judge needs the name of the model", where=Where("command line"), fixes=fixes)
    return {"url": url, "model": model, **(others or {})}


def label_settings(reward: str | None, rule: str | None, judge: dict[str, Any] | None) -> LabelConfig:
    from pydantic import ValidationError

    from tunesmith.errors import UsageError, Where
    from tunesmith.evaluate.label_config import LabelConfig

    try:
        return LabelConfig.model_validate({"reward": reward, "rule": rule, "judge": judge})
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UsageError("E020", "an option has a wrong value", where=Where("command line"), evidence=told) from error
