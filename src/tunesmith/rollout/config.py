"""Settings of sampling: how many answers a prompt gets, and how their tokens are drawn."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config
from tunesmith.rollout.ranges import Temperature, TopP

Held = Literal["packed", "shared", "int8"]
"""What products read while answers are made: a copy of the weights in the order in which it is read, the weights
themselves, or a copy in 8 bits.

The first two give the same up to rounding, the second is slower and takes no further memory; 8 bits are the fastest,
and not exact.
"""
Texts = Literal["auto", "chat", "plain"]  # what a prompt that is a text becomes


class SamplingConfig(Config):
    """How answers are drawn from a model."""

    answers: Annotated[int, Field(ge=1, le=4096)] = Field(default=4, description="Answers per prompt.")
    temperature: Temperature = Field(
        default=0.8, description="Flatness of the draws; 0, and what is below 0.0001, always takes the likeliest token."
    )
    top_p: TopP = Field(default=0.95, description="Draw from the fewest tokens that hold this mass.")
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = Field(
        default=256, description="Longest answer in tokens."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="Answers decoded together.")
    products: Held = Field(
        default="packed",
        description="What products read on a CPU: packed, a copy of the weights in the order in which it is read; "
        "shared, the weights themselves, slower and without the memory of a copy; int8, a copy in 8 bits, which is not "
        "exact.",
    )
    texts: Texts = Field(
        default="auto",
        description="A prompt that is a text: chat asks it as a user, plain continues it; auto asks lines of .txt "
        "files as a user and continues the rest.",
    )
