"""Prompt tuning, p-tuning and prefix tuning (arXiv:2104.08691, 2103.10385, 2101.00190), by PEFT's modules and files.

PEFT keeps what a network made of a prompt and forgets the network. Here it stands in a second file, so that training
can go on; a folder without it goes on from what the network made.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import peft
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapters.base import ADAPTER_TENSORS, check_fits, wrap
from tunesmith.models.heads import has_head
from tunesmith.models.inventory import NETWORK_FILE as NETWORK
from tunesmith.models.prompt_config import PrefixConfig, PromptConfig, PTuningConfig, VirtualConfig
from tunesmith.models.prompts import embedding_of, encoder_of, is_direct, learned_numbers
from tunesmith.models.tensors import read_tensors

PromptFiles = peft.PromptTuningConfig | peft.PromptEncoderConfig | peft.PrefixTuningConfig
STORED = "prompt_embeddings"
FREQUENT = 5000  # tokens that a prompt is drawn from: those that a tokenizer learned first


def attach_prompt(model: PreTrainedModel, settings: PromptConfig) -> PeftModel:
    wrapped = put(model, peft.PromptTuningConfig(**virtual(settings), prompt_tuning_init="RANDOM"))
    table = model.get_input_embeddings()
    with torch.no_grad():
        if settings.init == "random":
            rows = like_rows(embedding_of(wrapped), table.get_parameter("weight"))
        else:
            rows = table(first_tokens(model, settings).to(model.device))
        embedding_of(wrapped).copy_(rows)
    return wrapped


def attach_p_tuning(model: PreTrainedModel, settings: PTuningConfig) -> PeftModel:
    width = settings.width or model.get_input_embeddings().get_parameter("weight").shape[1]
    kind, depth = settings.encoder.upper(), settings.depth if settings.encoder == "lstm" else 2
    network = {"encoder_reparameterization_type": kind, "encoder_hidden_size": width, "encoder_num_layers": depth}
    return put(model, peft.PromptEncoderConfig(**virtual(settings), **network))


def attach_prefix(model: PreTrainedModel, settings: PrefixConfig) -> PeftModel:
    width = settings.width or model.get_input_embeddings().get_parameter("weight").shape[1]
    network = {"prefix_projection": settings.projection, "encoder_hidden_size": width if settings.projection else None}
    wrapped = put(model, peft.PrefixTuningConfig(**virtual(settings), **network))
    if not settings.projection:
        numbers = embedding_of(wrapped)
        with torch.no_grad():
            real = keys_and_values(model, first_tokens(model, settings))
            numbers.copy_(like_rows(numbers, real) if settings.init == "random" else real)
    return wrapped


def virtual(settings: VirtualConfig) -> dict:
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": settings.tokens}


def put(model: PreTrainedModel, config: PromptFiles) -> PeftModel:
    """PEFT's model with a prompt of its own; ModelError E331 for a model that gives values."""
    if has_head(model):
        raise ModelError(
            "E331",
            "a learned prompt stands before texts that a language model continues; this model gives values",
            where=Where(field="model.adapter.method"),
            fixes=[Fix("model.adapter.method=lora", {"model.adapter.method": "lora"})],
        )
    return wrap(model, config)


def first_tokens(model: PreTrainedModel, settings: PromptConfig | PrefixConfig) -> Int[Tensor, " N"]:
    """The tokens that a prompt begins as."""
    if settings.init != "text":
        vocabulary = len(model.get_input_embeddings().get_parameter("weight"))
        return torch.randint(min(FREQUENT, vocabulary), (settings.tokens,))
    path = Path(str(model.name_or_path)) / "tokenizer.json"
    assert settings.init_text is not None, "a recipe that begins as a text without one is refused"
    found = Tokenizer.from_file(str(path)).encode(settings.init_text, add_special_tokens=False).ids
    if not found:
        raise ModelError(
            "E332",
            "model.adapter.init_text has no token",
            where=Where(field="model.adapter.init_text"),
            fixes=[Fix("model.adapter.init=vocabulary", {"model.adapter.init": "vocabulary"})],
        )
    return torch.tensor((found * settings.tokens)[: settings.tokens])


def like_rows(numbers: Tensor, rows: Float[Tensor, "V W"]) -> Tensor:
    """Random numbers, each column with mean and spread as in the rows."""
    spread, mean = torch.std_mean(rows.float(), 0)
    return torch.randn(numbers.shape).to(rows.device) * spread + mean


def keys_and_values(model: PreTrainedModel, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N W"]:
    """Those that the model gives these tokens, in the order in which PEFT stores a prefix."""
    kind, training = model.config._attn_implementation, model.training
    assert kind is not None
    model.set_attn_implementation("eager")
    model.eval()
    try:
        cache = DynamicCache()
        model(input_ids=tokens.to(model.device)[None], past_key_values=cache, use_cache=True)
    finally:
        model.set_attn_implementation(kind)
        model.train(training)
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    assert len(layers) == len(cache.layers)
    pairs = [(layer.keys, layer.values) for layer in layers]
    found = torch.stack([torch.cat([states for states in pair if states is not None]) for pair in pairs])
    return found.permute(3, 0, 1, 2, 4).flatten(1).float()


def save_prompt(model: PeftModel, folder: Path) -> None:
    """PEFT's two files, and the network where there is one."""
    (name,) = model.peft_config
    config = deepcopy(model.peft_config[name])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    with torch.no_grad():
        numbers = learned_numbers(model).cpu().contiguous()
    save_file({STORED: numbers}, folder / ADAPTER_TENSORS, metadata={"format": "pt"})
    if not is_direct(encoder_of(model)):
        tensors = {name: tensor.cpu().contiguous() for name, tensor in encoder_of(model).state_dict().items()}
        save_file(tensors, folder / NETWORK, metadata={"format": "pt"})


def load_prompt(model: PreTrainedModel, folder: Path, config: PromptFiles) -> PeftModel:
    """With its network where the folder holds one, else the prompt itself, trainable; sizes are the model's."""
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    config = replace(config, num_layers=None, token_dim=None, num_attention_heads=None)  # pyright: ignore[reportArgumentType]
    config.inference_mode = not (folder / NETWORK).exists()  # PEFT then builds no network and draws no first tokens
    wrapped = put(model, config)
    config.base_model_name_or_path = base
    encoder, shape = encoder_of(wrapped), tuple(learned_shape(wrapped))
    tensors = read_tensors(folder / ADAPTER_TENSORS)
    check_fits(tensors, {STORED: torch.empty(shape, device="meta")}, folder / ADAPTER_TENSORS, base)
    network = {"embedding.weight": tensors[STORED]}
    if not config.inference_mode:
        network = read_tensors(folder / NETWORK)
        check_fits(network, encoder.state_dict(), folder / NETWORK, base)
    encoder.load_state_dict(network)
    encoder.requires_grad_(True)
    return wrapped


def learned_shape(model: nn.Module) -> torch.Size:
    with torch.no_grad():
        return learned_numbers(model).shape
