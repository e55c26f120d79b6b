"""One training by TRL's SFTTrainer, for TRL itself and for what is built on it."""

import tempfile

from datasets import Dataset
from rows import labelled, rows_in_order
from torch import nn
from trainer_clock import Clock, trainer_settings
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer


def fit(settings: dict, model: nn.Module, tokenizer: PreTrainedTokenizerBase, clock: Clock, keys: dict) -> None:
    """Train the rows as they are tokenised, in their order; `keys` are further arguments."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **trainer_settings(settings),
                **keys,
                output_dir=folder,
                max_steps=settings["steps"],
                max_length=settings["max_length"],
                train_sampling_strategy="sequential",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([labelled(row) for row in rows_in_order(settings)]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
