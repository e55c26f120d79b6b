"""New tokens: where their rows stand and begin, that they alone move, and that folders mean the same to PEFT."""

import json

import numpy as np
import peft
import pytest
import torch
from tests.tiny import tiny_model_folder
from tests.unit.models.test_forest import KINDS, assert_equal_work
from tests.unit.models.test_forward import all_scored
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.packing import assemble
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import open_model
from tunesmith.models.adapter_config import DoraConfig, LoraConfig, RsloraConfig
from tunesmith.models.adapters import load_adapter, merge, save_adapter, trainable
from tunesmith.models.config import ModelConfig
from tunesmith.models.forward import base_model, score
from tunesmith.models.load import load_base, load_model
from tunesmith.models.reference import AdapterOff
from tunesmith.models.save import save_weights
from tunesmith.types import Message
from tunesmith.vocabulary import extend, find_added, read_new_tokens

NEW = ("<|call|>", "<note>", "zebra")
KINDS_OF_MODEL = {
    "tied, grown": ("llama", {}),
    "untied, grown": ("qwen2", {"tie_word_embeddings": False}),
    "tied, spare rows": ("qwen2", {"vocab_size": 512}),
    "untied, spare rows": ("llama", {"vocab_size": 512, "tie_word_embeddings": False}),
    "scaled and capped": ("gemma2", {"head_dim": 16}),
}
METHODS = {"lora": LoraConfig(rank=4), "rslora": RsloraConfig(rank=4), "dora": DoraConfig(rank=4)}


@pytest.fixture(params=KINDS_OF_MODEL)
def folder(request, tmp_path):
    architecture, settings = KINDS_OF_MODEL[request.param]
    return tiny_model_folder(tmp_path / "model", architecture, **settings)


def settings_of(folder, adapter=METHODS["lora"], **more):
    return ModelConfig.model_validate({"path": str(folder), "adapter": adapter, "new_tokens": NEW, **more})


@torch.no_grad()
def disturbed(folder, adapter=METHODS["lora"], **more):
    model = load_model(folder, settings_of(folder, adapter, **more))
    chance = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
    return model


def batch_of(folder):
    ids = find_added(folder, NEW).ids
    rows = [5, ids[0], 9, ids[1], ids[1], 30, 2], [7, 8, ids[2], 3]
    return assemble([all_scored(np.array(row)) for row in rows])


def logprobs(model, folder):
    return score(model, batch_of(folder)).logprobs


def rows_of(model):
    """All rows of embedding and head as they are computed with."""
    base = base_model(model)
    return [one.weight.detach().clone() for one in (base.get_input_embeddings(), base.get_output_embeddings())]


@pytest.mark.parametrize("begin", ["pieces", "mean"])
def test_rows_begin_as_a_mean_and_nothing_else_changes(folder, begin):
    stored = AutoModelForCausalLM.from_pretrained(folder)
    model, added = load_base(folder, settings_of(folder, new_tokens_begin=begin)), find_added(folder, NEW)
    plain = load_tokenizer(folder)
    ends = [(one.get_input_embeddings().weight, one.get_output_embeddings().weight) for one in (stored, model)]
    for before, after in zip(*ends, strict=True):
        assert len(after) == max(len(before), added.size) == model.config.vocab_size
        old = [id for id in range(len(before)) if id not in added.ids]
        assert torch.equal(after[old], before[old])
        for token, id in zip(NEW, added.ids, strict=True):
            spelt = plain.encode(token, specials=True) if begin == "pieces" else range(plain.vocab_size)
            torch.testing.assert_close(after[id], before[list(spelt)].mean(0))
    tied = stored.get_input_embeddings().weight is stored.get_output_embeddings().weight
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
def test_a_step_moves_the_new_rows_and_no_others(folder, adapter):
    model = load_model(folder, settings_of(folder, adapter))
    before, stored = rows_of(model), {name: one.clone() for name, one in model.named_parameters()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.5)
    logprobs(model.train(), folder).square().mean().backward()
    optimizer.step()
    ids = set(find_added(folder, NEW).ids)
    for old, new in zip(before, rows_of(model), strict=True):
        assert {int(row) for row in (old != new).any(1).nonzero()} == ids
    frozen = stored.keys() - trainable(model).keys()
    assert all(torch.equal(stored[name], model.get_parameter(name)) for name in frozen)


def test_the_gradient_is_that_of_a_matrix_with_these_rows(folder):
    model = disturbed(folder)
    logprobs(model, folder).square().mean().backward()
    found = [one.grad for name, one in trainable(model).items() if "trainable_tokens_delta" in name]
    whole = merge(model).requires_grad_(False)
    ends = [whole.get_input_embeddings().weight, whole.get_output_embeddings().weight]
    for end in ends:
        end.requires_grad_(True)
    logprobs(whole, folder).square().mean().backward()
    ids = list(find_added(folder, NEW).ids)
    wanted = {id(end): end.grad[ids] for end in ends}
    for ours, theirs in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
