"""Components for torchtune's configuration: rows, a padding token, a clock, a constant rate."""

import time

from memory import memory_peak
from rows import labelled, rows_in_order
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Padding:
    """Stands where a recipe wants its tokenizer, and is asked for the padding token only."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id


def rows(tokenizer: Padding, settings: dict) -> list[dict]:
    examples = [labelled(row) for row in rows_in_order(dict(settings))]
    return [{"tokens": row["input_ids"], "labels": row["labels"]} for row in examples]


class Clock:
    """A metric logger that notes the loss, wall and processor time, and peak memory, at the end of every step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.peak_bytes = 0

    def log(self, name: str, data: float, step: int) -> None:
        pass

    def log_config(self, config: dict) -> None:
        pass

    def log_dict(self, payload: dict, step: int) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))
        self.losses.append(float(payload["loss"]))
        self.peak_bytes = memory_peak()

    def close(self) -> None:
        pass


def constant_rate(optimizer: Optimizer, num_training_steps: int, last_epoch: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1.0, last_epoch=last_epoch)
