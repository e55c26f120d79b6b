"""The `online` part of a recipe: rounds in which the model answers, the answers are marked, and it learns from them."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config
from tunesmith.evaluate.label_config import LabelConfig
from tunesmith.rollout.config import SamplingConfig


class OnlineConfig(Config):
    """Rounds of sampling, labelling and training; `data.train` holds the prompts."""

    rounds: Annotated[int, Field(ge=1, le=1000)] = Field(default=3, description="How often the three are repeated.")
    prompts: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Prompts per round, the next ones every round; empty: all of them every round."
    )
    reference: Literal["start", "previous"] = Field(
        default="start",
        description="What preference losses compare with: the model before the first round, or before this one.",
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How answers are drawn from the model.")
    label: LabelConfig = Field(default=LabelConfig(), description="Who marks the answers, and what becomes of marks.")

    @property
    def note(self) -> str:
        """What a plan of one round does not say by itself."""
        return f"one of {self.rounds} rounds, without its sampling; answers are taken to be as long as they may be"
