"""What programs built on transformers' Trainer share: a clock, the settings of equal work, what a run hands back."""

import time

import torch
from memory import memory_peak
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Wall and processor time at the end of every step, and its loss; `ends[0]` is the start."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.waits = False  # for the first forward pass, which is the start
        self.types: set[str] = set()

    def mark(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def start_at_first_forward(self, model: torch.nn.Module) -> None:
        """Mark the start when the model is first run, even where that is before the training begins."""

        def first(module, inputs):
            handle.remove()
            self.mark()

        self.waits = True
        handle = model.register_forward_pre_hook(first)

    def on_train_begin(self, arguments, state, control, model=None, **rest):
        self.types = {str(weight.dtype) for weight in model.parameters() if weight.requires_grad}
        if not self.waits:
            self.mark()

    def on_step_end(self, arguments, state, control, **rest):
        self.mark()

    def on_log(self, arguments, state, control, logs=None, **rest):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def trainer_settings(settings: dict) -> dict:
    """The arguments that have the same name and the same value in every such program."""
    return {
        "per_device_train_batch_size": settings["batch"],
        "gradient_accumulation_steps": settings["accumulation"],
        "learning_rate": settings["lr"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": settings["seed"],
        "bf16": settings["dtype"] == "bfloat16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def outcome(clock: Clock, baseline: int) -> dict:
    return {
        "losses": clock.losses,
        "ends": clock.ends,
        "peak_bytes": memory_peak(),
        "import_bytes": baseline,
        "trained_dtype": sorted(clock.types),
    }
