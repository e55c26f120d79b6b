"""One measured run of TRL's SFTTrainer; started by sft.py in TRL's own environment with a JSON file of settings."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from memory import memory_peak
from peft import LoraConfig, PeftModel, get_peft_model
from trainer_clock import Clock
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def examples(settings: dict) -> Dataset:
    """The examples in file order; `sort_within_step` sorts each step's own by length, which changes no step."""
    rows = [json.loads(line) for line in Path(settings["tokens"]).read_text().splitlines()]
    per_step = settings["batch"] * settings["accumulation"]
    chosen = []
    for step in range(settings["steps"]):
        group = rows[step * per_step : (step + 1) * per_step]
        chosen += sorted(group, key=lambda row: len(row["tokens"])) if settings["sort_within_step"] else group
    return Dataset.from_list([{"input_ids": row["tokens"], "labels": labels(row)} for row in chosen])


def labels(row: dict) -> list[int]:
    return [token if weight else -100 for token, weight in zip(row["tokens"], row["weights"], strict=True)]


def arguments(settings: dict, folder: str) -> SFTConfig:
    return SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=settings["accumulation"],
        gradient_checkpointing=settings["checkpointing"],
        max_steps=settings["steps"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=settings["max_length"],
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings["seed"],
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def load_model(settings: dict):
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"])
    return PeftModel.from_pretrained(model, settings["adapter"], is_trainable=True)


def lora(settings: dict) -> LoraConfig:
    return LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )


def write_adapter(settings: dict) -> dict:
    """The untrained adapter that every side starts from."""
    torch.manual_seed(settings["seed"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=settings["dtype"])
    get_peft_model(model, lora(settings)).save_pretrained(settings["adapter"])
    return {}


def train(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    baseline, clock = memory_peak(), Clock()
    model = load_model(settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=arguments(settings, folder),
            train_dataset=examples(settings),
            processing_class=AutoTokenizer.from_pretrained(settings["model"]),
            callbacks=[clock],
        )
        trainer.train()
    adapter_types = {str(weight.dtype) for weight in model.parameters() if weight.requires_grad}
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
