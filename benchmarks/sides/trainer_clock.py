"""A clock for programs built on transformers' Trainer."""

import time

import torch
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Wall and processor time at the end of every step, and its loss; `ends[0]` is the start."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.waits = False  # for the first forward pass, which is the start

    def mark(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def start_at_first_forward(self, model: torch.nn.Module) -> None:
        """Mark the start when the model is first run, even where that is before the training begins."""

        def first(module, inputs):
            handle.remove()
            self.mark()

        self.waits = True
        handle = model.register_forward_pre_hook(first)

    def on_train_begin(self, arguments, state, control, **rest):
        if not self.waits:
            self.mark()

    def on_step_end(self, arguments, state, control, **rest):
        self.mark()

    def on_log(self, arguments, state, control, logs=None, **rest):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
