"""The `train` part of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config

Positive = Annotated[int, Field(ge=1)]


class OptimizerConfig(Config):
    name: Literal["adamw"] = Field(default="adamw", description="AdamW with decoupled decay (arXiv:1711.05101).")
    lr: Annotated[float, Field(gt=0, le=10)] = Field(
        default=2e-4, description="Peak learning rate. LoRA: 1e-4 to 5e-4; full: 1e-5 to 5e-5."
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="Decay of the mean of gradients.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.999, description="Decay of the mean of squares.")
    eps: Annotated[float, Field(gt=0)] = Field(default=1e-8, description="Added to the root of the mean of squares.")
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Decoupled weight decay per step; never applied to norms and biases."
    )
    lr_new_layers: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None, description="Own rate for modules_to_save; the peak rate when empty."
    )
    in_backward: bool = Field(
        default=False,
        description="Update each parameter in the backward pass and free its gradient; needs clip_norm=0.",
    )


class ScheduleConfig(Config):
    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt", "rising"] = Field(
        default="cosine",
        description="Shape of the rate after the warm-up; wsd is warm-up, stable, decay; rising goes up from "
        "min_ratio, or 1e-5, by the same factor each step, as lr-find does.",
    )
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.03, description="Below 1 a share of all steps, from 1 on a number of steps."
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


class EarlyStoppingConfig(Config):
    patience: Positive = Field(default=3, description="Evaluations without improvement before the run stops.")
    min_delta: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Smallest drop of the loss that counts.")


class StabilityConfig(Config):
    on_nonfinite: Literal["skip", "stop"] = Field(
        default="skip", description="A step with NaN or Inf: leave it out, or stop."
    )
    max_skips: Positive = Field(default=3, description="Bad steps in a row that stop the run.")
    on_spike: Literal["off", "skip"] = Field(
        default="off", description="A loss beyond `sigma` of the window: leave the step out."
    )
    window: Annotated[int, Field(ge=8)] = Field(default=128, description="Steps in the spike window.")
    sigma: Annotated[float, Field(gt=0)] = Field(
        default=6.0, description="Standard deviations above the window's mean that make a spike."
    )


MICROBATCH_TOKENS = {"cpu": 1024}  # more makes a CPU no faster and needs more memory
GPU_MICROBATCH_TOKENS = 8192


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
        description="Most tokens in one forward pass; empty: 1,024 on a CPU, 8,192 on a GPU. Longer examples go alone.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of shuffling, dropout, noise and new weights."
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="How gradients become updates.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="The learning rate over the run.")
    clip_norm: Annotated[float, Field(ge=0)] = Field(default=1.0, description="Largest gradient norm; 0: no clipping.")
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
    stability: StabilityConfig = Field(default=StabilityConfig(), description="What happens at NaN and at spikes.")
    threads: Positive | None = Field(default=None, description="CPU threads; all cores when empty.")
    profile: bool = Field(default=False, description="Write a breakdown of the steps' time by part.")

    def microbatch_limit(self, device: str) -> int:
        """Tokens of a microbatch on a kind of device (`cpu`, `cuda`)."""
        return self.microbatch_tokens or MICROBATCH_TOKENS.get(device, GPU_MICROBATCH_TOKENS)
