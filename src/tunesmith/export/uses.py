"""What the card of an export says of its form: how it is used, and the words by which model hubs know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Use:
    """How it was `made`, `how` it is used, the `library` that reads it, and whether its weights were `rounded`."""

    made: str
    how: str
    library: str = "transformers"
    relation: Literal["finetune", "adapter"] = "finetune"
    rounded: bool = False

    def filled(self, folder: str, file: str) -> Use:
        return replace(self, how=self.how.format(folder=folder, file=file))


LOADED = (
    "With {package} installed:\n\n```python\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("{{folder}}", dtype="auto")\n```\n\n'
    "or `vllm serve {{folder}}`; `tunesmith chat {{folder}}` needs no package and reads a plain copy. Embedding, head "
    "and vectors are not rounded. To train, begin with the model that it was made of, which is exact."
)
GRAPH = (
    "`{file}` takes `input_ids`, `attention_mask`, `position_ids` and the cache (`past_key_values.N.key` and `.value`, "
    "at first of no token), and gives `logits` and the longer cache (`present.N.key` and `.value`):\n\n"
    '```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{folder}/{file}")\n```'
)
USES: Mapping[str, Use] = {
    "huggingface": Use(
        "written as an ordinary model folder",
        "```\ntunesmith chat {folder}\n```\n\n"
        'or with transformers: `AutoModelForCausalLM.from_pretrained("{folder}")`.',
    ),
    "int8": Use("written as a model folder with matrices in int8", LOADED.format(package="torchao"), rounded=True),
    "int4": Use(
        "written as a model folder with matrices in int4", LOADED.format(package="compressed-tensors"), rounded=True
    ),
    "onnx": Use("written as ONNX", GRAPH, "onnx"),
    "adapter": Use(
        "written as an adapter for PEFT",
        '```\ntunesmith chat {folder}\n```\n\nor with PEFT: `PeftModel.from_pretrained(base, "{folder}")`.',
        "peft",
        "adapter",
    ),
    "gguf": Use("written as GGUF", "```\nllama-cli -m {folder}/{file}\n```", "gguf", rounded=True),
    "gguf-adapter": Use(
        "written as a LoRA adapter in GGUF",
        "```\nllama-cli -m BASE.gguf --lora {folder}/{file}\n```\n\nThe base has to be the model named below.",
        "gguf",
        "adapter",
    ),
    "ollama": Use(
        "written for Ollama",
        "```\ncd {folder}\nollama create {folder} -f Modelfile\nollama run {folder}\n```",
        "gguf",
        rounded=True,
    ),
}
