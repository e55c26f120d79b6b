"""Settings of sampling: how many answers a prompt gets, and how their tokens are drawn."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config

Texts = Literal["auto", "chat", "plain"]  # what a prompt that is a text becomes


class SamplingConfig(Config):
    """How answers are drawn from a model."""

    answers: Annotated[int, Field(ge=1, le=4096)] = Field(default=4, description="Answers per prompt.")
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.8, description="Flatness of the draws; 0 always takes the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="Draw from the fewest tokens that hold this mass."
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = Field(
        default=256, description="Longest answer in tokens."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="Answers decoded together.")
    texts: Texts = Field(
        default="auto",
        description="A prompt that is a text: chat asks it as a user, plain continues it; auto asks lines of .txt "
        "files as a user and continues the rest.",
    )
