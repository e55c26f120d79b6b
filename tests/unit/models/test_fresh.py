"""New models: their first weights by the numbers, the same twice, and what transformers makes of them."""

import json
import math
from itertools import pairwise

import pytest
import torch
from tests.tiny import tiny_tokenizer
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.packing import batch_of
from tunesmith.errors import MachineError, ModelError
from tunesmith.models import fresh as fresh_module
from tunesmith.models.blueprint import blueprint, described
from tunesmith.models.config import ModelConfig
from tunesmith.models.content import content_hash
from tunesmith.models.fresh import locate_start, write_fresh
from tunesmith.models.fresh_config import ARCHITECTURES, FreshConfig
from tunesmith.models.headers import read_headers
from tunesmith.models.inventory import take_inventory
from tunesmith.models.layer.module import FastLayer
from tunesmith.models.load import load_model
from tunesmith.models.padding import read_tokenizer
from tunesmith.models.verify import verify_scores
from tunesmith.types import Example

WORDS = [each.word for each in ARCHITECTURES]
SCALING = [each.word for each in ARCHITECTURES if each.scales]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture
def tokenizer(tmp_path):
    return tiny_tokenizer(tmp_path / "tokenizer")


def fresh_of(tokenizer, **settings):
    sizes = {"layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "max_positions": 256}
    return FreshConfig.model_validate({**sizes, "tokenizer": str(tokenizer), **settings})


def plain_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def random_ids(count=64, rows=4, seed=0):
    return torch.randint(3, 400, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("word", WORDS)
def test_what_is_planned_is_what_is_written(tokenizer, word, tied):
    fresh = fresh_of(tokenizer, architecture=word, tied_embeddings=tied, embedding="plain", head_dim=24)
    planned = blueprint(fresh)
    assert not list(planned.glob("*.safetensors"))
    before = take_inventory(planned, tensors=described(planned))
    folder = write_fresh(fresh, 0)
    after = take_inventory(folder)
    assert before.tensors == after.tensors
    assert before.total == after.total == sum(each.numel() for each in plain_model(folder).parameters())
    sizes = (after.layers, after.hidden, after.heads, after.kv_heads, after.head_dim, after.intermediate)
    assert sizes == (3, 64, 4, 2, 24, 192)
    assert after.vocabulary == 400
    assert after.max_positions == 256
    assert after.stripped == ()
    assert any("lm_head" in name for name in read_headers(folder)) != tied
    assert (folder / "config.json").read_bytes() == (planned / "config.json").read_bytes()


@pytest.mark.parametrize("word", WORDS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tokenizer, word, tmp_path, monkeypatch):
    fresh = fresh_of(tokenizer, architecture=word)
    first = write_fresh(fresh, 7)
    kept = content_hash(first)
    other = write_fresh(fresh, 8)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "elsewhere"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 + threads % 2)
    try:
        again = write_fresh(fresh, 7)
    finally:
        torch.set_num_threads(threads)
    assert again != first
    assert content_hash(again) == kept
    ours, theirs = plain_model(first).state_dict(), plain_model(other).state_dict()
    drawn = [name for name, value in ours.items() if value.ndim == 2]
    assert not any(torch.equal(ours[name], theirs[name]) for name in drawn)


def test_a_folder_is_written_once_and_again_when_it_is_damaged(tokenizer):
    fresh = fresh_of(tokenizer)
    folder = write_fresh(fresh, 1)
    weights = folder / "model.safetensors"
    written, content = weights.stat().st_mtime_ns, weights.read_bytes()
    assert write_fresh(fresh, 1) == folder
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(content[:-8])
    assert write_fresh(fresh, 1) == folder
    assert weights.read_bytes() == content
    assert write_fresh(fresh_of(tokenizer, residual="plain"), 1) != folder


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("residual", ["scaled", "plain"])
def test_deviations_are_those_that_are_said(tokenizer, word, residual):
    fresh = fresh_of(tokenizer, architecture=word, hidden=256, residual=residual, std=0.03)
    added = 1 / math.sqrt(6) if residual == "scaled" else 1.0
    behind = bool(fresh.kind.behind)
    state = plain_model(write_fresh(fresh, 3)).state_dict()
    seen = set()
    for name, value in state.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        seen.add(module)
        if value.ndim == 1:
            gain = value + 1 if fresh.kind.centred else value
            wanted = added if module in fresh.kind.behind else 1.0
            assert gain.tolist() == pytest.approx([wanted] * len(gain), abs=1e-6), name
            continue
        wanted = 0.03 * (added if module in ("o_proj", "down_proj") and not behind else 1.0)
        if module == "embed_tokens":
            wanted = 1 / 16 if fresh.kind.scales else 1.0
        count = value.numel()
        assert value.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * count)), name  # five deviations of it
        assert abs(value.mean().item()) < 5 * wanted / math.sqrt(count), name
        fourth = ((value / wanted) ** 4).mean().item()
        assert fourth == pytest.approx(3, abs=5 * math.sqrt(96 / count)), name  # as a normal has it, uncut
    assert {"embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} < seen
    assert "lm_head" in seen
    assert ("q_norm" in seen) == fresh.kind.qk_norm


def test_a_deviation_that_is_not_said_follows_the_width(tokenizer):
    wide = fresh_of(tokenizer, hidden=640, layers=1, heads=10)
    assert wide.deviation == pytest.approx(0.025)
    state = plain_model(write_fresh(wide, 0)).state_dict()
    assert state["model.layers.0.mlp.up_proj.weight"].std().item() == pytest.approx(0.025, rel=0.01)


def stream_variances(model, ids):
    """Mean square of the states that enter each layer, and of those that leave the last one."""
    found = []

    def entering(module, given):
        found.append(given[0].pow(2).mean().item())

    def leaving(module, given, out):
        found.append((out[0] if isinstance(out, tuple) else out).pow(2).mean().item())

    layers = model.model.layers
    hooks = [layer.register_forward_pre_hook(entering) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leaving))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("word", WORDS)
