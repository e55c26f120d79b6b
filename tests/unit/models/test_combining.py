"""Combined updates against hand-computed matrices, and against PEFT where it computes the same."""

from pathlib import Path

import peft
import pytest
import torch
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import disturbed, logprobs

from tunesmith.errors import ModelError, UsageError
from tunesmith.models.adapter_config import DoraConfig, LoraConfig, PissaConfig, RsloraConfig
from tunesmith.models.adapters import load_adapter, save_adapter
from tunesmith.models.adapters.combining import Mix, combine, disjoint_mean, principal, rescaled, sparse, trimmed
from tunesmith.models.adapters.updates import LowRankAdapter, Update, read_low_rank, write_low_rank

ONE, TWO, THREE = (torch.tensor(rows) for rows in ([[4.0, -1], [2, 0.5]], [[-2.0, -3], [1, 0]], [[1.0, 5], [-4, 1]]))


def made(folder: Path, seed: int, settings=None) -> LowRankAdapter:
    """An adapter of its own numbers on the same base."""
    model = disturbed(settings or LoraConfig(rank=4, alpha=8, targets=("q_proj", "down_proj")), "llama")
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    save_adapter(model, folder / str(seed), "base")
    return read_low_rank(folder / str(seed))


def dense(factors):
    return {module: b @ a for module, (a, b) in factors.items()}


def wanted_sum(adapters, weights):
    modules = {module for adapter in adapters for module in adapter.updates}
    return {
        module: sum(
            weight * adapter.updates[module].dense().double()
            for weight, adapter in zip(weights, adapters, strict=True)
            if module in adapter.updates
        )
        for module in modules
    }


def test_trimming_keeps_the_largest():
    """Of four numbers the density .5 keeps two, by size and not by sign."""
    assert trimmed(ONE, 0.5).tolist() == [[4, 0], [2, 0]]
    assert trimmed(TWO, 0.5).tolist() == [[-2, -3], [0, 0]]
    assert trimmed(THREE, 0.5).tolist() == [[0, 5], [-4, 0]]
    assert trimmed(ONE, 1.0).tolist() == ONE.tolist()


def test_ties_by_hand():
    """Sums 2, 2, -2, 0 elect +, +, -, none: 4; 5; -4; nothing (arXiv:2306.01708 section 4.1)."""
    mix = Mix("ties", density=0.5)
    found = sparse([ONE, TWO, THREE], (1.0, 1.0, 1.0), mix, torch.Generator())
    assert found.tolist() == [[4, 5], [-4, 0]]
    mean = disjoint_mean([torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([[-1.0]])], (1.0, 0.5, 1.0))
    assert mean.tolist() == [[2.0]]  # (1 * 2 + .5 * 4) / 2


def test_signs_that_cancel_elect_nothing():
    assert disjoint_mean([torch.tensor([1.0]), torch.tensor([-1.0])], (1.0, 1.0)).tolist() == [0.0]


