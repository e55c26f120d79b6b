"""The `data` part of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config

Shape = Literal[
    "auto",
    "alpaca",
    "sharegpt",
    "messages",
    "prompt_completion",
    "text",
    "preference",
    "transcript",
    "ranking",
    "process",
]

GENERAL_EVAL = "general eval"


class SourceConfig(Config):
    path: str = Field(
        description="File, folder, glob or hub data set (hub:owner/name). jsonl, json, csv, parquet, txt, gz of these."
    )
    shape: Shape = Field(
        default="auto", description="Shape of the records; auto looks at the keys of the first record."
    )
    columns: dict[str, str] = Field(default={}, description="Our field name -> the file's column name.")
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="How often each record appears per epoch; 0.5 takes another half each epoch."
    )


class GeneralConfig(Config):
    """Data of what the model can do already, so that it is not lost."""

    train: tuple[SourceConfig, ...] = Field(
        default=(), description="Sources that are mixed into every step; a bare path works."
    )
    share: Annotated[float, Field(gt=0, le=0.9)] = Field(
        default=0.1, description="Share of the examples of every step that comes from them."
    )
    eval: tuple[SourceConfig, ...] = Field(
        default=(), description="Held-out answers or texts whose loss is measured at the start and at evaluations."
    )


class DataConfig(Config):
    train: tuple[SourceConfig, ...] = Field(default=(), description="Training sources; a bare path works.")
    eval: tuple[SourceConfig, ...] = Field(default=(), description="Held-out sources for the evaluation loss.")
    general: GeneralConfig = Field(default=GeneralConfig(), description="General data, against forgetting.")
    train_on: Literal["all_assistant", "last_assistant", "completion", "all"] = Field(
        default="all_assistant", description="Which tokens the loss sees; completion is the last answer of each record."
    )
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        default=2048, description="Most tokens of an example; of judged answers, of the prompt with the longest one."
    )
    overlong: Literal["drop", "cut_turns", "split", "error"] = Field(
        default="drop", description="What happens to longer examples; every choice is counted and reported."
    )
    on_bad: Literal["error", "skip"] = Field(
        default="error", description="Stop at bad records, or skip and count them."
    )
    shuffle: bool = Field(default=True, description="A new order every epoch, fixed by train.seed.")
    share_prefixes: bool = Field(
        default=True,
        description="Compute what records of a microbatch begin with once; exact. Not with NEFTune or dropout.",
    )
    special_tokens_in_text: Literal["escape", "error"] = Field(
        default="escape", description="Control tokens written inside user text: keep them as plain text, or refuse."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Use only the first n records of each source."
    )

    @property
    def trained(self) -> tuple[SourceConfig, ...]:
        """All sources of an epoch, the general ones last."""
        return (*self.train, *self.general.train)

    def sets(self) -> dict[str, tuple[SourceConfig, ...]]:
        """All sets of sources by name."""
        return {"train": self.train, "eval": self.eval, "general": self.general.train, GENERAL_EVAL: self.general.eval}
