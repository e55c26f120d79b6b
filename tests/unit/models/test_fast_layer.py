"""The written-out layer gives the losses and gradients of transformers' own, on every architecture it stands in for."""

import pytest
import torch
from tests.unit.models.architectures import build
from tests.unit.models.test_forest import EDGES, KINDS, PAIRS, Tree, batches, loss_and_gradients
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models import attention, forest, forest_attention, head
from tunesmith.models.adapters import attach, merge
from tunesmith.models.config import LoraConfig
from tunesmith.models.forward import score, score_only, states_of
from tunesmith.models.layer import attend, parts
from tunesmith.models.layer.module import FastLayer, put_fast_layers
from tunesmith.models.layer.projection import side_by_side

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2")
TARGETS = {"full": None, "all": ("all",), "some": ("q_proj", "v_proj", "down_proj")}


def layers_of(model: nn.Module) -> list[FastLayer]:
    return [module for module in model.modules() if isinstance(module, FastLayer)]


def adapted(model: PreTrainedModel, targets: tuple[str, ...] | None) -> nn.Module:
    """With adapters whose second factor is not zero; the same ones at every call."""
    if targets is None:
        return model
    wrapped = attach(model, LoraConfig(rank=4, alpha=8, targets=targets))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped


def fast(architecture: str, targets: tuple[str, ...] | None = None) -> nn.Module:
    model = adapted(put_fast_layers(build(architecture)), targets)
    for layer in layers_of(model):
        assert layer.obstacle() is None
    return model


def assert_alike(ours: tuple, theirs: tuple) -> None:
    """Losses within 1e-5, gradients within 1e-4 of their tensor's largest entry."""
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert ours[2].keys() == theirs[2].keys()
    largest = max(gradient.abs().max() for gradient in theirs[2].values())
    for name, gradient in theirs[2].items():
        scale = max(float(gradient.abs().max()), 1e-2 * float(largest))
        assert (ours[2][name] - gradient).abs().max() <= 1e-4 * scale, name


@pytest.fixture(params=["kernels", "torch"])
def means(request, monkeypatch):
    """With the compiled kernels, and as it runs where there is no compiler."""
    if request.param == "torch":
        for module in (parts, forest_attention, head):
            monkeypatch.setattr(module, "kernels_for", lambda states: None)


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("architecture", FAMILY)
def test_losses_and_gradients_equal_those_of_transformers(architecture, targets, kind):
    shared, _ = batches(KINDS[kind])
    theirs = loss_and_gradients(adapted(build(architecture), TARGETS[targets]), shared)
    assert_alike(loss_and_gradients(fast(architecture, TARGETS[targets]), shared), theirs)


@pytest.mark.parametrize("architecture", FAMILY)
def test_bf16_stays_as_close_to_fp32_as_transformers_own(architecture):
    """Over eight batches: of one alone the rounding of the weights is most of the distance."""
    exact, narrow = build(architecture), build(architecture).to(torch.bfloat16)
    ours = fast(architecture).to(torch.bfloat16)
    distances = []
    for seed in range(8):
        shared, _ = batches(PAIRS, seed)
        wanted, *found = (loss_and_gradients(model, shared)[0] for model in (exact, ours, narrow))
        distances.append([float((one - wanted).norm()) for one in found])
    total, theirs = torch.tensor(distances).norm(dim=0)
    assert total <= 1.1 * theirs


@pytest.mark.parametrize("architecture", FAMILY)
def test_long_segments_are_cut_into_blocks(architecture, monkeypatch):
    monkeypatch.setattr(forest, "BLOCK", 16)
    shared, _ = batches((Tree(45, (20, 33)), Tree(33, (5, 6, 3)), Tree(20, (40, 7), chained=True)))
    theirs = loss_and_gradients(build(architecture, attention.DENSE), shared)
    assert_alike(loss_and_gradients(fast(architecture), shared), theirs)