def test_the_residual_stream_begins_with_a_variance_of_1_and_stays_near_it(tokenizer, word):
    fresh = fresh_of(tokenizer, architecture=word, layers=8, hidden=256)
    found = stream_variances(plain_model(write_fresh(fresh, 0)), random_ids())
    assert len(found) == 9
    assert found[0] == pytest.approx(1, abs=0.03)
    if fresh.kind.behind:  # what is normed and then added has a variance of 1 / (2 layers), twice per layer
        wanted = [1 + layer / 8 for layer in range(9)]
        assert found == pytest.approx(wanted, rel=0.1)
    else:
        assert all(later > before for before, later in pairwise(found))
        assert found[-1] < 1.25
    plain = fresh_of(tokenizer, architecture=word, layers=8, hidden=256, residual="plain", std=0.04)
    scaled = fresh_of(tokenizer, architecture=word, layers=8, hidden=256, std=0.04)
    grown, held = (stream_variances(plain_model(write_fresh(each, 0)), random_ids())[-1] for each in (plain, scaled))
    assert grown - 1 > 8 * (held - 1)


@pytest.mark.parametrize("word", WORDS)
def test_plain_embeddings_begin_as_small_as_the_rest(tokenizer, word):
    fresh = fresh_of(tokenizer, architecture=word, embedding="plain", std=0.02, hidden=256)
    first = stream_variances(plain_model(write_fresh(fresh, 0)), random_ids())[0]
    assert first == pytest.approx(0.02**2, rel=0.05)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("word", WORDS)
def test_the_first_loss_is_that_of_a_guess(tokenizer, word, tied):
    """ln V, and what logits add that are normal: half of their variance."""
    begin = "plain" if tied else "unit"
    fresh = fresh_of(tokenizer, architecture=word, tied_embeddings=tied, embedding=begin, hidden=256)
    model, ids = plain_model(write_fresh(fresh, 0)), random_ids(128, 16)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    loss = cross_entropy(logits, ids[:, 1:].flatten()).item()
    deviation = fresh.deviation / (16 if tied and word in SCALING else 1)
    assert loss == pytest.approx(math.log(400) + 256 * deviation**2 / 2, abs=0.12)


