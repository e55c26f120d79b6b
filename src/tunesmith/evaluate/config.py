"""The `evaluate` part of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config
from tunesmith.data.config import SourceConfig
from tunesmith.rollout.config import Held

Metric = Literal["loss", "perplexity", "exact_match", "contains", "valid_json", "rouge_l", "chrf", "bleu"]


class EvaluateConfig(Config):
    data: tuple[SourceConfig, ...] = Field(
        default=(), description="Records whose answers are generated and scored after training."
    )
    metrics: tuple[Metric, ...] = Field(default=("loss", "perplexity", "exact_match"), description="What is measured.")
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = Field(
        default=256, description="Longest answer in tokens."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="Prompts decoded together.")
    products: Held = Field(default="packed", description="What products read on a CPU, as in online.sampling.")
    limit: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Use only the first n records.")
    forgetting: Annotated[int, Field(ge=0)] = Field(
        default=100,
        description="Records of each set in the report on what was learned and lost, which ends a training with "
        "data.general.eval; 0: no report.",
    )