@pytest.mark.parametrize("architecture", ["llama", "olmo2"])
def test_only_scored_rows_leave_the_last_layer(architecture):
    shared, _ = batches(EDGES)
    model = fast(architecture)
    wanted = shared.query.unique()
    every, some = states_of(model, shared), states_of(model, shared, wanted=wanted)
    assert len(some) == len(wanted) < len(every)
    torch.testing.assert_close(some, every[wanted], atol=1e-6, rtol=1e-6)


def test_the_backward_pass_stops_below_the_lowest_trained_layer(monkeypatch):
    model = fast("llama")
    model.requires_grad_(False)
    layers_of(model)[-1].requires_grad_(True)
    seen: list[int] = []
    real = attend.attend_backward
    monkeypatch.setattr(attend, "attend_backward", lambda *given: seen.append(1) or real(*given))
    loss_and_gradients(model, batches(PAIRS)[0])
    assert len(seen) == 1


def test_attention_with_a_graph_of_its_own_gives_the_same(monkeypatch):
    """What runs on a GPU, around an attention that runs here."""

    def elsewhere(query: Tensor, key: Tensor, value: Tensor, batch, scale, window) -> Tensor:
        return attention.plain_attention(query, key, value, batch, scale, window, None, 0.0)

    shared, _ = batches(PAIRS)
    theirs = loss_and_gradients(fast("mistral", ("all",)), shared)
    monkeypatch.setattr(attend, "cuda_attention", elsewhere)
    monkeypatch.setattr(attend, "written_out", lambda states: False)
    assert_alike(loss_and_gradients(fast("mistral", ("all",)), shared), theirs)


def test_adapters_that_are_off_are_not_computed():
    shared, _ = batches(PAIRS)
    model = fast("qwen2", ("all",))
    with model.disable_adapter():
        off = score_only(model, shared).logprobs
    assert torch.equal(off, score_only(fast("qwen2"), shared).logprobs)
    assert not torch.equal(off, score_only(model, shared).logprobs)


def test_a_layer_that_is_more_than_lora_runs_as_transformers_wrote_it():
    shared, _ = batches(PAIRS)
    model = adapted(put_fast_layers(build("llama")), ("all",))
    layers_of(model)[0].get_submodule("mlp.up_proj").lora_dropout["default"] = nn.Dropout(0.5)
    model.train()
    assert layers_of(model)[0].obstacle() == "mlp.up_proj is more than a linear layer with LoRA"
    assert layers_of(model)[1].obstacle() is None
    model.eval()
    assert layers_of(model)[0].obstacle() is None
    plain = adapted(build("llama"), ("all",))
    assert_alike(loss_and_gradients(model, shared), loss_and_gradients(plain, shared))


def test_other_architectures_keep_their_layers():
    assert not layers_of(put_fast_layers(build("gemma2")))
    assert not layers_of(put_fast_layers(build("phi3")))


def test_parameters_keep_their_names_and_lie_side_by_side(tmp_path):
    plain, model = build("qwen3"), fast("qwen3")
    score(model, batches(PAIRS)[0]).logprobs.sum().backward()
    assert plain.state_dict().keys() == model.state_dict().keys()
    weights = [model.get_parameter(f"model.layers.0.self_attn.{name}_proj.weight") for name in "qkv"]
    assert side_by_side(weights).data_ptr() == weights[0].data_ptr()
    assert torch.equal(side_by_side(weights), torch.cat(weights))
    model.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.state_dict().items())


def test_weights_that_were_replaced_are_laid_side_by_side_again():
    model = fast("llama")
    shared, _ = batches(PAIRS)
    before = score_only(model, shared).logprobs
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    weight.data = 2 * weight.data
    after = score_only(model, shared).logprobs
    assert not torch.allclose(before, after)
    weight.data = weight.data / 2
    assert torch.equal(score_only(model, shared).logprobs, before)


def test_a_merged_model_is_fast_too():
    shared, _ = batches(PAIRS)
    model = fast("llama", ("all",))
    wanted = score_only(model, shared).logprobs
    merged = merge(model)
    assert all(layer.obstacle() is None for layer in layers_of(merged))
    torch.testing.assert_close(score_only(merged, shared).logprobs, wanted, atol=1e-5, rtol=1e-5)
