"""Settings of labelling: who says which answer is better, and what becomes of it."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config

CRITERIA = "The better answer is the one that is more helpful, more correct and more honest."


class JudgeConfig(Config):
    """A chat model at a URL that compares two answers."""

    url: str = Field(description="Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    model: str = Field(description="Name of the model that judges, as the server calls it.")
    criteria: str = Field(default=CRITERIA, description="What makes an answer the better one, told to the judge.")
    key_variable: str = Field(
        default="TUNESMITH_JUDGE_KEY", description="Environment variable that holds the API key; unset: no key is sent."
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(default=60.0, description="Seconds to wait for a reply.")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=4, description="Further attempts after a failed one, each after a longer pause."
    )
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(default=4, description="Requests at the same time.")

    @property
    def fingerprint(self) -> str:
        """Verdicts by other criteria are other verdicts."""
        return hashlib.sha256(self.criteria.encode("utf-8", "surrogatepass")).hexdigest()[:12]


class LabelConfig(Config):
    """Who marks the answers: exactly one of reward, rule and judge."""

    reward: str | None = Field(default=None, description="Reward model: a run, a folder or a hub id.")
    rule: str | None = Field(default=None, description="Name of a rule, with its argument: contains:TEXT.")
    judge: JudgeConfig | None = Field(default=None, description="A chat model at a URL that compares two answers.")
    min_margin: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Least difference of marks between the better and the worse answer."
    )
    threshold: float | None = Field(
        default=None, description="Least mark of a good answer, for sft and feedback; empty: what the rule says."
    )
    unfinished: Literal["worst", "drop", "keep"] = Field(
        default="worst",
        description="Answers that were cut by their limit: worst puts them below all finished ones, so that running on "
        "never pays; drop leaves them out; keep marks them like the others.",
    )
