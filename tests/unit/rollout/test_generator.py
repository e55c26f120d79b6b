import copy
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import ModelError, NumericalError
from tunesmith.models import attention, processor
from tunesmith.models.adapters import attach
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.choosing import choose, nucleus, row_draws
from tunesmith.rollout.generator import Request, Sampling, complete, detokenise, generate

PROMPTS = [[5, 9, 200], [17], list(range(20, 44)), [300, 301, 4, 8, 90, 3], [120] * 11]
SLIDING = {"gemma2": {"sliding_window": 8, "head_dim": 16}, "gemma3_text": {"sliding_window": 8, "head_dim": 16}}


def load(folder: Path, architecture: str = "llama", **settings):
    lively = {"tie_word_embeddings": False, "initializer_range": 0.2}  # answers that are not one token repeated
    tiny_model_folder(folder, architecture, **{**lively, **SLIDING.get(architecture, {}), **settings})
    model = load_base(folder, ModelConfig(path=str(folder)))
    return model, load_tokenizer(folder)


def reference(model, prompt: list[int], count: int, stops: list[int]) -> list[int]:
    """Transformers' own greedy answer to one prompt."""
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager" if model.config.model_type == "gemma2" else "sdpa")
    out = other.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=stops,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_greedy_equals_transformers_token_for_token(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = load(tmp_path, architecture)
    answers = generate(model, tokenizer, PROMPTS, Sampling(24), batch_size=3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.tokens) == reference(model, prompt, 24, list(tokenizer.eos_ids))
    assert max(len(set(answer.tokens)) for answer in answers) > 8


def test_a_batch_equals_single_prompts(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    for sampling in (Sampling(16), Sampling(16, temperature=0.8, top_p=0.9, seed=3)):
        together = generate(model, tokenizer, PROMPTS, sampling, batch_size=len(PROMPTS))
        apart = generate(model, tokenizer, PROMPTS, sampling, batch_size=1)
        assert together == apart
    assert generate(model, tokenizer, PROMPTS, Sampling(16, temperature=0.8, seed=4)) != together


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
def test_answers_to_one_prompt_share_it_and_equal_separate_ones(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = load(tmp_path, architecture)
    sampling = Sampling(16, temperature=0.9, top_p=0.95, seed=5)
    shared = [Request(index, (index, k)) for index in range(len(PROMPTS)) for k in range(3)]
    alone = [Request(place, request.name) for place, request in enumerate(shared)]
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    for batch_size in (1, 4, 15):
        together = dict(complete(model, tokenizer, PROMPTS, shared, sampling, batch_size))
        assert together == dict(complete(model, tokenizer, repeated, alone, sampling, 5))
    assert len({together[place].tokens for place in range(3)}) == 3


def test_a_prompt_is_computed_once_for_all_its_answers(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _module, given, _out: seen.append(given[0].numel()))
    requests = [Request(1, (0, k)) for k in range(6)] + [Request(2, (1, k)) for k in range(2)]
    list(complete(model, tokenizer, PROMPTS, requests, Sampling(3, temperature=1.0), 8))
    assert seen[0] == len(PROMPTS[1]) + len(PROMPTS[2])  # each once, end to end
    assert seen[1] <= 8


def test_draws_depend_on_seed_and_name_alone() -> None:
    sampling = Sampling(9, temperature=1.0, seed=2)
    first, again = row_draws((1, 0), 9, sampling), row_draws((1, 0), 5, sampling)
    assert torch.equal(first[:5], again)
    assert not torch.equal(row_draws((0, 1), 5, sampling), again)
    assert not torch.equal(row_draws((1, 0), 5, Sampling(9, temperature=1.0, seed=3)), again)


def test_every_stop_token_ends_an_answer_and_is_its_last_token(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    free = generate(model, tokenizer, PROMPTS, Sampling(12))
    stop = free[2].tokens[4]
    first = free[2].tokens.index(stop)
    model.generation_config.eos_token_id = [2, stop]
    answers = generate(model, tokenizer, PROMPTS, Sampling(12))
    for before, after in zip(free, answers, strict=True):
        cut = before.tokens.index(stop) + 1 if stop in before.tokens else 12
        assert after.tokens == before.tokens[:cut]
        assert after.finished == (stop in before.tokens)
    assert answers[2].text == tokenizer.decode(free[2].tokens[:first], skip_special=True)


def test_pad_equal_to_eos_in_a_prompt_is_seen_by_the_model(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    assert tokenizer.eos_ids == (2,)
    prompts = [[5, 2, 9, 2, 200], [2, 5, 2, 9, 2, 200, 7, 7, 8]]
    answers = generate(model, tokenizer, prompts, Sampling(10))
    assert [list(a.tokens) for a in answers] == [reference(model, prompt, 10, [2]) for prompt in prompts]
    assert answers[0].tokens != generate(model, tokenizer, [[5, 9, 200]], Sampling(10))[0].tokens


def test_mode_attention_and_weights_are_as_before(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    wrapped = attach(model, LoraConfig(rank=2))
    wrapped.train()
    wrapped.get_base_model().lm_head.eval()
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    with pytest.raises(ModelError, match="E150") as caught:
        generate(wrapped, tokenizer, [[5], []], Sampling(4))
    assert "prompt 2 is empty" in str(caught.value)
    assert "shorten" not in str(caught.value)
    generate(wrapped, tokenizer, PROMPTS, Sampling(4))
    assert model.config._attn_implementation == attention.RAGGED
    assert wrapped.training
    assert model.model.layers[0].mlp.training
    assert not model.lm_head.training
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())


def test_adapter_changes_the_answer(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    plain = generate(model, tokenizer, PROMPTS, Sampling(8))
    wrapped = attach(model, LoraConfig(rank=2))
    assert generate(wrapped, tokenizer, PROMPTS, Sampling(8)) == plain
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert generate(wrapped, tokenizer, PROMPTS, Sampling(8)) != plain


def test_half_precision_is_decoded_in_a_float_copy_without_fast_products(tmp_path: Path, monkeypatch) -> None:
    model, tokenizer = load(tmp_path)
    model.to(torch.bfloat16)
    monkeypatch.setitem(processor.HALF, torch.bfloat16, ())
    answers = generate(model, tokenizer, PROMPTS, Sampling(6))
    assert model.dtype == torch.bfloat16
    assert answers == generate(copy.deepcopy(model).float(), tokenizer, PROMPTS, Sampling(6))


def test_answers_end_where_the_context_ends(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path, max_position_embeddings=16)
    answers = generate(model, tokenizer, [[5] * 12, [5] * 3], Sampling(100))
    assert [len(answer.tokens) for answer in answers] == [4, 13]
    with pytest.raises(ModelError, match="1 to 15"):
        generate(model, tokenizer, [[5] * 16], Sampling(1))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(NumericalError, match="E151"):
        generate(model, tokenizer, PROMPTS, Sampling(4))


def test_progress_counts_finished_prompts(tmp_path: Path) -> None:
    model, tokenizer = load(tmp_path)
    heard: list[tuple[int, int]] = []
    generate(model, tokenizer, PROMPTS, Sampling(3), batch_size=2, on_progress=lambda *seen: heard.append(seen))
    assert heard == [(done, 5) for done in range(1, 6)]


def test_a_piece_never_holds_half_a_character(tmp_path: Path) -> None:
    tokenizer: Tokenizer = load(tmp_path)[1]
    text = "naïve 🙂 日本語 end"
    ids = tokenizer.encode(text, specials=False)
    assert len(ids) > len(text)  # characters are spread over several tokens
    pieces = list(detokenise(tokenizer, iter(ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(detokenise(tokenizer, iter(tokenizer.encode("🙂", specials=False)[:2]))) == "\ufffd"


def test_nucleus_keeps_the_fewest_tokens_that_hold_the_mass() -> None:
    kept = nucleus(torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]), 0.75)
    assert (kept > 0).tolist() == [[False, True, True, False], [True] * 4]
    wide = torch.full((1, 2000), 1 / 2000)
    wide[0, 7] += 1e-5
    assert (nucleus(wide / wide.sum(), 1e-9) > 0).sum() == 1  # flatter than the first look reaches


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.2, 0.5, 0.0, 0.3]).log().expand(4, 4)
    draws = torch.tensor([0.0, 0.69, 0.71, 1.0], dtype=torch.float64)
    sampling = Sampling(1, temperature=1.0)
    assert choose(logits, sampling, draws).tolist() == [0, 1, 3, 3]
    many = choose(logits[:1].expand(20_000, 4), sampling, torch.rand(20_000, dtype=torch.float64))
    shares = many.bincount(minlength=4) / 20_000
    assert torch.allclose(shares, torch.tensor([0.2, 0.5, 0.0, 0.3]), atol=0.02)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_answers_end_where_a_text_has_come(tmp_path: Path, architecture: str) -> None:
    model, tokenizer = load(tmp_path, architecture)
    whole = generate(model, tokenizer, PROMPTS, Sampling(24), batch_size=3)
    until = tokenizer.decode(whole[0].tokens[3:5])
    ended = generate(model, tokenizer, PROMPTS, Sampling(24, until=("never there", until)), batch_size=3)
    for long, short in zip(whole, ended, strict=True):
        assert long.tokens[: len(short.tokens)] == short.tokens
        assert (until in tokenizer.decode(short.tokens)) or short == long
    assert len(ended[0].tokens) <= 5
