"""Training from cached states of the frozen lowest layers: what is equal to the bit, and what to rounding."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.records import write_records
from tests.tiny import tiny_model_folder
from torch import Tensor, nn

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.loader import Builder
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import MachineError
from tunesmith.models import load, trunk
from tunesmith.models.config import Adapter, FreezeConfig, LoraConfig, ModelConfig
from tunesmith.models.forward import base_model, decoder_of, read, score, trunk_states
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.models.load import load_model
from tunesmith.train.state_cache import StateCache
from tunesmith.train.trunk import Trunk
from tunesmith.types import Batch, Entry, Kind, Reads, Task

LAYERS = 4
FROZEN = 2
LIMIT = 256  # tokens of the microbatches in which states are computed
SYSTEM = "you are a helpful assistant who answers every question in one short poem"
ADAPTERS: dict[str, Adapter] = {"freeze": FreezeConfig(last=LAYERS - FROZEN), "lora": LoraConfig(rank=4, last=2)}
TASKS: dict[Kind, Task] = {
    "sequence": Task(),
    "pair": Task("pair"),
    "feedback": Task("feedback"),
    "ranking": Task("ranking"),
    "process": Task("process", "values"),
}


@pytest.fixture(scope="module", params=sorted(trunk.TYPES))
def folder(request, tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("llama"), "llama")


def made(place: Path, architecture: str) -> Path:
    if architecture in ("mistral", "gemma2", "gemma3_text"):
        return tiny_model_folder(place, architecture, num_hidden_layers=LAYERS, sliding_window=16)
    return tiny_model_folder(place, architecture, num_hidden_layers=LAYERS)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def loaded(folder: Path, adapter: str = "freeze", dtype: str = "float32", outputs: int = 0) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelConfig(path=str(folder), dtype=dtype, adapter=ADAPTERS[adapter])  # pyright: ignore[reportArgumentType]
    model = load_model(folder, settings, outputs=outputs)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def frozen_in(model: nn.Module) -> int:
    return trunk.frozen_layers(trunk.layers_of(decoder_of(model)), base_model(model).get_input_embeddings())


def builder(folder: Path, place: Path, kind: Kind = "sequence", count: int = 12) -> Builder:
    """Records of which two in three begin with one system prompt."""
    path = write_records(place / f"{kind}.jsonl", kind, count, system=SYSTEM)
    sources = [SourceConfig(path=str(path))]
    prepared = prepare(sources, DataConfig(), load_tokenizer(folder), None, TASKS[kind])
    return Builder(prepared, TASKS[kind], share=True)


def made_trunk(model: nn.Module, build: Builder, place: Path | None = None) -> Trunk:
    base = base_model(model)
    width = base.config.hidden_size * base.dtype.itemsize
    return Trunk(model, FROZEN, build, LIMIT, StateCache(place, build.prepared.lengths, width))


def stepped(model: nn.Module, batch: Batch, reads: Reads = "logprobs") -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that reads all scores, and the gradients."""
    model.zero_grad()
    scores = read(model, batch, reads)
    values = scores.logprobs if scores.values is None else scores.values[:, 0]
    loss = (values * torch.linspace(0.5, 1.5, len(values))).sum()
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def exactly(model: nn.Module, batch: Batch) -> Batch:
    """The batch with the states that its own pass would have."""
    states = trunk_states(model, batch, FROZEN)
    return replace(batch, entry=Entry(FROZEN, lambda: states))


def mixed(build: Builder) -> list[Batch]:
    """Microbatches of other records together than those in which states are computed."""
    total = len(build.prepared)
    return [build(list(range(start, total, 2))) for start in range(2)]