def test_what_is_refused_would_predict_the_token_that_it_reads(tokenizer):
    fresh = fresh_of(tokenizer, tied_embeddings=True, embedding="unit", hidden=256)
    model, ids = plain_model(write_fresh(fresh, 0)), random_ids()
    with torch.no_grad():
        logits = model(ids).logits
    assert (logits.argmax(-1) == ids).float().mean() > 0.99
    assert cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) > 20 * math.log(400)


def answers():
    dice = torch.Generator().manual_seed(1)
    drawn = [torch.randint(3, 400, (size,), generator=dice).numpy() for size in (9, 14)]
    return [Example(one.astype("int32"), (one != one[0]).astype("float32"), "a", 1) for one in drawn]


@pytest.mark.parametrize("word", WORDS)
def test_fast_layers_and_transformers_agree_on_it(tokenizer, word):
    fresh = fresh_of(tokenizer, architecture=word)
    settings = ModelConfig.model_validate({"fresh": fresh, "adapter": {"method": "full"}})
    folder = locate_start(settings, 5)
    model = load_model(folder, settings)
    assert any(isinstance(module, FastLayer) for module in model.modules()) == (word not in SCALING)
    verify_scores(model, batch_of(answers(), "logprobs"))
    ids = random_ids(20, 1)
    with torch.no_grad():
        before = plain_model(folder)(ids).logits
        copy = folder.parent / "copy"
        plain_model(folder).save_pretrained(copy)
        assert torch.equal(plain_model(copy)(ids).logits, before)


def test_the_row_of_the_token_that_ends_a_text_is_trained(tokenizer):
    folder = write_fresh(fresh_of(tokenizer), 0)
    model = plain_model(folder)
    ids = torch.tensor([[5, 2, 6, 2, 7]])  # 2 is <|im_end|>, with which the tokenizer pads as well
    model(ids, labels=ids).loss.backward()
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert embedding.padding_idx is None
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[2].abs().sum() > 0
    assert embedding.weight.grad[8].abs().sum() == 0
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_tokenizer_and_template_come_along_byte_for_byte(tokenizer):
    (tokenizer / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2, 9000], "temperature": 0.3}))
    folder = write_fresh(fresh_of(tokenizer), 0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tokenizer / name).read_bytes()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "pad_token_id": 2}
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded("sea and moon").input_ids == AutoTokenizer.from_pretrained(tokenizer)("sea and moon").input_ids


def test_another_tokenizer_is_another_model(tokenizer, tmp_path):
    one = blueprint(fresh_of(tokenizer))
    smaller = tiny_tokenizer(tmp_path / "smaller", vocabulary=300)
    other = blueprint(fresh_of(smaller))
    assert one != other
    rows = 1 + max(read_tokenizer(smaller / "tokenizer.json")["model"]["vocab"].values())
    assert take_inventory(other, tensors=described(other)).vocabulary == rows == 300


def test_a_folder_without_a_tokenizer_is_refused(tokenizer, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError) as caught:
        blueprint(fresh_of(empty))
    assert caught.value.diagnostic.code == "E396"
    assert caught.value.diagnostic.fixes[0].set == {"model.fresh.tokenizer": "starter"}
    (tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        blueprint(fresh_of(tokenizer))
    assert caught.value.diagnostic.code == "E396"


def test_nothing_is_left_of_a_model_that_was_not_finished(tokenizer, monkeypatch):
    def full(folder, need, doing):
        assert need == 4 * take_inventory(planned, tensors=described(planned)).total
        raise MachineError("E174", doing)

    fresh = fresh_of(tokenizer)
    planned = blueprint(fresh)
    monkeypatch.setattr(fresh_module, "require_space", full)
    with pytest.raises(MachineError):
        write_fresh(fresh, 0)
    assert [each for each in planned.parent.iterdir() if each.is_dir()] == [planned]
    assert planned == blueprint(fresh)