def test_folders_are_read_back_and_by_peft(folder, adapter, tmp_path):
    model = disturbed(folder, adapter)
    want = logprobs(model, folder)
    save_adapter(model, tmp_path / "adapter", str(folder))
    again = load_adapter(load_base(folder, settings_of(folder)), tmp_path / "adapter", adapter)
    torch.testing.assert_close(logprobs(again, folder), want, atol=1e-6, rtol=1e-6)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    if theirs.config.vocab_size < find_added(folder, NEW).size:
        theirs.resize_token_embeddings(find_added(folder, NEW).size)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
    torch.testing.assert_close(logprobs(theirs, folder), want, atol=2e-5, rtol=2e-5)


def test_switched_off_it_is_the_base_with_rows_as_they_began(folder):
    model = disturbed(folder)
    want = logprobs(load_base(folder, settings_of(folder)), folder)
    torch.testing.assert_close(AdapterOff(model).logprobs(batch_of(folder)), want, atol=0, rtol=0)
    assert (logprobs(model, folder) - want).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_answers_that_share_a_prompt_train_as_if_alone(tied, tmp_path):
    assert_equal_work(disturbed(tiny_model_folder(tmp_path, tie_word_embeddings=tied)), KINDS["pairs"])


def test_the_adapter_folder_and_what_is_merged_open_by_themselves(folder, tmp_path):
    model = disturbed(folder)
    want = logprobs(model, folder)
    save_weights(model, tmp_path, folder, new=settings_of(folder).added)
    opened = open_model(str(tmp_path / "adapter"))
    torch.testing.assert_close(logprobs(opened.model, folder), want, atol=1e-6, rtol=1e-6)
    merge_run(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = open_model(str(tmp_path / "merged"))
    torch.testing.assert_close(logprobs(merged.model, folder), want, atol=2e-5, rtol=2e-5)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logprobs(merged.model, folder), logprobs(theirs, folder), atol=2e-5, rtol=2e-5)
    assert theirs.config.vocab_size >= merged.tokenizer.vocab_size == find_added(folder, NEW).size
    text = "call <|call|> with <note>zebra"
    ours = opened.tokenizer.encode(text, specials=False)
    assert set(find_added(folder, NEW).ids) <= set(ours)
    assert ours == merged.tokenizer.encode(text, specials=False)
    for place in ("adapter", "merged"):
        assert AutoTokenizer.from_pretrained(tmp_path / place).encode(text, add_special_tokens=False) == ours


def test_new_tokens_are_tokens_in_what_people_write_and_control_tokens_are_not(tmp_path):
    folder = tiny_model_folder(tmp_path)
    tokenizer, added = load_tokenizer(folder, NEW), find_added(folder, NEW)
    ids = tokenizer.prompt_ids([Message("user", "a <|call|> and <|im_end|>")])
    assert added.ids[0] in ids
    assert ids.count(2) == 1  # the template's own
    assert added.ids[0] not in load_tokenizer(folder).prompt_ids([Message("user", "a <|call|>")])
    assert tokenizer.fingerprint() != load_tokenizer(folder).fingerprint()
    assert tokenizer.decode(ids, skip_special=True).count("<|call|>") == 1


def test_a_tokenizer_without_new_tokens_stays_to_the_byte(tmp_path):
    source = (tiny_model_folder(tmp_path) / "tokenizer.json").read_text()
    assert extend(source, ()) == source
    assert json.loads(extend(source, NEW))["model"] == json.loads(source)["model"]


def test_a_token_that_exists_is_refused_with_its_id(tmp_path):
    folder = tiny_model_folder(tmp_path)
    with pytest.raises(ModelError, match="its id is 1") as caught:
        load_tokenizer(folder, ("<|call|>", "<|im_start|>"))
    assert caught.value.diagnostic.code == "E335"
    assert caught.value.diagnostic.fixes[0].set == {"model.new_tokens": ["<|call|>"]}


def test_rows_that_the_base_lacks_are_told_and_broken_lists_too(tmp_path):
    folder = tiny_model_folder(tmp_path / "model")
    save_adapter(disturbed(folder), tmp_path / "adapter", str(folder))
    with pytest.raises(ModelError, match="E339"):
        load_adapter(load_base(folder, ModelConfig()), tmp_path / "adapter")
    (tmp_path / "new_tokens.json").write_text('{"tokens": "<|call|>"}')
    with pytest.raises(ModelError, match="E339"):
        read_new_tokens(tmp_path)


def test_a_second_round_of_new_tokens_stands_above_the_first(tmp_path):
    folder = tiny_model_folder(tmp_path / "model")
    save_weights(disturbed(folder), tmp_path, folder, new=settings_of(folder).added)
    merge_run(str(tmp_path / "adapter"), tmp_path / "merged")
    second = load_tokenizer(tmp_path / "merged", ("<more>",))
    assert second.new_tokens == (*NEW, "<more>")
    assert second.encode("<more>", specials=False) == [second.vocab_size - 1]
