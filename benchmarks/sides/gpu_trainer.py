"""Rows of the GPU benchmark trained by a program built on TRL's SFTTrainer."""

import tempfile
import time

import torch
from datasets import Dataset
from gpu_side import OutOfTime, documents, equal_adapters, first_scored, synchronize
from trainer_clock import Clock
from trl import SFTConfig, SFTTrainer


class DeviceClock(Clock):
    """A clock that stops when the device has finished the step, and ends the training when time is over."""

    def __init__(self, given: dict) -> None:
        super().__init__()
        self.given = given

    def mark(self) -> None:
        synchronize(self.given["device"])
        super().mark()

    def on_step_end(self, arguments, state, control, **rest):
        super().on_step_end(arguments, state, control, **rest)
        control.should_training_stop |= time.time() > self.given["deadline"]


def dataset(given: dict, row: dict) -> Dataset:
    hidden = [-100] * first_scored(given, row)
    rows = [document.tolist() for step in documents(given, row) for document in step]
    return Dataset.from_list([{"input_ids": row, "labels": hidden + row[len(hidden) :]} for row in rows])


def arguments(given: dict, row: dict, at_once: int, folder: str) -> SFTConfig:
    return SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=row["documents"] // at_once,
        gradient_checkpointing=row["checkpointing"],
        use_liger_kernel=row.get("liger", False),
        max_steps=given["warmup"] + given["steps"],
        learning_rate=given["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=row["length"],
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=given["seed"],
        bf16=given["dtype"] == "bfloat16",
        use_cpu=given["device"] == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def train(model, tokenizer, given: dict, row: dict, at_once: int) -> dict:
    count, clock = equal_adapters(model, given["seed"]), DeviceClock(given)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=arguments(given, row, at_once, folder),
            train_dataset=dataset(given, row),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        try:
            trainer.train()
        finally:  # the next row's trainer wraps the model anew
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            model.zero_grad(set_to_none=True)
    if len(clock.losses) < given["warmup"] + given["steps"]:
        raise OutOfTime
    types = {str(weight.dtype) for weight in model.parameters() if weight.requires_grad}
    ends = [wall for wall, _ in clock.ends]
    return {"ends": ends, "losses": clock.losses, "equal_adapters": count, "adapter_dtype": sorted(types)}


def on_device(given: dict) -> torch.device:
    return torch.device(given["device"])