def test_dare_drops_and_rescales_by_its_seed():
    """Numbers are dropped or twice as large, and the mean stays (arXiv:2311.03099 eq. 4)."""
    numbers = torch.ones(200, 200)
    found = rescaled(numbers, 0.5, torch.Generator().manual_seed(3))
    assert found.unique().tolist() == [0.0, 2.0]
    assert abs(found.mean().item() - 1) < 0.03
    again, other = (rescaled(numbers, 0.5, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(again, found)
    assert not torch.equal(other, found)
    assert torch.equal(rescaled(ONE, 1.0, torch.Generator()), ONE)


@pytest.mark.parametrize("rule", ["linear", "cat"])
def test_sums_are_exact(rule, tmp_path):
    adapters = [made(tmp_path, 1), made(tmp_path, 2, RsloraConfig(rank=3, alpha=5, targets=("q_proj", "k_proj")))]
    factors, kept = combine(adapters, Mix(rule, (0.7, -0.3)))
    wanted = wanted_sum(adapters, (0.7, -0.3))
    assert kept.share == pytest.approx(1, abs=1e-9)
    for module, update in dense(factors).items():
        gap = (update.double() - wanted[module]).norm() / wanted[module].norm()
        assert gap < 5e-7
        both = "q_proj" in module
        assert len(factors[module][0]) == (7 if both else 3 if "k_proj" in module else 4)


def test_a_sum_of_equal_directions_has_their_rank(tmp_path):
    adapter = made(tmp_path, 1)
    factors, _ = combine([adapter, adapter], Mix("linear"))
    assert {len(a) for a, _ in factors.values()} == {4}
    for module, update in dense(factors).items():
        torch.testing.assert_close(update, adapter.updates[module].dense(), atol=1e-6, rtol=1e-5)


def test_svd_is_the_best_of_its_rank_and_tells_what_is_lost(tmp_path):
    adapters = [made(tmp_path, 1), made(tmp_path, 2)]
    factors, kept = combine(adapters, Mix("svd", (1.0, 1.0), rank=3))
    wanted, whole, rest = wanted_sum(adapters, (1.0, 1.0)), 0.0, 0.0
    for module, update in dense(factors).items():
        values = torch.linalg.svdvals(wanted[module])
        gap = (update.double() - wanted[module]).norm()
        assert gap.item() == pytest.approx(values[3:].norm().item(), rel=1e-5)
        whole, rest = whole + values.square().sum().item(), rest + values[3:].square().sum().item()
    assert kept.share == pytest.approx(1 - rest / whole, rel=1e-6)
    assert kept.to_json()["error"] == pytest.approx((rest / whole) ** 0.5, rel=1e-5)
    assert kept.lowest[0] <= kept.share


@pytest.mark.parametrize("shape", [(40, 30), (2100, 2060)])
def test_the_share_that_a_rank_keeps_is_that_of_its_error(shape):
    torch.manual_seed(0)
    delta = torch.randn(shape[0], 6) @ torch.diag(torch.tensor([9.0, 7, 5, 3, 2, 1])) @ torch.randn(6, shape[1])
    (a, b), whole, kept = principal(delta, 4)
    assert ((delta - b @ a).double().norm() ** 2).item() == pytest.approx(whole - kept, rel=2e-3)
    assert 0.9 < kept / whole < 1


def pefts(folders, rule, weights, **settings):
    """What PEFT's own combination predicts."""
    model = peft.PeftModel.from_pretrained(build("llama"), str(folders[0]), adapter_name="one")
    model.load_adapter(str(folders[1]), adapter_name="two")
    model.add_weighted_adapter(["one", "two"], list(weights), "both", rule, **settings)
    model.set_adapter("both")
    return logprobs(model)


SAME = {
    "cat": ({}, "cat", {}),
    "svd": ({"rank": 3}, "svd", {"svd_rank": 3}),
    "ties": ({"rank": 5, "density": 0.3}, "ties_svd", {"svd_rank": 5, "density": 0.3}),
    "dare": ({"rank": 5, "density": 1.0}, "dare_linear_svd", {"svd_rank": 5, "density": 1.0}),
    "dare_ties": ({"rank": 5, "density": 1.0}, "dare_ties_svd", {"svd_rank": 5, "density": 1.0}),
}


@pytest.mark.parametrize("rule", SAME)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_as_pefts_where_it_computes_the_same(rule, tmp_path):
    adapters = [made(tmp_path, 1), made(tmp_path, 2)]
    ours, theirs, settings = SAME[rule]
    factors, _ = combine(adapters, Mix(rule, (0.7, 0.6), **ours))
    write_low_rank(tmp_path / "both", adapters, factors)
    want = pefts([adapter.folder for adapter in adapters], theirs, (0.7, 0.6), **settings)
    loaded = logprobs(load_adapter(build("llama").requires_grad_(False), tmp_path / "both"))
    torch.testing.assert_close(loaded, want, atol=2e-5, rtol=2e-5)
    read = peft.PeftModel.from_pretrained(build("llama"), str(tmp_path / "both"))
    torch.testing.assert_close(logprobs(read), want, atol=2e-5, rtol=2e-5)
    assert (want - logprobs(build("llama"))).abs().max() > 1e-2


def test_layers_of_different_adapters_are_written_by_name(tmp_path):
    adapters = [made(tmp_path, 1), made(tmp_path, 2, LoraConfig(rank=2, targets=("k_proj",), last=1))]
    factors, _ = combine(adapters, Mix("linear", (1.0, 1.0)))
    write_low_rank(tmp_path / "both", adapters, factors)
    loaded = load_adapter(build("llama").requires_grad_(False), tmp_path / "both")
    again = read_low_rank(tmp_path / "both")
    assert again.updates.keys() == factors.keys()
    wanted = wanted_sum(adapters, (1.0, 1.0))
    for module, update in again.updates.items():
        torch.testing.assert_close(update.dense().double(), wanted[module], atol=1e-5, rtol=1e-4)
    assert torch.isfinite(logprobs(loaded)).all()


def test_an_embedding_is_combined_as_peft_keeps_it(tmp_path):
    settings = LoraConfig(rank=2, targets=("embed_tokens",))
    adapters = [made(tmp_path, 1, settings), made(tmp_path, 2, settings)]
    factors, _ = combine(adapters, Mix("cat", (0.5, 0.5)))
    write_low_rank(tmp_path / "both", adapters, factors)
    want = pefts([adapter.folder for adapter in adapters], "cat", (0.5, 0.5))
    loaded = logprobs(load_adapter(build("llama").requires_grad_(False), tmp_path / "both"))
    torch.testing.assert_close(loaded, want, atol=2e-5, rtol=2e-5)


BAD = {
    "weights for 2": Mix(weights=(1.0,)),
    "not finite": Mix(weights=(1.0, float("nan"))),
    "density": Mix("ties", density=0.0),
    "above 0": Mix("ties", weights=(1.0, -1.0)),
    "at least 1": Mix("svd", rank=0),
    "svd takes one": Mix("cat", rank=3),
}


@pytest.mark.parametrize("words", BAD)
def test_numbers_that_make_no_sense_are_refused(words, tmp_path):
    with pytest.raises(UsageError, match=words) as caught:
        combine([made(tmp_path, 1), made(tmp_path, 2)], BAD[words])
    assert caught.value.diagnostic.code == "E360"


def test_adapters_of_other_shapes_are_refused(tmp_path):
    one = made(tmp_path, 1)
    module = next(iter(one.updates))
    narrow = {module: Update(torch.ones(2, 5), torch.ones(7, 2), 1.0)}
    with pytest.raises(ModelError, match="E363"):
        combine([one, LowRankAdapter(tmp_path, one.config, narrow, frozenset())], Mix())


def test_what_is_no_low_rank_update_is_refused(tmp_path):
    save_adapter(disturbed(DoraConfig(rank=2), "llama"), tmp_path / "dora", "base")
    with pytest.raises(ModelError, match=r"E362.*DoRA"):
        read_low_rank(tmp_path / "dora")
    whole = LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",))
    save_adapter(disturbed(whole, "llama"), tmp_path / "whole", "base")
    with pytest.raises(ModelError, match="lm_head"):
        read_low_rank(tmp_path / "whole")
    save_adapter(disturbed(PissaConfig(rank=2), "llama"), tmp_path / "pissa", "base")
    assert read_low_rank(tmp_path / "pissa").rank == 4  # what we write is plain LoRA