def assert_alike(ours: tuple[Tensor, dict], theirs: tuple[Tensor, dict]) -> None:
    """Losses within 1e-6, gradients within 1e-5 of the largest."""
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(one.abs().max()) for one in theirs[1].values())
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("path", ["fast", "general"])
def test_from_the_same_states_losses_and_gradients_are_equal_to_the_bit(folder, tmp_path, adapter, path, monkeypatch):
    if path == "general":
        monkeypatch.setattr(load, "put_fast_layers", lambda model: model)
    model = loaded(folder, adapter)
    assert frozen_in(model) == FROZEN
    for batch in mixed(builder(folder, tmp_path, "pair")):
        whole, above = stepped(model, batch), stepped(model, exactly(model, batch))
        assert torch.equal(whole[0], above[0])
        assert whole[1].keys() == above[1].keys()
        assert all(torch.equal(whole[1][name], above[1][name]) for name in whole[1])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_from_states_computed_in_other_batches_they_are_equal_to_rounding(folder, tmp_path, adapter):
    model, build = loaded(folder, adapter), builder(folder, tmp_path)
    cached = made_trunk(model, build)
    cached.fill(Mesh())
    for batch in mixed(build):
        assert_alike(stepped(model, cached.attach(batch)), stepped(model, batch))


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_of_record_finds_its_states(llama, tmp_path, kind):
    task = TASKS[kind]
    model, build = loaded(llama, outputs=task.outputs), builder(llama, tmp_path, kind)
    cached = made_trunk(model, build)
    cached.fill(Mesh())
    assert sum(build.saved(group) for group in cached.groups) > 0, "the records share nothing"
    for batch in mixed(build):
        assert_alike(stepped(model, cached.attach(batch), task.reads), stepped(model, batch, task.reads))
        torch.testing.assert_close(cached.load(batch), trunk_states(model, batch, FROZEN), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_bf16_states_are_as_close_to_fp32_as_those_of_a_whole_pass(llama, tmp_path):
    exact, model, build = loaded(llama), loaded(llama, dtype="bfloat16"), builder(llama, tmp_path)
    cached = made_trunk(model, build)
    cached.fill(Mesh())
    errors = torch.zeros(2)
    for batch in mixed(build):
        assert cached.load(batch).dtype == torch.bfloat16
        want = score(exact, batch).logprobs
        for number, one in enumerate((batch, cached.attach(batch))):
            errors[number] += (score(model, one).logprobs - want).abs().sum()
    assert float(errors[1]) == pytest.approx(float(errors[0]), rel=0.05)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_states_do_not_depend_on_who_asked_first(llama, tmp_path, where):
    model, build = loaded(llama), builder(llama, tmp_path, "pair")
    first, second = (
        made_trunk(model, build, tmp_path / name if where == "disk" else None) for name in ("first", "second")
    )
    first.fill(Mesh())
    total = len(build.prepared)
    for index in reversed(range(total)):
        assert np.array_equal(second.states(index), first.states(index))


def test_damaged_states_are_computed_again_to_the_bit(llama, tmp_path):
    model, build = loaded(llama), builder(llama, tmp_path, "pair")
    cached = made_trunk(model, build, tmp_path / "cache")
    cached.fill(Mesh())
    whole = (tmp_path / "cache" / "states.bin").read_bytes()
    (tmp_path / "cache" / "states.bin").write_bytes(whole[:1000] + bytes(3000) + whole[4000:])
    again = made_trunk(model, build, tmp_path / "cache")
    assert again.cache.missing()
    again.fill(Mesh())
    assert (tmp_path / "cache" / "states.bin").read_bytes() == whole


def test_a_trunk_once_filled_computes_nothing(llama, tmp_path, monkeypatch):
    model, build = loaded(llama), builder(llama, tmp_path)
    made_trunk(model, build, tmp_path / "cache").fill(Mesh())
    again = made_trunk(model, build, tmp_path / "cache")
    monkeypatch.setattr(again, "compute", lambda group: pytest.fail("computed again"))
    again.fill(Mesh())
    again.load(mixed(build)[0])


def test_a_record_without_anything_scored_has_its_states(llama, tmp_path):
    model, build = loaded(llama), builder(llama, tmp_path)
    weights = np.array(build.prepared.weights)
    first, last = (int(build.prepared.offsets[index]) for index in (4, 5))
    weights[first:last] = 0
    build.prepared.weights = weights  # pyright: ignore[reportAttributeAccessIssue]
    cached = made_trunk(model, build)
    for batch in mixed(build):
        torch.testing.assert_close(cached.load(batch), trunk_states(model, batch, FROZEN), atol=1e-6, rtol=1e-5)


def test_the_model_is_whole_again_after_every_pass(llama, tmp_path):
    model, build = loaded(llama, "lora"), builder(llama, tmp_path)
    names = [name for name, _ in model.named_modules()]

    def fail() -> Tensor:
        raise RuntimeError("no states")

    batch = build([0, 1])
    cached = made_trunk(model, build)
    cached.load(batch)
    score(model, cached.attach(batch))
    with pytest.raises(RuntimeError, match="no states"):
        score(model, replace(batch, entry=Entry(FROZEN, fail)))
    with pytest.raises(RuntimeError):
        score(model, replace(batch, entry=Entry(FROZEN, lambda: torch.zeros(3, 5))))
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize(
    ("adapter", "frozen"),
    [
        (FreezeConfig(last=1), 3),
        (FreezeConfig(first=1), 0),
        (FreezeConfig(last=1, names=("embed_tokens",)), 0),
        (FreezeConfig(names=("model.norm",)), 3),
        (FreezeConfig(names=("layers.1.mlp",)), 1),
        (LoraConfig(targets=("layers.2.mlp.up_proj",)), 2),
        (LoraConfig(), 0),
        (LoraConfig(last=1), 3),
        (LoraConfig(targets=("up_proj",), last=2), 2),
        (LoraConfig(last=9), 0),
        (LoraConfig(targets=("layers.3.mlp.up_proj",), modules_to_save=("embed_tokens",)), 0),
        (LoraConfig(targets=("layers.3.mlp.up_proj", "embed_tokens")), 0),
    ],
)
def test_the_trunk_ends_below_everything_that_learns(llama, adapter, frozen):
    model = load_model(llama, ModelConfig(path=str(llama), adapter=adapter))
    counted = trainable(take_inventory(llama), adapter)
    assert counted.total == sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert min(counted.lowest_layer, LAYERS - 1) == frozen
    assert frozen_in(model) == frozen


def test_a_disk_that_becomes_full_in_the_middle_of_a_record_is_told(tmp_path, monkeypatch):
    cache = StateCache(tmp_path / "trunk", np.array([3]), 8)
    monkeypatch.setattr(os, "pwrite", lambda file, rows, start: len(rows) - 1)
    with pytest.raises(MachineError) as caught:
        cache.write(0, np.ones((3, 8), dtype=np.uint8))
    assert caught.value.diagnostic.code == "E198"
    assert cache.read(0) is None
