"""The `train` part of a recipe."""

from typing import TYPE_CHECKING, Annotated, Literal, Self, Union

from pydantic import Field

from tunesmith.config import Config
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.train.optimizers import OPTIMIZERS, AdamW, OptimizerConfig

if TYPE_CHECKING:  # a type checker cannot read the registry
    AnyOptimizer = OptimizerConfig
else:
    AnyOptimizer = Annotated[Union[OPTIMIZERS], Field(discriminator="name")]  # noqa: UP007

Positive = Annotated[int, Field(ge=1)]


class ScheduleConfig(Config):
    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt", "rising"] = Field(
        default="cosine",
        description="Shape of the rate after the warm-up; wsd is warm-up, stable, decay; rising goes up from "
        "min_ratio, or 1e-5, by the same factor each step, as lr-find does.",
    )
    warmup: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default=0.03,
        description="Below 1 a share of all steps, from 1 on a number of steps; auto: 2 / (1 - beta2) steps, which the "
        "optimiser's mean of squares takes to settle (arXiv:1910.04209).",
    )
    warmup_shape: Literal["linear", "exponential"] = Field(
        default="linear",
        description="How the rate rises: by equal steps, or as 1 - exp(-2 step / warmup), which is 86 % at the end of "
        "the warm-up and goes on (arXiv:1910.04209).",
    )
    min_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Final rate as a share of the peak."
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="wsd: share of all steps spent decaying."
    )


class CheckpointConfig(Config):
    every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps between checkpoints; 0: by time alone, and at the end and on signals."
    )
    minutes: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="Most minutes between checkpoints; 0: never by time."
    )
    keep: Annotated[int, Field(ge=2)] = Field(
        default=2, description="How many of the newest are kept; the best is kept besides."
    )
    commit: Literal["auto", "rename", "marker"] = Field(
        default="auto",
        description="rename: written beside, then renamed in one act; marker: written in place, the manifest last, for "
        "object stores and network file systems; auto: by the file system of the run's folder.",
    )
    in_background: bool = Field(
        default=False,
        description="Copy the state and write it while training goes on, one save at a time; takes the memory of the "
        "copy. Several ranks save in step all the same.",
    )


class EarlyStoppingConfig(Config):
    watch: Literal["eval", "general"] = Field(
        default="eval",
        description="eval: stop when the evaluation loss no longer falls; general: when the loss on data.general.eval "
        "has risen too far.",
    )
    max_rise: Annotated[float, Field(ge=0)] = Field(
        default=0.05,
        description="general: how far that loss may rise, as a share of what it was before the first step.",
    )
    patience: Positive = Field(default=3, description="Evaluations without improvement before the run stops.")
    min_delta: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Smallest drop of the loss that counts.")


class AdaptiveClipConfig(Config):
    """A limit of the gradient norm that follows the norms of the run itself."""

    rule: Literal["zscore", "percentile"] = Field(
        default="zscore",
        description="zscore: far above the running mean is drawn back towards it (arXiv:2504.02507); percentile: of "
        "all norms so far (arXiv:2007.14469).",
    )
    threshold: Annotated[float, Field(gt=0, le=100)] = Field(
        default=2.5, description="zscore: standard deviations above the mean from which a norm is drawn back."
    )
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.97, description="zscore: share of mean and variance that a step keeps."
    )
    warmup: Annotated[int, Field(ge=2)] = Field(
        default=25, description="zscore: first steps, which only fill mean and variance."
    )
    percentile: Annotated[float, Field(gt=0, le=100)] = Field(
        default=10.0, description="percentile: the norm that this share of all steps so far stayed below is the limit."
    )
    window: Annotated[int, Field(ge=8)] = Field(default=4096, description="percentile: steps that are remembered.")


