"""What every run of LLaMA-Factory's `train` shares: model, data, settings, and a look at the tokens beforehand."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from llamafactory.train.tuner import run_exp
from memory import memory_peak
from trainer_clock import Clock, outcome, trainer_settings


class CheckedClock(Clock):
    """A clock that starts at the first forward pass and looks at the tokens before."""

    def __init__(self, rows: list[dict], look: Callable[[dict, dict, int], None]) -> None:
        super().__init__()
        self.rows = rows
        self.look = look

    def on_train_begin(self, arguments, state, control, model=None, train_dataloader=None, **rest):
        found = train_dataloader.dataset
        if len(found) != len(self.rows):
            raise SystemExit(f"LLaMA-Factory trains {len(found)} of {len(self.rows)} rows")
        for number, (theirs, row) in enumerate(zip(found, self.rows, strict=True)):
            self.look(theirs, row, number)
        self.start_at_first_forward(model.get_input_embeddings())
        super().on_train_begin(arguments, state, control, model=model)


def scored(tokens: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """The tokens before the loss begins, and those of the loss."""
    start = next(place for place, label in enumerate(labels) if label != -100)
    return tokens[:start], [label for label in labels[start:] if label != -100]


def write_data(records: list[dict], about: dict, folder: str) -> None:
    """The data set `bench`: texts that carry their own control tokens, for the template that adds nothing."""
    Path(folder, "bench.json").write_text(json.dumps(records), encoding="utf-8")
    described = {"bench": {"file_name": "bench.json", **about}}
    Path(folder, "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")


def model_folder(settings: dict, folder: str) -> str:
    """The model with the wanted type in its config, which alone decides in what type LLaMA-Factory loads it."""
    copy = Path(folder, "model")
    copy.mkdir()
    for file in Path(settings["model"]).iterdir():
        (copy / file.name).symlink_to(file.resolve())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps({**config, "dtype": settings["dtype"]}))
    return str(copy)


def arguments(settings: dict, folder: str) -> dict:
    """The keys of a LLaMA-Factory YAML file."""
    return {
        **trainer_settings(settings),
        "do_train": True,
        "model_name_or_path": model_folder(settings, folder),
        "dataset": "bench",
        "dataset_dir": folder,
        "template": "empty",
        "cutoff_len": settings["max_length"],
        "disable_shuffling": True,
        "overwrite_cache": True,
        "output_dir": f"{folder}/out",
        "disable_gradient_checkpointing": not settings["checkpointing"],
    }


def run(settings: dict, clock: CheckedClock, records: list[dict], about: dict, keys: dict) -> dict:
    """Train the records; `about` describes their columns, `keys` are those of the stage."""
    torch.set_num_threads(settings["threads"])
    baseline = memory_peak()
    with tempfile.TemporaryDirectory() as folder:
        write_data(records, about, folder)
        run_exp({**arguments(settings, folder), **keys}, [clock])
    return outcome(clock, baseline)
