"""fp8 in the plan: which layers, what it means and takes, and where it is refused before anything is loaded."""

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.errors import MachineError
from tunesmith.models import products
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.models.fp8_layers import use_fp8
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.models.load import load_model
from tunesmith.models.products import check_machine
from tunesmith.planning.calibration import computed
from tunesmith.planning.fp8 import fp8_problems, told_fp8, trained_groups
from tunesmith.planning.memory import Load, estimate
from tunesmith.planning.precision import told_precision
from tunesmith.recipe import load_recipe

ADAPTERS = {
    "full": {"method": "full"},
    "lisa": {"method": "lisa", "layers": 1},
    "last": {"method": "freeze", "last": 1},
    "queries": {"method": "freeze", "last": 0, "names": ["q_proj", "down_proj"]},
    "lora": {"method": "lora"},
    "norms": {"method": "norms"},
}


def recipe_of(*words, dtype="bfloat16"):
    return load_recipe(None, [f"model.dtype={dtype}", "train.optimizer.lr=2e-5", *words], {}).recipe


def problems_of(folder, *words, dtype="bfloat16", device="cuda"):
    recipe, inventory = recipe_of(*words, dtype=dtype), take_inventory(folder)
    return list(fp8_problems(recipe, inventory, trainable(inventory, recipe.model.adapter), dtype, device))


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])
def test_the_plan_counts_the_layers_that_will_have_it(architecture, adapter, tmp_path):
    folder = tiny_model_folder(tmp_path, architecture)
    settings = recipe_of(f"model.path={folder}", f"model.adapter={adapter}".replace("'", ""))
    inventory = take_inventory(folder)
    for smallest in (16, 33, 64, 65, 128):
        fp8 = Fp8Config(smallest=smallest, emulate=True)
        groups = trained_groups(inventory, trainable(inventory, settings.model.adapter))
        found = use_fp8(load_model(folder, settings.model, "cpu", 0), fp8)
        assert sum(len(group) for group in groups if fp8.takes(group)) == found
        assert told_fp8(fp8, inventory, trainable(inventory, settings.model.adapter)).startswith(f"{found} of ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "0 of 14 trained linear layers multiply in e4m3 (4 bits, 2e-3 to 448), each row scaled"),
        (("train.fp8.smallest=64",), "; 14 of 14 trained linear layers multiply in e4m3"),
        (("train.fp8.scaling=tensorwise", "train.fp8.emulate=true"),
         "e4m3 (4 bits, 2e-3 to 448) and e5m2 (3 bits, 2e-5 to 57,344), each matrix scaled, emulated"),
        (("train.fp8.gradients=e5m2",), "and e5m2 (3 bits, 2e-5 to 57,344), each row scaled"),
    ],
)  # fmt: skip
def test_the_plan_tells_range_precision_and_layers(tmp_path, words, told):
    inventory = take_inventory(tiny_model_folder(tmp_path))
    recipe = recipe_of("model.adapter=full", "train.fp8={}", *words)
    trained = trainable(inventory, recipe.model.adapter)
    assert told in told_precision(recipe, inventory, trained, "bfloat16")
    assert "18 bytes per trained parameter; " in told_precision(recipe, inventory, trained, "bfloat16")
    assert computed(recipe, "bfloat16").startswith("bfloat16 and trained in fp8 by ")
    assert computed(recipe_of("model.adapter=full"), "bfloat16") == "bfloat16"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_machine_without_fp8_is_refused_with_what_works_there(device, monkeypatch):
    monkeypatch.setattr(products.torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(products.torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(MachineError) as caught:
        check_machine("exact", device, Fp8Config())
    found = caught.value.diagnostic
    assert found.code == "E372"
    assert [fix.set for fix in found.fixes] == [{"train.fp8": None}, {"train.fp8.emulate": True}]
    assert "bf16" in (found.fixes[0].effect or "")
    check_machine("exact", device, Fp8Config(emulate=True))
    check_machine("exact", device, None)
    monkeypatch.setattr(products.torch.cuda, "get_device_capability", lambda: (8, 9))
    if device == "cuda":
        check_machine("exact", device, Fp8Config())


@pytest.mark.parametrize(
    ("words", "dtype", "device", "code"),
    [
        (("model.adapter=full", "train.fp8.smallest=16"), "bfloat16", "cuda", None),
        (("model.adapter=full", "train.fp8.smallest=16"), "float32", "cuda", "E373"),
        (("model.adapter=full", "train.fp8.smallest=16"), "float16", "cuda", "E373"),
        (("model.adapter=full", "train.fp8.smallest=16", "train.fp8.emulate=true"), "float16", "cpu", "E373"),
        (("model.adapter=full", "train.fp8.smallest=16", "train.fp8.emulate=true"), "float32", "cpu", "W372"),
        (("model.adapter=full", "train.fp8={}"), "bfloat16", "cuda", "E375"),
        (("model.adapter={method: freeze, last: 0, names: [q_proj]}", "train.fp8.smallest=16"), "bfloat16", "cuda",
         "E375"),
        (("model.adapter=lora", "train.fp8={}"), "bfloat16", "cuda", "E374"),
        (("model.adapter=dora", "train.fp8={}"), "bfloat16", "cuda", "E374"),
        (("model.adapter=norms", "train.fp8={}"), "bfloat16", "cpu", "E374"),
    ],
)  # fmt: skip
def test_what_it_is_not_for_is_refused_and_every_fix_is_one(tmp_path, words, dtype, device, code):
    folder = tiny_model_folder(tmp_path)
    found = problems_of(folder, *words, dtype=dtype, device=device)
    assert code in ([None] if not found else [each.code for each in found])
    for problem in found:
        for fix in problem.fixes:
            changes = [f"{key}={'' if value is None else value}" for key, value in fix.set.items()]
            kind = fix.set.get("model.dtype", dtype)
            mended = problems_of(folder, *(word for word in words if word != "train.fp8={}"), *changes, dtype=kind,
                                 device=device)  # fmt: skip
            assert problem.code not in [each.code for each in mended]


def test_only_an_adapter_whose_base_may_be_in_8_bits_is_shown_that(tmp_path):
    folder = tiny_model_folder(tmp_path)
    sets = {
        method: [fix.set for fix in problems_of(folder, f"model.adapter={method}", "train.fp8={}")[0].fixes]
        for method in ("lora", "dora", "norms")
    }
    assert sets["lora"][1] == {"model.base_products": "fp8", "train.fp8": None}
    assert len(sets["dora"]) == len(sets["norms"]) == 1


def test_operands_of_the_largest_product_are_planned(tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path))
    adapter = recipe_of("model.adapter=full").model.adapter
    peaks = {
        name: estimate(
            inventory, trainable(inventory, adapter), adapter, Load(500, 100, "bfloat16", "cuda", fp8=settings)
        ).peak
        for name, settings in {
            "none": None,
            "small": Fp8Config(),
            "real": Fp8Config(smallest=16),
            "emulated": Fp8Config(smallest=16, emulate=True),
        }.items()
    }
    widest = max(2 * inventory.intermediate, inventory.query + 2 * inventory.key)
    operands = widest * inventory.hidden + 500 * (widest + inventory.hidden)
    assert peaks["none"] == peaks["small"]
    assert peaks["real"] - peaks["none"] == operands
    assert peaks["emulated"] - peaks["none"] == 5 * operands
