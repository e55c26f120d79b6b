"""Tiny random models of every supported architecture, and the batches to try them with."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith.models import attention

VOCABULARY = 97
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
}


def build(architecture: str, implementation: str = attention.RAGGED, **sizes: int) -> PreTrainedModel:
    """Random weights with visible norms and biases, fp32, evaluation mode."""
    attention.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**COMMON, **ARCHITECTURES[architecture], **sizes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model
