"""Adapters combined and brought into other forms: the predictions say whether they are the same."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.models.test_adapter_laws import disturbed, logprobs

from tunesmith.errors import ModelError, UsageError
from tunesmith.export.adapters import Wish, add_adapters, convert_adapter, rotations
from tunesmith.models.adapter_config import AdapterConfig
from tunesmith.models.adapters import load_adapter, read_adapter_config, save_adapter, trainable
from tunesmith.models.adapters.combining import Mix
from tunesmith.models.adapters.updates import read_low_rank
from tunesmith.models.config import (
    DoraConfig,
    Ia3Config,
    LoraConfig,
    ModelConfig,
    OftConfig,
    PissaConfig,
    RsloraConfig,
    VeraConfig,
)
from tunesmith.models.load import load_base
from tunesmith.models.quantization_config import Nf4, Unquantized
from tunesmith.models.quantized.files import base_of_folder
from tunesmith.models.stack import Below, write_stack


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base"), "llama", initializer_range=0.2)


def plain(base: Path):
    return load_base(base, ModelConfig(path=str(base)))


@torch.no_grad()
def saved(base: Path, folder: Path, settings: AdapterConfig, seed: int = 1, size: float = 0.2) -> torch.Tensor:
    """Write an adapter with numbers of its own; what it predicts."""
    model = disturbed(settings, base=plain(base))
    torch.manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.add_(size * torch.randn_like(parameter))
    save_adapter(model, folder, str(base))
    return logprobs(model)


def predicted(base: Path, folder: Path) -> torch.Tensor:
    ours = logprobs(load_adapter(plain(base), folder))
    theirs = logprobs(peft.PeftModel.from_pretrained(plain(base), str(folder)))
    torch.testing.assert_close(theirs, ours, atol=3e-5, rtol=3e-5)
    return ours


EXACT = {
    "lora": (LoraConfig(rank=4, alpha=4), Wish(), 4),
    "lora as rslora": (LoraConfig(rank=4, alpha=4), Wish("rslora"), 4),
    "rslora": (RsloraConfig(rank=4, alpha=3), Wish(), 4),
    "rslora of a rank above": (RsloraConfig(rank=4, alpha=2), Wish(rank=9), 4),
    "pissa as we write it": (PissaConfig(rank=3), Wish(), 6),
    "vera": (VeraConfig(rank=8), Wish(), 8),
}


@pytest.mark.parametrize(("settings", "wish", "rank"), EXACT.values(), ids=EXACT)
def test_exact_conversions_predict_the_same(settings, wish, rank, base, tmp_path):
    want = saved(base, tmp_path / "old", settings)
    report = convert_adapter(str(tmp_path / "old"), tmp_path / "new", wish)
    assert report.ranks == (rank, rank)
    assert report.error < 1e-3
    found = predicted(base, tmp_path / "new")
    torch.testing.assert_close(found, want, atol=2e-4, rtol=2e-4)
    config = read_adapter_config(tmp_path / "new")
    assert (config.peft_type.value, config.use_rslora) == ("LORA", wish.to == "rslora")
    assert config.base_model_name_or_path == str(base)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pissa_as_peft_writes_it_becomes_lora_on_the_model_as_it_was(base, tmp_path):
    theirs = peft.get_peft_model(
        plain(base), peft.LoraConfig(r=3, init_lora_weights="pissa", target_modules=["q_proj"])
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(theirs).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(str(tmp_path / "old"))
    report = convert_adapter(str(tmp_path / "old"), tmp_path / "new", Wish(model=str(base)))
    assert report.ranks == (6, 6)
    assert report.difference < 1e-6
    torch.testing.assert_close(predicted(base, tmp_path / "new"), logprobs(theirs), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("settings", [DoraConfig(rank=4), OftConfig(block=16), Ia3Config()], ids=lambda one: one.word)
def test_what_is_no_low_rank_is_approximated_and_the_loss_is_told(settings, base, tmp_path):
    want = saved(base, tmp_path / "old", settings, size=0.05)
    gaps, errors = [], []
    for rank in (2, 8, 64):
        report = convert_adapter(str(tmp_path / "old"), tmp_path / str(rank), Wish(rank=rank))
        gaps.append((predicted(base, tmp_path / str(rank)) - want).norm().item())
        errors.append(report.error)
        assert report.difference is not None
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3  # 64 is the rank of every matrix but for rounding
    assert gaps[2] < 0.02 * gaps[0]


def test_a_lower_rank_is_the_best_one(base, tmp_path):
    saved(base, tmp_path / "old", LoraConfig(rank=6))
    report = convert_adapter(str(tmp_path / "old"), tmp_path / "new", Wish(rank=2, dtype="bfloat16"))
    old, new = read_low_rank(tmp_path / "old"), read_low_rank(tmp_path / "new")
    whole = rest = 0.0
    for module, update in old.updates.items():
        values = torch.linalg.svdvals(update.dense())
        whole, rest = whole + values.square().sum().item(), rest + values[2:].square().sum().item()
        gap = (update.dense() - new.updates[module].dense()).norm().item()
        assert gap == pytest.approx(values[2:].norm().item(), rel=1e-2)  # bf16 rounds
    assert report.kept == pytest.approx(1 - rest / whole, rel=1e-5)
    tensors = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_oft_turns_the_same_way_in_both_forms(base, tmp_path):
    want = saved(base, tmp_path / "old", OftConfig(block=8), size=0.0)
    report = convert_adapter(str(tmp_path / "old"), tmp_path / "same", Wish("oft"))
    assert report.error == 0
    torch.testing.assert_close(predicted(base, tmp_path / "same"), want, atol=1e-5, rtol=1e-5)
    model = disturbed(OftConfig(block=8), base=plain(base))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.mul_(0.1)  # the series is near the rotation where that is small
    save_adapter(model, tmp_path / "small", str(base))
    report = convert_adapter(str(tmp_path / "small"), tmp_path / "series", Wish("oft_series"))
    assert 0 < report.error < 2e-3
    assert read_adapter_config(tmp_path / "series").use_cayley_neumann
    torch.testing.assert_close(predicted(base, tmp_path / "series"), logprobs(model), atol=2e-2, rtol=2e-3)
    convert_adapter(str(tmp_path / "series"), tmp_path / "back", Wish("oft"))
    torch.testing.assert_close(predicted(base, tmp_path / "back"), logprobs(model), atol=1e-5, rtol=1e-5)


def test_rotations_by_hand():
    """Q = [[0, a], [-a, 0]] turns by cos (1 - a²) / (1 + a²): .6 and .8 for a = .5."""
    exact = rotations(torch.tensor([[0.5]]), series=False)
    torch.testing.assert_close(exact, torch.tensor([[[0.6, -0.8], [0.8, 0.6]]]))
    near = rotations(torch.tensor([[-0.1]]), series=True)
    torch.testing.assert_close(near, rotations(torch.tensor([[0.1]]), series=False), atol=2e-4, rtol=0)


def test_adapters_of_one_base_are_added(base, tmp_path):
    for seed in (1, 2):
        saved(base, tmp_path / str(seed), LoraConfig(rank=4), seed)
    names = [str(tmp_path / "1"), str(tmp_path / "2")]
    report = add_adapters(names, tmp_path / "both", Mix("linear", (0.5, 0.5)))
    assert (report.method, report.layers, report.ranks) == ("linear", 14, (8, 8))
    assert report.kept == pytest.approx(1)
    predicted(base, tmp_path / "both")
    assert read_adapter_config(tmp_path / "both").base_model_name_or_path == str(base)
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(UsageError, match="E157"):
        add_adapters(names, tmp_path / "both", Mix())
    with pytest.raises(UsageError, match="E360"):
        add_adapters(names[:1], tmp_path / "one", Mix())


def test_other_bases_are_refused_unless_it_is_said_that_they_are_one(base, tmp_path):
    saved(base, tmp_path / "1", LoraConfig(rank=2))
    save_adapter(disturbed(LoraConfig(rank=2), base=plain(base)), tmp_path / "2", "owner/model")
    names = [str(tmp_path / "1"), str(tmp_path / "2")]
    with pytest.raises(ModelError, match="E361") as caught:
        add_adapters(names, tmp_path / "both", Mix())
    assert "owner/model" in caught.value.diagnostic.evidence[1]
    assert not (tmp_path / "both").exists()
    add_adapters(names, tmp_path / "both", Mix(), "owner/model")
    assert read_adapter_config(tmp_path / "both").base_model_name_or_path == "owner/model"


def test_forms_that_are_not_there_are_refused(base, tmp_path):
    saved(base, tmp_path / "lora", LoraConfig(rank=2))
    with pytest.raises(UsageError, match=r"E367.*oft"):
        convert_adapter(str(tmp_path / "lora"), tmp_path / "new", Wish("oft"))
    save_adapter(disturbed(Ia3Config(), base=plain(base)), tmp_path / "lost", "")
    with pytest.raises(UsageError, match=r"E367.*which model"):
        convert_adapter(str(tmp_path / "lost"), tmp_path / "new", Wish())
    whole = DoraConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",))
    saved(base, tmp_path / "whole", whole)
    with pytest.raises(ModelError, match=r"E362.*lm_head"):
        convert_adapter(str(tmp_path / "whole"), tmp_path / "new", Wish())
    with pytest.raises(UsageError, match="E367"):
        convert_adapter(str(tmp_path / "lora"), tmp_path / "new", Wish(rank=0))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("settings", [LoraConfig(rank=2), DoraConfig(rank=2)])
def test_an_adapter_above_others_is_refused_because_its_note_would_be_lost(settings, base, tmp_path):
    saved(base, tmp_path / "old", settings)
    write_stack(tmp_path / "old", str(base), (Below(str(tmp_path / "below"), "0"),))
    with pytest.raises(ModelError) as caught:
        convert_adapter(str(tmp_path / "old"), tmp_path / "new", Wish(rank=2))
    assert caught.value.diagnostic.code == "E362"
    assert str(tmp_path / "below") in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_loftq_of_several_rounds_is_refused_because_its_base_would_be_lost(base, tmp_path):
    saved(base, tmp_path / "old", LoraConfig(rank=2))
    (tmp_path / "old" / "loftq.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="E362"):
        convert_adapter(str(tmp_path / "old"), tmp_path / "new", Wish(rank=1))


@pytest.mark.parametrize(
    ("settings", "rank"), [(LoraConfig(rank=4), None), (DoraConfig(rank=4), 64)], ids=["lora", "dora"]
)
def test_what_is_made_of_an_adapter_stands_on_a_base_held_as_its_own(base, tmp_path, settings, rank):
    packed = ModelConfig(path=str(base), quantization=Nf4())
    model = disturbed(settings, base=load_base(base, packed))
    save_adapter(model, tmp_path / "old", str(base))
    convert_adapter(str(tmp_path / "old"), tmp_path / "new", Wish(rank=rank))
    again = load_adapter(load_base(base, packed), tmp_path / "new")
    torch.testing.assert_close(logprobs(again), logprobs(model), atol=1e-4, rtol=1e-4)
    assert base_of_folder(tmp_path / "new") == packed.quantization
    save_adapter(disturbed(LoraConfig(rank=4), base=plain(base)), tmp_path / "exact", str(base))
    convert_adapter(str(tmp_path / "exact"), tmp_path / "other", Wish(rank=2))
    add_adapters([str(tmp_path / "new"), str(tmp_path / "new")], tmp_path / "both", Mix())
    add_adapters([str(tmp_path / "new"), str(tmp_path / "other")], tmp_path / "mixed", Mix())
    held = [base_of_folder(tmp_path / name) for name in ("other", "both", "mixed")]
    assert held == [Unquantized(), packed.quantization, Unquantized()]
