"""What TRL, Axolotl and LLaMA-Factory call a setting, and what it is here."""

from __future__ import annotations

from typing import Any, NamedTuple


class Alias(NamedTuple):
    """The Tunesmith key, or None where the idea differs; the note says how."""

    key: str | None
    note: str = ""


class Word(NamedTuple):
    """The settings that do what a word means elsewhere, and what they are."""

    set: dict[str, Any]
    note: str


def normal(word: str) -> str:
    return word.strip().lower().lstrip("-").replace("-", "_")


_LR = Alias("train.optimizer.lr")
_OPTIM = Alias("train.optimizer.name", "adamw, adamw8bit, sgd, lion, adafactor, muon, schedule_free, galore or apollo")
_RATIO = Alias("train.optimizer.lr_ratio_b", "how many times as fast as A the factor B learns")
_LENGTH = Alias("data.max_length")
_STEP = "batch size x accumulation x devices; how a step is split into microbatches never changes the result"
_BATCH = Alias("train.sequences_per_step", _STEP)
_EVAL_BATCH = Alias("train.microbatch_tokens", "batches are counted in tokens")
_EPOCHS = Alias("train.epochs")
_RANK = Alias("model.adapter.rank")
_TARGETS = Alias("model.adapter.targets", "a list of module names, or all")
_MODEL = Alias("model.path")
_DATA = Alias("data.train", "a path, or a list of {path, shape, columns, weight}")
_EVAL_DATA = Alias("data.eval", "a file of its own; no share of the training data is taken")
_PACKING = Alias(None, "packing is always on and never mixes examples: there is no setting to make, delete the key")
_PRECISION = Alias("model.dtype", "auto, float32 or bfloat16")
_QUANTIZED = Alias(None, "quantised base weights are not available yet; delete the key")
_WARMUP = Alias("train.schedule.warmup", "below 1 it is a share of all steps, from 1 on a number of steps")
_SAVE = Alias("train.checkpoint.every", "a number of steps")
_KEEP = Alias("train.checkpoint.keep", "at least 2")
_EVERY = Alias("train.evaluate_every", "a number of steps")
_MASK = "all_assistant, last_assistant, completion or all"
_SHAPE = Alias("data.train.N.shape", "auto, alpaca, sharegpt, messages, prompt_completion or text")
_COLUMN = Alias("data.train.N.columns", "our field name: the file's column name")
_TEMPLATE = Alias(None, "the model's own chat template is always used; delete the key")
_LAUNCH = Alias(None, "the number of processes decides: start with torchrun, delete the key")
_STAGE = Alias("objective", "the rule the loss follows, for example sft")
_CODE = Alias(None, "a model folder is data: remote code is never run, delete the key")
_LOGGING = Alias(None, "every step is written to metrics.jsonl; delete the key")
_WORKERS = Alias(None, "data is prepared once before training; there are no loader workers to set")
_NAME = Alias("run.name")
_BETA = Alias("objective.beta")
_LIKELIHOOD = Alias("objective.alpha", "with objective.name: rpo, or as a list: [dpo, {name: sft, coefficient: X}]")
_GAMMA = Alias("objective.gamma", "with objective.name: simpo; the margin itself, not its share of beta")
_SMOOTHING = Alias("objective.epsilon", "with objective.name: cdpo or robust_dpo, which are different formulas")
_REFERENCE = Alias("model.reference.path", "empty: the model as loaded")
_MOVING = Alias("model.reference.update_every", "a number of steps; 0: the reference stays")

_PLUS = Word(
    {"model.adapter.method": "lora", "train.optimizer.lr_ratio_b": 16.0},
    "LoRA+ is LoRA whose factor B learns faster than A: train.optimizer.lr_ratio_b says how many times",
)
_ON_QUANTIZED = Word(
    {"model.adapter.method": "lora", "model.quantization.name": "nf4"},
    "QLoRA is LoRA on a base in 4 bits: the method is lora, and model.quantization says how the base is held",
)
# Values of settings that guides name and that are something else here, as they are written without regard to dashes.
WORDS: dict[tuple[str, str], Word] = {
    ("model.adapter.method", "lora+"): _PLUS,
    ("model.adapter.method", "loraplus"): _PLUS,
    ("model.adapter.method", "lora_plus"): _PLUS,
    ("model.adapter.method", "qlora"): _ON_QUANTIZED,
}

