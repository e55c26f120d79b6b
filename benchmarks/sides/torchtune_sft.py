"""One measured run of a torchtune recipe (`tune run lora_finetune_single_device`, or full); started by sft.py.

The recipe is the one that torchtune ships; what it would save at its end is left out, as on the other sides.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import torch
import torchtune
from memory import memory_peak
from omegaconf import OmegaConf
from safetensors.torch import load_file

RECIPES = {
    "lora": ("lora_finetune_single_device", "LoRAFinetuneRecipeSingleDevice"),
    "full": ("full_finetune_single_device", "FullFinetuneRecipeSingleDevice"),
}
NAMES = {
    "base_model.model.model.": "",
    "self_attn.": "attn.",
    "o_proj.": "output_proj.",
    "gate_proj.": "w1.",
    "down_proj.": "w2.",
    "up_proj.": "w3.",
    "lora_A.": "lora_a.",
    "lora_B.": "lora_b.",
}


def recipe_class(tuning: str) -> type:
    name, kind = RECIPES[tuning]
    path = Path(torchtune.__file__).parents[1] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)[kind]


def shape(settings: dict) -> dict:
    """Llama 3.2's builder with the sizes of the model; a scale factor of 1 leaves its rotary frequencies alone."""
    config = json.loads(Path(settings["model"], "config.json").read_text())
    sizes = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": settings["max_length"],
        "norm_eps": config["rms_norm_eps"],
        "rope_base": int(config["rope_parameters"]["rope_theta"]),
        "scale_factor": 1,
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    if settings["tuning"] == "full":
        return {"_component_": "torchtune.models.llama3_2._component_builders.llama3_2", **sizes}
    return {
        "_component_": "torchtune.models.llama3_2._component_builders.lora_llama3_2",
        **sizes,
        "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "lora_rank": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": 0.0,
    }


def configuration(settings: dict, folder: str) -> dict:
    """The keys of a torchtune YAML file."""
    return {
        "output_dir": folder,
        "model": shape(settings),
        "tokenizer": {"_component_": "torchtune_parts.Padding", "pad_id": 0},
        "dataset": {"_component_": "torchtune_parts.rows", "settings": settings},
        "metric_logger": {"_component_": "torchtune_parts.Clock"},
        "lr_scheduler": {"_component_": "torchtune_parts.constant_rate"},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": settings["model"],
            "checkpoint_files": ["model.safetensors"],
            "output_dir": folder,
            "model_type": "LLAMA3_2",
        },
        "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.0, "lr": settings["lr"]},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "optimizer_in_bwd": False,
        "clip_grad_norm": 1.0,
        "batch_size": settings["batch"],
        "gradient_accumulation_steps": settings["accumulation"],
        "enable_activation_checkpointing": settings["checkpointing"],
        "compile": settings["compile"],
        "dtype": {"bfloat16": "bf16", "float32": "fp32"}[settings["dtype"]],
        "seed": settings["seed"],
        "device": "cpu",
        "shuffle": False,
        "epochs": 1,
        "max_steps_per_epoch": None,
        "resume_from_checkpoint": False,
    }


def load_adapter(model: torch.nn.Module, settings: dict) -> None:
    """The weights of PEFT's file. torchtune orders the rows of q and k otherwise, which zeros do not notice."""
    weights = load_file(f"{settings['adapter']}/adapter_model.safetensors")
    if any(weight.any() for name, weight in weights.items() if "lora_B" in name):
        raise SystemExit("the adapter is not an untrained one")
    named = {}
    for name, weight in weights.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        named[name] = weight
    unknown = model.load_state_dict(named, strict=False).unexpected_keys
    if unknown:
        raise SystemExit(f"the adapter does not fit: {unknown[:3]}")


def train(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    baseline = memory_peak()

    class Unsaved(recipe_class(settings["tuning"])):
        def save_checkpoint(self, epoch: int) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        config = OmegaConf.create(configuration(settings, folder))
        recipe = Unsaved(config)
        recipe.setup(config)
        if settings["tuning"] == "lora":
            load_adapter(recipe._model, settings)
        recipe.train()
    clock = recipe._metric_logger
    return {
        "losses": clock.losses,
        "ends": clock.ends,
        "peak_bytes": clock.peak_bytes,
        "import_bytes": baseline,
        "trained_dtype": sorted({str(weight.dtype) for weight in recipe._model.parameters() if weight.requires_grad}),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