class EmaConfig(Config):
    """A running average of the trained weights, which is what is evaluated and kept."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.999, description="Share of the average that a step keeps; 0.999 looks back about 1,000 steps."
    )
    ramp: bool = Field(
        default=True, description="Begin with a small decay, (1 + step) / (10 + step), so that the start is forgotten."
    )


class StabilityConfig(Config):
    on_nonfinite: Literal["skip", "stop"] = Field(
        default="skip", description="A step with NaN or Inf: leave it out, or stop."
    )
    max_skips: Positive = Field(default=3, description="Bad steps in a row that stop the run.")
    on_spike: Literal["off", "skip", "rollback"] = Field(
        default="off",
        description="A loss or norm beyond `sigma` of the window: leave the step out, or go back to the weights of the "
        "newest checkpoint as well while the data go on.",
    )
    window: Annotated[int, Field(ge=8)] = Field(default=128, description="Steps in the spike window.")
    sigma: Annotated[float, Field(gt=0)] = Field(
        default=6.0, description="Standard deviations above the window's mean that make a spike."
    )
    diverged_steps: Annotated[int, Field(ge=0)] = Field(
        default=5,
        description="Steps with a loss far above the first one that stop the run, less those that came back: ten times "
        "it, and for tokens twice it and worse than a blind guess by 2. 0: never.",
    )
    replica_check_every: Annotated[int, Field(ge=0)] = Field(
        default=100,
        description="Steps after which several ranks compare all their weights bit by bit, as they do before every "
        "checkpoint; 0: never.",
    )


class LossScaleConfig(Config):
    initial: Annotated[float, Field(ge=1, le=2**32)] = Field(default=65536.0, description="Scale of the first step.")
    growth: Annotated[float, Field(gt=1, le=16)] = Field(default=2.0, description="Factor after `every` good steps.")
    backoff: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="Factor after an overflow.")
    every: Positive = Field(default=2000, description="Steps without an overflow after which the scale grows.")


MICROBATCH_TOKENS = {"cpu": 1024}  # more makes a CPU no faster while it reads the weights in little time
GPU_MICROBATCH_TOKENS = 8192
LARGE_BODY = 300_000_000  # weights of the layers from which a CPU gains by reading them less often
LARGE_MICROBATCH_TOKENS = 2048


class TrainConfig(Config):
    epochs: Annotated[float, Field(gt=0, le=10_000)] = Field(
        default=1.0, description="Passes over the data; steps overrides it."
    )
    steps: Positive | None = Field(default=None, description="Optimiser steps; overrides epochs.")
    sequences_per_step: Positive | None = Field(default=16, description="Examples per optimiser step, over all ranks.")
    tokens_per_step: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Tokens per optimiser step, over all ranks; instead of sequences_per_step."
    )
    microbatch_tokens: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="Most tokens in one forward pass; empty: 1,024 on a CPU, 2,048 there for layers of 300 million "
        "weights and more, 8,192 on a GPU. Longer examples go alone.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of shuffling, dropout, noise and new weights."
    )
    optimizer: AnyOptimizer = Field(default=AdamW(), description="How gradients become updates.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="The learning rate over the run.")
    clip_norm: Annotated[float, Field(ge=0)] = Field(default=1.0, description="Largest gradient norm; 0: no clipping.")
    adaptive_clip: AdaptiveClipConfig | None = Field(
        default=None,
        description="A limit that follows the norms of the run; the lower of it and clip_norm holds. Empty: none.",
    )
    activation_checkpointing: Literal["auto", "off", "selective", "full", "offloaded"] = Field(
        default="auto",
        description="What layers form again in backward: selective gate and up, full everything; auto: what must be.",
    )
    cache_trunk: Literal["off", "memory", "disk"] = Field(
        default="off",
        description="Compute the layers below the lowest trained one once per record and keep their states: in memory, "
        "or on disk for later runs as well. Equal to rounding; a resume is equal to the bit.",
    )
    neftune_alpha: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Embedding noise (arXiv:2310.05914); 0: off."
    )
    evaluate_every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps between evaluation losses; 0: at the end."
    )
    sample_every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps between answers to fixed prompts, also given before the first and after the last."
    )
    sample_prompts: tuple[str, ...] = Field(
        default=(), description="Fixed prompts; the first of the evaluation set when empty."
    )
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="What is kept to resume from.")
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="Stop when the evaluation loss no longer falls; empty: never."
    )
    ema: EmaConfig | None = Field(
        default=None, description="Use a running average of the weights in the place of the last ones; empty: none."
    )
    l2_to_start: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0,
        description="Pull of the weights back to where they began (arXiv:1802.01483), of a new LoRA adapter to no "
        "update; each step takes rate times this of the way. 0: off.",
    )
    stability: StabilityConfig = Field(default=StabilityConfig(), description="What happens at NaN and at spikes.")
    loss_scale: LossScaleConfig = Field(
        default=LossScaleConfig(), description="Keeps gradients within the range of fp16; no other type has one."
    )
    fp8: Fp8Config | None = Field(
        default=None,
        description="Form the products with trained weights in 8 bits, on GPUs of compute capability 8.9 or more, "
        "beside weights and masters as they are; empty: in the type of the model.",
    )
    watch_layers: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Steps between looks at single layers: the norm of each one's gradient, and its update as a share "
        "of its weights; 0: never.",
    )
    threads: Positive | None = Field(default=None, description="CPU threads; all cores when empty.")
    deterministic: bool = Field(
        default=False,
        description="Only operations that give the same bits every time, slower on a GPU; one that has no such kernel "
        "is an error that names it. On a CPU runs repeat to the bit anyway.",
    )
    profile: bool = Field(default=False, description="Write a breakdown of the steps' time by part.")

    def microbatch_limit(self, device: str) -> int:
        """Tokens of a microbatch on a kind of device (`cpu`, `cuda`)."""
        return self.microbatch_tokens or MICROBATCH_TOKENS.get(device, GPU_MICROBATCH_TOKENS)

    def sized(self, body: int, device: str) -> Self:
        """The same with the microbatches that fit a model of `body` weights in its layers, where none are named."""
        if self.microbatch_tokens is not None or device != "cpu" or body < LARGE_BODY:
            return self
        return self.model_copy(update={"microbatch_tokens": LARGE_MICROBATCH_TOKENS})
