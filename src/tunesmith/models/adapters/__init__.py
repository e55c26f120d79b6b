"""Ways to tune a model: attach, save, load and merge, in PEFT's file format; one method per file."""

from tunesmith.models.adapters.attaching import attach, trainable
from tunesmith.models.adapters.base import LAYER, check_targets, wrap
from tunesmith.models.adapters.files import (
    Adapted,
    base_named_in,
    load_adapter,
    read_adapter_config,
    read_adapter_tensors,
    save_adapter,
)
from tunesmith.models.adapters.merging import merge
from tunesmith.models.adapters.registry import METHODS, Method, method_of

__all__ = [
    "LAYER",
    "METHODS",
    "Adapted",
    "Method",
    "attach",
    "base_named_in",
    "check_targets",
    "load_adapter",
    "merge",
    "method_of",
    "read_adapter_config",
    "read_adapter_tensors",
    "save_adapter",
    "trainable",
    "wrap",
]
