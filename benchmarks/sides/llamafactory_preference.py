"""One measured run of LLaMA-Factory's `train` (DPO, ORPO); started by preference.py in its own environment."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from llamafactory.train.tuner import run_exp
from memory import memory_peak
from rows import check, rows_in_order
from trainer_clock import Clock


class CheckedClock(Clock):
    """A clock that starts at the first forward pass and looks at the tokens before."""

    def __init__(self, rows: list[dict]) -> None:
        super().__init__()
        self.rows = rows
        self.adapter_types: set[str] = set()

    def on_train_begin(self, arguments, state, control, model=None, train_dataloader=None, **rest):
        found = train_dataloader.dataset
        if len(found) != len(self.rows):
            raise SystemExit(f"LLaMA-Factory trains {len(found)} of {len(self.rows)} rows")
        for number, (theirs, row) in enumerate(zip(found, self.rows, strict=True)):
            answers = [masked(theirs, name) for name in ("chosen", "rejected")]
            check(row, number, answers[0][0], [answer for _, answer in answers])
        self.adapter_types = {str(weight.dtype) for weight in model.parameters() if weight.requires_grad}
        self.start_at_first_forward(model.get_input_embeddings())


def masked(row: dict, name: str) -> tuple[list[int], list[int]]:
    """The tokens before the loss begins, and those of the loss."""
    tokens, labels = row[f"{name}_input_ids"], row[f"{name}_labels"]
    start = next(place for place, label in enumerate(labels) if label != -100)
    return tokens[:start], [label for label in labels[start:] if label != -100]


def write_data(rows: list[dict], folder: str) -> None:
    """Texts that carry their own control tokens, for the template that adds nothing."""
    records = [
        {"instruction": row["prompt_text"], "chosen": row["answer_texts"][0], "rejected": row["answer_texts"][1]}
        for row in rows
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    about = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    Path(folder, "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    Path(folder, "dataset_info.json").write_text(json.dumps(about), encoding="utf-8")


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
        "stage": "dpo",
        "do_train": True,
        "model_name_or_path": model_folder(settings, folder),
        "adapter_name_or_path": settings["adapter"],
        "finetuning_type": "lora",
        "pref_loss": "orpo" if settings["method"] == "orpo" else "sigmoid",
        "pref_beta": settings["beta"],
        "dataset": "pairs",
        "dataset_dir": folder,
        "template": "empty",
        "cutoff_len": settings["max_length"],
        "disable_shuffling": True,
        "overwrite_cache": True,
        "output_dir": f"{folder}/out",
        "per_device_train_batch_size": settings["batch"],
        "gradient_accumulation_steps": settings["accumulation"],
        "disable_gradient_checkpointing": not settings["checkpointing"],
        "num_train_epochs": settings["epochs"],
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


def train(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    baseline = memory_peak()
    rows = rows_in_order(settings)
    clock = CheckedClock(rows)
    with tempfile.TemporaryDirectory() as folder:
        write_data(rows, folder)
        run_exp(arguments(settings, folder), [clock])
    return {
        "losses": clock.losses,
        "ends": clock.ends,
        "peak_bytes": memory_peak(),
        "import_bytes": baseline,
        "adapter_dtype": sorted(clock.adapter_types),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
