"""One measured run of TRL's DPOTrainer or KTOTrainer; started by preference.py in its own environment."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from memory import memory_peak
from peft import set_peft_model_state_dict
from rows import check, rows_in_order
from safetensors.torch import load_file
from trainer_clock import Clock
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl_sft import lora, write_adapter


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
        output_dir=folder,
        beta=settings["beta"],
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=settings["accumulation"],
        gradient_checkpointing=settings["checkpointing"],
        precompute_ref_log_probs=settings["precompute"],
        num_train_epochs=settings["epochs"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=settings["max_length"],
        train_sampling_strategy="sequential",
        seed=settings["seed"],
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
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
        weights = load_file(f"{settings['adapter']}/adapter_model.safetensors")
        loaded = set_peft_model_state_dict(trainer.model, weights)
        if loaded.unexpected_keys:
            raise SystemExit(f"the adapter does not fit: {loaded.unexpected_keys[:3]}")
        trainer.train()
        adapter_types = {str(weight.dtype) for weight in trainer.model.parameters() if weight.requires_grad}
    return {
        "losses": clock.losses,
        "ends": clock.ends,
        "peak_bytes": memory_peak(),
        "import_bytes": baseline,
        "adapter_dtype": sorted(adapter_types),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    done = write_adapter(given) if given["task"] == "adapter" else train(given)
    Path(given["out"]).write_text(json.dumps(done))
