"""The ways to tune a model, as one table that generic code reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
from torch import nn

from tunesmith.models import adapter_config as settings
from tunesmith.models import prompt_config
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.adapters.adalora import attach_adalora
from tunesmith.models.adapters.adaption import attach_adaption
from tunesmith.models.adapters.base import Files
from tunesmith.models.adapters.boft import attach_boft
from tunesmith.models.adapters.bottleneck import attach_bottleneck
from tunesmith.models.adapters.dora import attach_dora
from tunesmith.models.adapters.ia3 import attach_ia3
from tunesmith.models.adapters.loftq import attach_loftq
from tunesmith.models.adapters.lora_fa import attach_lora_fa, freeze_a
from tunesmith.models.adapters.low_rank import attach_lora
from tunesmith.models.adapters.named import train_all, train_named
from tunesmith.models.adapters.oft import attach_oft
from tunesmith.models.adapters.prompts import attach_p_tuning, attach_prefix, attach_prompt
from tunesmith.models.adapters.spectral import attach_olora, attach_pissa
from tunesmith.models.adapters.vera import attach_vera
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.orthogonal_config import BoftConfig, OftConfig


@dataclass(frozen=True, slots=True)
class Method:
    """One way: its settings, how it is attached, and the settings in its folders (None: the model is saved).

    `goes_on` readies an adapter that was read from a folder.
    """

    config: type[settings.AdapterConfig]
    attach: Callable[[Any, Any], nn.Module]
    files: type[Files | BottleneckConfig] | None = None
    goes_on: Callable[[Any], None] | None = None


METHODS: tuple[Method, ...] = (
    Method(settings.LoraConfig, attach_lora, peft.LoraConfig),
    Method(settings.RsloraConfig, attach_lora, peft.LoraConfig),
    Method(settings.DoraConfig, attach_dora, peft.LoraConfig),
    Method(settings.PissaConfig, attach_pissa, peft.LoraConfig),
    Method(settings.OloraConfig, attach_olora, peft.LoraConfig),
    Method(settings.LoraFaConfig, attach_lora_fa, peft.LoraConfig, freeze_a),
    Method(AdaloraConfig, attach_adalora, peft.AdaLoraConfig),
    Method(LoftqConfig, attach_loftq, peft.LoraConfig),
    Method(settings.Ia3Config, attach_ia3, peft.IA3Config),
    Method(settings.VeraConfig, attach_vera, peft.VeraConfig),
    Method(OftConfig, attach_oft, peft.OFTConfig),
    Method(BoftConfig, attach_boft, peft.BOFTConfig),
    Method(BottleneckConfig, attach_bottleneck, BottleneckConfig),
    Method(prompt_config.PromptConfig, attach_prompt, peft.PromptTuningConfig),
    Method(prompt_config.PTuningConfig, attach_p_tuning, peft.PromptEncoderConfig),
    Method(prompt_config.PrefixConfig, attach_prefix, peft.PrefixTuningConfig),
    Method(prompt_config.LlamaAdapterConfig, attach_adaption, peft.AdaptionPromptConfig),
    Method(settings.FullConfig, train_all),
    Method(LisaConfig, train_all),
    Method(settings.FreezeConfig, train_named),
    Method(settings.BitfitConfig, train_named),
    Method(settings.NormsConfig, train_named),
)


def method_of(adapter: settings.AdapterConfig) -> Method:
    return next(method for method in METHODS if method.config is type(adapter))
