"""Decoding behind a learned prompt: the same tokens as PEFT's own forward pass gives, one at a time without a cache."""

from pathlib import Path

import peft
import pytest
import torch
from tests.unit.rollout.test_generator import PROMPTS, load

from tunesmith.errors import ModelError
from tunesmith.models.adapters import attach, trainable
from tunesmith.models.prompt_config import LlamaAdapterConfig, PrefixConfig, PromptConfig, PTuningConfig
from tunesmith.rollout.generator import Request, Sampling, complete, context_length, generate

CONFIGS = {
    "prompt": PromptConfig(tokens=6),
    "p_tuning": PTuningConfig(tokens=3, width=8),
    "prefix": PrefixConfig(tokens=5),
    "projected": PrefixConfig(tokens=4, projection=True, width=8),
    "llama_adapter": LlamaAdapterConfig(tokens=4, last=1),
}
SOME = {"llama_adapter": ["llama", "mistral"]}
PLACES = [(name, one) for name in CONFIGS for one in SOME.get(name, ["llama", "gemma2", "gemma3_text"])]


@torch.no_grad()
def prompted(folder: Path, name: str, architecture: str = "llama", **settings):
    base, tokenizer = load(folder, architecture, **settings)
    model = attach(base, CONFIGS[name])
    chance = torch.Generator().manual_seed(4)
    for parameter in trainable(model).values():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=chance))
    return model.eval(), tokenizer


@torch.no_grad()
def one_by_one(model: peft.PeftModel, prompt: list[int], count: int, stops: tuple[int, ...]) -> list[int]:
    base = model.get_base_model()
    kind = base.config._attn_implementation
    base.set_attn_implementation("eager")
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (ids[-1] not in stops or len(ids) == len(prompt)):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    base.set_attn_implementation(kind)
    return ids[len(prompt) :]


@pytest.mark.parametrize(("name", "architecture"), PLACES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_greedy_equals_pefts_own_forward_pass(tmp_path: Path, name: str, architecture: str) -> None:
    model, tokenizer = prompted(tmp_path, name, architecture)
    answers = generate(model, tokenizer, PROMPTS, Sampling(10), batch_size=3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.tokens) == one_by_one(model, prompt, 10, tokenizer.eos_ids)
    with model.disable_adapter():
        assert generate(model, tokenizer, PROMPTS, Sampling(10)) != answers


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_that_share_a_prompt_equal_separate_ones(tmp_path: Path, name: str) -> None:
    model, tokenizer = prompted(tmp_path, name)
    sampling = Sampling(8, temperature=0.9, seed=5)
    shared = [Request(index, (index, k)) for index in range(len(PROMPTS)) for k in range(2)]
    alone = [Request(place, request.name) for place, request in enumerate(shared)]
    together = dict(complete(model, tokenizer, PROMPTS, shared, sampling, 10))
    repeated = [prompt for prompt in PROMPTS for _ in range(2)]
    assert together == dict(complete(model, tokenizer, repeated, alone, sampling, 3))


@pytest.mark.parametrize(("name", "taken"), [("prompt", 6), ("prefix", 5), ("llama_adapter", 0)])
def test_learned_tokens_take_places_of_the_context(tmp_path: Path, name: str, taken: int) -> None:
    model, tokenizer = prompted(tmp_path, name, max_position_embeddings=32)
    assert context_length(model) == 32 - taken
    prompt = list(range(40, 70 - taken))
    (answer,) = generate(model, tokenizer, [prompt], Sampling(50))
    assert len(answer.tokens) <= 2
    with pytest.raises(ModelError, match="E150"):
        generate(model, tokenizer, [[*prompt, 5, 6]], Sampling(1))
