"""One measured run of TRL's DPOTrainer or KTOTrainer; started by preference.py in its own environment."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from memory import memory_peak
from peft_adapter import load_adapter, lora
from rows import check, rows_in_order
from trainer_clock import Clock, outcome, trainer_settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer


def dataset(rows: list[dict], method: str) -> Dataset:
    """Texts that carry their own control tokens, so that TRL renders no template and adds nothing."""
    if method == "kto":
        return Dataset.from_list(
            [
                {
                    "prompt": row["prompt_text"],
                    "completion": row["answer_texts"][0],
                    "label": bool(row["labels"][0]),
                }
                for row in rows
            ]
        )
    names = ("chosen", "rejected")
    return Dataset.from_list(
        [{"prompt": row["prompt_text"], **dict(zip(names, row["answer_texts"], strict=True))} for row in rows]
    )


def arguments(settings: dict, folder: str) -> DPOConfig | KTOConfig:
    config = KTOConfig if settings["method"] == "kto" else DPOConfig
    return config(
        **trainer_settings(settings),
        output_dir=folder,
        beta=settings["beta"],
        gradient_checkpointing=settings["checkpointing"],
        precompute_ref_log_probs=settings["precompute"],
        num_train_epochs=settings["epochs"],
        max_length=settings["max_length"],
        train_sampling_strategy="sequential",
    )


def check_tokens(found: Dataset, rows: list[dict]) -> None:
    if len(found) != len(rows):
        raise SystemExit(f"TRL dropped {len(rows) - len(found)} of {len(rows)} rows")
    names = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in found.column_names]
    for number, (theirs, row) in enumerate(zip(found, rows, strict=True)):
        check(row, number, theirs["prompt_ids"], [theirs[name] for name in names])


def train(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    baseline, clock = memory_peak(), Clock()
    rows = rows_in_order(settings)
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"])
    clock.start_at_first_forward(model.get_input_embeddings())
    with tempfile.TemporaryDirectory() as folder:
        trainer = (KTOTrainer if settings["method"] == "kto" else DPOTrainer)(
            model=model,
            args=arguments(settings, folder),
            train_dataset=dataset(rows, settings["method"]),
            processing_class=AutoTokenizer.from_pretrained(settings["model"]),
            peft_config=lora(settings),
            callbacks=[clock],
        )
        check_tokens(trainer.train_dataset, rows)
        load_adapter(trainer.model, settings)
        trainer.train()
    return outcome(clock, baseline)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
