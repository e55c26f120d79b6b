"""BOFT against PEFT's own code, its formula, and what it cannot do."""

import peft
import pytest
import torch
from peft.tuners.boft.layer import BOFTLayer, Linear
from tests.tiny import tiny_model_folder
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import disturbed, logprobs
from tests.unit.models.test_forward import gradients

from tunesmith.models.adapter_folder import describe_adapter
from tunesmith.models.adapters import load_adapter, save_adapter, trainable
from tunesmith.models.adapters.several import attach_several
from tunesmith.models.butterfly import ButterflyLinear, butterfly
from tunesmith.models.inventory import take_inventory
from tunesmith.models.orthogonal_config import BoftConfig
from tunesmith.planning.adapters import adapter_problems
from tunesmith.recipe import load_recipe

NAMES = ["q_proj", "v_proj", "down_proj"]
WRITTEN = {
    "one factor": peft.BOFTConfig(boft_block_size=8, target_modules=NAMES),
    "three factors": peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=NAMES),
    "blocks by their number": peft.BOFTConfig(
        boft_block_size=0, boft_block_num=8, boft_n_butterfly_factor=2, target_modules=r".*layers\.[01]\..*_proj"
    ),
}


@pytest.mark.parametrize("config", WRITTEN.values(), ids=WRITTEN)
def test_folders_of_peft_predict_and_learn_as_there(config, tmp_path):
    theirs = peft.get_peft_model(build("qwen2"), config)
    assert {type(each) for each in theirs.modules() if isinstance(each, BOFTLayer)} == {Linear}
    with torch.no_grad():
        for parameter in trainable(theirs).values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(build("qwen2").requires_grad_(False), tmp_path, BoftConfig())
    assert {type(each) for each in ours.modules() if isinstance(each, BOFTLayer)} == {ButterflyLinear}
    want, found = logprobs(theirs), logprobs(ours)
    torch.testing.assert_close(found, want, atol=2e-5, rtol=2e-5)
    want.sum().backward()
    found.sum().backward()
    slopes = gradients(theirs)
    assert gradients(ours).keys() == slopes.keys()
    for name, slope in gradients(ours).items():
        torch.testing.assert_close(slope, slopes[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "size", "factors"), [(64, 4, 3), (96, 8, 3), (128, 2, 4), (48, 4, 2)])
def test_orders_are_those_of_peft(inputs, size, factors):
    for factor in range(factors):
        want = BOFTLayer.block_butterfly_perm(None, inputs, inputs // size // 2**factor, size // 2, factors - 1)
        assert torch.equal(butterfly(inputs, size, factor), want)


def test_a_rotation_is_orthogonal_and_reaches_beyond_its_blocks():
    model = disturbed(BoftConfig(block=4, factors=3))
    layer = next(each for each in model.modules() if isinstance(each, ButterflyLinear))
    matrix, _ = layer.get_delta_weight("default")
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)
    assert (matrix[:16, :16] != 0).all()
    assert (matrix[:16, 16:] == 0).all()


def test_several_stand_side_by_side(tmp_path):
    wanted = {}
    for name, factors in (("one", 1), ("other", 2)):
        model = disturbed(BoftConfig(block=4, factors=factors), base=build("qwen2"))
        save_adapter(model, tmp_path / name, "base")
        wanted[name] = logprobs(model)
    several = attach_several(build("qwen2"), {name: tmp_path / name for name in wanted})
    for name, want in wanted.items():
        torch.testing.assert_close(logprobs(several.activate(name)), want, atol=2e-5, rtol=2e-5)
    facts = describe_adapter(tmp_path / "one")
    assert (facts.method, facts.rank) == ("boft", (4,))


@pytest.mark.parametrize(
    ("words", "code", "fixes"),
    [
        ("block: 6, factors: 1", "E356", {"model.adapter.block": 4}),
        ("block: 7", "E356", {"model.adapter.block": 8}),
        ("block: 32, factors: 3", "E356", {"model.adapter.block": 16}),
        ("block: 8, factors: 9", "E357", {"model.adapter.factors": 4}),
        ("block: 6, factors: 9", "E357", {}),
    ],
)
def test_blocks_and_factors_that_do_not_divide_are_refused(words, code, fixes, tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path))  # 64 and 128 inputs
    recipe = load_recipe(None, [f"model.adapter={{method: boft, {words}}}"], {}).recipe
    (problem,) = adapter_problems(recipe, inventory)
    assert (problem.code, problem.fixes[0].set or {}) == (code, fixes)
    fixed = recipe.model.adapter.model_copy(update={key.rpartition(".")[2]: value for key, value in fixes.items()})
    assert not fixes or all(fixed.misfit(64, inputs) is None for inputs in (64, 128))