ALIASES: dict[str, Alias] = {
    # optimiser and schedule
    "learning_rate": _LR,
    "lr": _LR,
    "peak_lr": _LR,
    "embedding_learning_rate": Alias("train.optimizer.lr_new_layers"),
    "optim": _OPTIM,
    "optimizer_name": _OPTIM,
    "loraplus_lr_ratio": _RATIO,
    "lora_plus_ratio": _RATIO,
    "optim_args": Alias("train.optimizer", "its settings stand beside its name, for example rank and every"),
    "galore_rank": Alias("train.optimizer.rank", "with train.optimizer.name: galore"),
    "momentum": Alias("train.optimizer.momentum", "with train.optimizer.name: sgd or muon"),
    "adam_beta1": Alias("train.optimizer.beta1"),
    "adam_beta2": Alias("train.optimizer.beta2"),
    "adam_epsilon": Alias("train.optimizer.eps"),
    "weight_decay": Alias("train.optimizer.weight_decay"),
    "optimizer_in_bwd": Alias("train.optimizer.in_backward", "needs train.clip_norm: 0"),
    "optimizer_in_backward": Alias("train.optimizer.in_backward", "needs train.clip_norm: 0"),
    "lr_scheduler": Alias("train.schedule.name"),
    "lr_scheduler_type": Alias("train.schedule.name"),
    "scheduler": Alias("train.schedule.name"),
    "lr_scheduler_kwargs": Alias("train.schedule", "its settings stand beside its name"),
    "cosine_min_lr_ratio": Alias("train.schedule.min_ratio"),
    "min_lr_ratio": Alias("train.schedule.min_ratio"),
    "warmup": _WARMUP,
    "warmup_ratio": _WARMUP,
    "warmup_steps": _WARMUP,
    "max_grad_norm": Alias("train.clip_norm"),
    "gradient_clipping": Alias("train.clip_norm"),
    "neftune_noise_alpha": Alias("train.neftune_alpha"),
    "noisy_embedding_alpha": Alias("train.neftune_alpha"),
    # amount of work
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "max_steps": Alias("train.steps"),
    "batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "global_batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "eval_batch_size": _EVAL_BATCH,
    "per_device_eval_batch_size": _EVAL_BATCH,
    "gradient_checkpointing": Alias("train.activation_checkpointing", "auto, off, selective, full or offloaded"),
    "gradient_checkpointing_kwargs": Alias("train.activation_checkpointing", "auto, off, selective, full or offloaded"),
    "activation_offloading": Alias("train.activation_checkpointing", "offloaded"),
    "bf16": _PRECISION,
    "fp16": Alias("model.dtype", "bfloat16 instead of fp16: same memory, no loss scaling"),
    "tf32": _PRECISION,
    "torch_dtype": _PRECISION,
    "pure_bf16": _PRECISION,
    "data_seed": Alias("train.seed"),
    "seed": Alias("train.seed"),
    # model and adapter
    "model_name_or_path": _MODEL,
    "model_name": _MODEL,
    "base_model": _MODEL,
    "base_model_config": _MODEL,
    "tokenizer_config": _MODEL,
    "tokenizer_name_or_path": _MODEL,
    "model_revision": Alias("model.revision"),
    "revision_of_model": Alias("model.revision"),
    "adapter": Alias("model.adapter"),
    "adapter_name_or_path": Alias("model.adapter_path"),
    "lora_model_dir": Alias("model.adapter_path"),
    "finetuning_type": Alias("model.adapter.method", "the name of a method, such as lora, dora, full or freeze"),
    "use_peft": Alias("model.adapter.method", "the name of a method, such as lora, dora, full or freeze"),
    "peft_config": Alias("model.adapter", "its settings: rank, alpha, dropout, targets"),
    "lora_r": _RANK,
    "lora_rank": _RANK,
    "r": _RANK,
    "lora_alpha": Alias("model.adapter.alpha"),
    "lora_dropout": Alias("model.adapter.dropout"),
    "lora_target": _TARGETS,
    "lora_target_modules": _TARGETS,
    "target_modules": _TARGETS,
    "lora_target_linear": _TARGETS,
    "lora_modules_to_save": Alias("model.adapter.modules_to_save"),
    "additional_target": Alias("model.adapter.modules_to_save"),
    "use_rslora": Alias("model.adapter.rslora"),
    "peft_use_rslora": Alias("model.adapter.rslora"),
    "use_dora": Alias("model.adapter.method", "dora"),
    "freeze_trainable_layers": Alias("model.adapter.last", "with model.adapter.method: freeze"),
    "freeze_extra_modules": Alias("model.adapter.names", "with model.adapter.method: freeze"),
    "unfrozen_parameters": Alias("model.adapter.names", "with model.adapter.method: freeze"),
    "load_in_4bit": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "quantization_bit": _QUANTIZED,
    "attn_implementation": Alias("model.attention", "auto, ragged or dense"),
    "flash_attn": Alias("model.attention", "auto, ragged or dense"),
    "flash_attention": Alias("model.attention", "auto, ragged or dense"),
    "sdp_attention": Alias("model.attention", "auto, ragged or dense"),
    "trust_remote_code": _CODE,
    # data
    "dataset": _DATA,
    "datasets": _DATA,
    "dataset_name": _DATA,
    "dataset_dir": _DATA,
    "dataset_path": _DATA,
    "train_file": _DATA,
    "train_data": _DATA,
    "train_dataset": _DATA,
    "eval_dataset": _EVAL_DATA,
    "test_datasets": _EVAL_DATA,
    "validation_file": _EVAL_DATA,
    "val_size": _EVAL_DATA,
    "val_set_size": _EVAL_DATA,
    "type": _SHAPE,
    "formatting": _SHAPE,
    "field_messages": _COLUMN,
    "dataset_text_field": _COLUMN,
    "chat_template": _TEMPLATE,
    "template": _TEMPLATE,
    "mix_strategy": Alias("data.train.N.weight", "how often each record appears per epoch"),
    "interleave_probs": Alias("data.train.N.weight", "how often each record appears per epoch"),
    "max_samples": Alias("data.limit"),
    "cutoff_len": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "max_length": _LENGTH,
    "sequence_len": _LENGTH,
    "sequence_length": _LENGTH,
    "model_max_length": _LENGTH,
    "block_size": _LENGTH,
    "truncation_mode": Alias("data.overlong", "drop, cut_turns, split or error"),
    "excess_length_strategy": Alias("data.overlong", "drop, cut_turns, split or error"),
    "packing": _PACKING,
    "neat_packing": _PACKING,
    "sample_packing": _PACKING,
    "eval_sample_packing": _PACKING,
    "pad_to_sequence_len": _PACKING,
    "padding_free": _PACKING,
    "group_by_length": _PACKING,
    "pad_token": Alias(None, "nothing is padded, so there is no padding token; delete the key"),
    "special_tokens": Alias(None, "the tokenizer's own special tokens are used; delete the key"),
    "mask_history": Alias("data.train_on", "last_assistant is what mask_history: true does"),
    "train_on_prompt": Alias("data.train_on", "all is what train_on_prompt: true does"),
    "train_on_input": Alias("data.train_on", "all is what train_on_inputs: true does"),
    "train_on_inputs": Alias("data.train_on", "all is what train_on_inputs: true does"),
    "roles_to_train": Alias("data.train_on", _MASK),
    "train_on_eos": Alias(None, "every trained turn ends with its trained stop token; delete the key"),
    "assistant_only_loss": Alias("data.train_on", "all_assistant is what assistant_only_loss: true does"),
    "completion_only_loss": Alias("data.train_on", "completion is what completion_only_loss: true does"),
    "shuffle_dataset": Alias("data.shuffle"),
    "streaming": Alias(None, "files of any size are streamed into a prepared copy; delete the key"),
    "dataset_num_proc": _WORKERS,
    "preprocessing_num_workers": _WORKERS,
    "dataloader_num_workers": _WORKERS,
    "overwrite_cache": _WORKERS,
    "dataset_prepared_path": Alias(None, "prepared data is kept under $TUNESMITH_HOME; delete the key"),
    # evaluation, checkpoints, run
    "do_train": Alias(None, "the command decides: tunesmith train or tunesmith eval; delete the key"),
    "do_eval": Alias("data.eval", "the evaluation loss is measured when held-out data is given"),
    "eval_steps": _EVERY,
    "evals_per_epoch": _EVERY,
    "eval_strategy": _EVERY,
    "evaluation_strategy": _EVERY,
    "eval_on_start": _EVERY,
    "early_stopping_patience": Alias("train.early_stopping.patience"),
    "early_stopping_steps": Alias("train.early_stopping.patience"),
    "early_stopping_threshold": Alias("train.early_stopping.min_delta"),
    "load_best_model_at_end": Alias(None, "the best checkpoint is always kept; delete the key"),
    "metric_for_best_model": Alias(None, "the evaluation loss decides which checkpoint is best; delete the key"),
    "max_new_tokens": Alias("evaluate.max_new_tokens"),
    "predict_with_generate": Alias("evaluate.data", "records whose answers are generated and scored"),
    "save_steps": _SAVE,
    "save_strategy": _SAVE,
    "saves_per_epoch": _SAVE,
    "save_total_limit": _KEEP,
    "save_safetensors": Alias(None, "safetensors is the only format written; delete the key"),
    "save_only_model": Alias(None, "a checkpoint always holds what a resume needs; delete the key"),
    "resume_from_checkpoint": Alias(None, "resume on the command line: tunesmith train RECIPE --resume auto"),
    "auto_resume_from_checkpoints": Alias(None, "resume on the command line: tunesmith train RECIPE --resume auto"),
    "overwrite_output_dir": Alias(None, "a run never overwrites another; give it a run.name of its own"),
    "output_dir": Alias("run.folder", "the folder of all runs; run.name names this one"),
    "run_name": _NAME,
    "wandb_name": _NAME,
    "wandb_run_id": _NAME,
    "wandb_project": Alias("run.report_to", "a list of wandb, trackio, mlflow, tensorboard, none"),
    "report_to": Alias("run.report_to"),
    "logging_steps": _LOGGING,
    "logging_strategy": _LOGGING,
    "logging_dir": _LOGGING,
    "plot_loss": Alias(None, "plots come from a finished run: tunesmith runs show RUN --plot; delete the key"),
    "max_memory": Alias(None, "memory is planned before the run: tunesmith plan RECIPE; delete the key"),
    "stage": _STAGE,
    "rl": _STAGE,
    "loss_type": _STAGE,
    # preferences and rewards
    "pref_loss": _STAGE,
    "pref_beta": _BETA,
    "rl_beta": _BETA,
    "orpo_alpha": _BETA,
    "kl_coef": _BETA,
    "pref_ftx": _LIKELIHOOD,
    "rpo_alpha": _LIKELIHOOD,
    "sft_weight": _LIKELIHOOD,
    "cpo_alpha": Alias("objective.alpha", "with objective.name: cpo"),
    "simpo_gamma": _GAMMA,
    "gamma_beta_ratio": _GAMMA,
    "dpo_label_smoothing": _SMOOTHING,
    "label_smoothing": _SMOOTHING,
    "dpo_label_smoothing_factor": _SMOOTHING,
    "ld_alpha": Alias("objective.alpha", "with objective.name: ld_dpo"),
    "pref_bco_weight": Alias("also", "a list of objectives, each with a coefficient"),
    "loss_weights": Alias("objective", "a list of objectives, each with a coefficient"),
    "f_divergence_type": Alias("objective.divergence", "with objective.name: f_dpo"),
    "discopop_tau": Alias("objective.tau", "with objective.name: discopop"),
    "use_weighting": Alias("objective.wpo", "with objective.name: dpo"),
    "kto_chosen_weight": Alias("objective.lambda_good", "with objective.name: kto"),
    "kto_rejected_weight": Alias("objective.lambda_bad", "with objective.name: kto"),
    "desirable_weight": Alias("objective.lambda_good", "with objective.name: kto"),
    "undesirable_weight": Alias("objective.lambda_bad", "with objective.name: kto"),
    "kto_desirable_weight": Alias("objective.lambda_good", "with objective.name: kto"),
    "kto_undesirable_weight": Alias("objective.lambda_bad", "with objective.name: kto"),
    "center_rewards_coefficient": Alias("objective.center", "with objective.name: reward"),
    "reward_model": Alias("objective", "reward learns a reward model"),
    "reference_free": Alias("objective", "simpo, orpo and cpo have no reference"),
    "ref_model": _REFERENCE,
    "ref_model_path": _REFERENCE,
    "reference_model": _REFERENCE,
    "ref_adapter_name": _REFERENCE,
    "sync_ref_model": _MOVING,
    "ref_model_sync_steps": _MOVING,
    "ref_model_mixup_alpha": Alias("model.reference.update_mix"),
    "precompute_ref_log_probs": Alias(None, "the reference is always computed once; delete the key"),
    "max_prompt_length": Alias("data.max_length", "prompt and answers together; nothing is cut from the left"),
    "max_completion_length": Alias("data.max_length", "prompt and answers together"),
    "disable_dropout": Alias(None, "preference losses never run with dropout; delete the key"),
    "deepspeed": _LAUNCH,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "ddp_timeout": _LAUNCH,
    "local_rank": _LAUNCH,
    "use_liger_kernel": Alias(None, "the scored-positions head is always on; delete the key"),
    "enable_liger_kernel": Alias(None, "the scored-positions head is always on; delete the key"),
    "include_tokens_per_second": _LOGGING,
    "plugins": Alias(None, "there are no plug-ins; delete the key"),
    "<<": Alias(None, "merge keys are not part of YAML 1.2; repeat the settings"),
}
