"""Weights that are not what config.json says, or that hold no numbers: told by name and count, never made up."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hostile import copy, tunesmith
from tests.tiny import tiny_model_folder

from tunesmith.data.probes import check_template
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.models.adapter_settings import is_quick, read_settings
from tunesmith.models.adapters import save_adapter
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.finite import check_finite
from tunesmith.models.inventory import take_inventory
from tunesmith.models.load import load_base, load_model
from tunesmith.models.safety import read_config
from tunesmith.models.tensors import read_tensors
from tunesmith.models.trained_on import check_base, fingerprint, mark_base
from tunesmith.vocabulary import find_added

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("told") / "good")


def changed(good, folder, change, **config):
    copy(good, folder, **config)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(folder, code):
    with pytest.raises(ModelError) as caught:
        load_base(folder, ModelConfig(path=str(folder)))
    assert caught.value.diagnostic.code == code, caught.value
    assert caught.value.exit_code == 4
    return caught.value.diagnostic


def test_f05_a_misspelt_tensor_is_told_with_the_name_it_is_near_to(good, tmp_path):
    def misspell(tensors):
        tensors[UP.replace("up_proj", "upp_proj")] = tensors.pop(UP)

    told = refused(changed(good, tmp_path / "m", misspell), "E081")
    assert "1 tensors are missing, 1 unknown, 0 of another shape" in told.message
    near = UP.replace("up_proj", "upp_proj")
    assert told.evidence == (f"missing {UP}; near to {near}", f"unknown {near}; near to {UP}")


def test_f05_twenty_names_of_many_are_listed(good, tmp_path):
    found = refused(
        changed(good, tmp_path / "m", lambda tensors: [tensors.pop(key) for key in list(tensors)[:-1]]), "E081"
    )
    assert 0 < len(found.evidence) <= 20


def test_f05_another_shape_is_told_with_both(good, tmp_path):
    def reshape(tensors):
        tensors[UP] = torch.zeros(3, 5)

    told = refused(changed(good, tmp_path / "m", reshape), "E081")
    assert told.evidence == (f"mis-shaped {UP}: [3, 5] in the file, [128, 64] by config.json",)


def test_f06_numbers_that_are_none_are_counted_per_tensor(good, tmp_path):
    def spoil(tensors):
        tensors[UP][0, :3] = float("nan")
        tensors["model.norm.weight"][0] = float("-inf")

    told = refused(changed(good, tmp_path / "m", spoil), "E511")
    assert "4 numbers that are NaN or Inf, in 2 tensors" in told.message
    assert f"{UP}: 3 NaN and 0 Inf of 8,192" in told.evidence
    assert "model.norm.weight: 0 NaN and 1 Inf of 64" in told.evidence


@pytest.mark.row("F6")
@pytest.mark.parametrize(
    "words", [["chat", "M", "--prompt", "hi"], ["export", "M", "OUT"], ["eval", "M", "--data", "D"]]
)
def test_every_use_of_such_weights_stops_at_them(good, tmp_path, words):
    folder = changed(good, tmp_path / "m", lambda tensors: tensors[UP].fill_(float("inf")))
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    places = {"M": folder, "OUT": tmp_path / "out", "D": data}
    done = tunesmith(*(places.get(word, word) for word in words))
    assert (done.code, "E511" in done.text) == (4, True), done


@pytest.mark.row("F6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_finite_numbers_are_no_false_alarm(tmp_path, dtype):
    big = torch.full((70_000,), 60_000.0).to(dtype)
    assert not torch.isfinite(big.to(torch.float16).sum())
    check_finite([("big", big), ("whole", torch.ones(3, dtype=torch.int64))], tmp_path)
    big[7] = float("nan")
    with pytest.raises(ModelError, match=r"1 numbers"):
        check_finite([("big", big)], tmp_path)


@pytest.mark.row("F6")
def test_adapters_with_nan_are_refused(tmp_path):
    save_file({"a.lora_A.weight": torch.tensor([float("nan")])}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="E511"):
        read_tensors(tmp_path / "adapter_model.safetensors")


def test_f07_another_number_of_layers_is_told_when_loading_too(good, tmp_path):
    assert (
        "says 3 layers, the weights hold 2" in refused(copy(good, tmp_path / "m", num_hidden_layers=3), "E081").message
    )


def test_f07_an_unknown_architecture_is_told_with_the_near_name(good, tmp_path):
    told = refused(copy(good, tmp_path / "m", model_type="lama"), "E510")
    assert "llama" in told.fixes[0].label
    assert "types are known" in told.evidence[0]


@pytest.mark.row("F7", "F8", "S7")
@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("hidden_act", "evil", "E080"),
        ("rope_parameters", {"rope_type": "evil"}, "E080"),
        ("to_dict", 1, "E084"),
        ("from_pretrained", "x", "E084"),
        ("id2label", "x", "E084"),
        ("pad_token_id", "x", "E084"),
        ("eos_token_id", {"a": 1}, "E084"),
        ("head_dim", 7, "E084"),
        ("layer_types", ["evil", "evil"], "E084"),
        ("dtype", "load", "E084"),
        ("torch_dtype", ["float32"], "E084"),
        ("num_attention_heads", 10**9, "E084"),
        ("num_local_experts", 10**9, "E084"),
        ("num_hidden_layers", 10**9, "E084"),
    ],
)
def test_values_that_no_model_can_have_are_told(good, tmp_path, key, value, code):
    refused(copy(good, tmp_path / "m", **{key: value}), code)


@pytest.mark.row("F7", "F9")
@pytest.mark.parametrize("size", ["vocab_size", "hidden_size", "intermediate_size"])
def test_a_size_of_a_terabyte_takes_no_memory(good, tmp_path, size):
    assert refused(copy(good, tmp_path / "m", **{size: 2**33}), "E081").evidence[0].startswith("mis-shaped")


def test_f09_another_number_of_rows_is_told_with_both_before_anything_loads(good, tmp_path):
    rows = json.loads((good / "config.json").read_text())["vocab_size"]
    with pytest.raises(ModelError) as caught:
        take_inventory(copy(good, tmp_path / "m", vocab_size=999))
    assert caught.value.diagnostic.message == f"config.json says 999 tokens, the embedding has {rows} rows"
    assert f'"vocab_size": {rows}' in caught.value.diagnostic.fixes[0].label


def add_token(folder, id, content="<zz>"):
    path = folder / "tokenizer.json"
    source = json.loads(path.read_text())
    rules = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    source["added_tokens"].append({"id": id, "content": content, "special": True, **rules})
    path.write_text(json.dumps(source))
    return folder


def test_f09_an_added_token_without_a_row_stays_text(good, tmp_path):
    rows = json.loads((good / "config.json").read_text())["vocab_size"]
    folder = add_token(copy(good, tmp_path / "m"), rows)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.rowless == ("<zz>",)
    ids = tokenizer.encode("a <zz> b", specials=True)
    assert max(ids) < rows
    assert tokenizer.decode(ids) == "a <zz> b"
    told = check_template(tokenizer)[0]
    assert (told.code, "'<zz>'" in told.evidence[0]) == ("W510", True)
    assert find_added(folder, ["<new>"]).ids == (load_tokenizer(folder, ["<new>"]).vocabulary()["<new>"],) == (rows,)
    assert load_tokenizer(good).rowless == ()


def test_f09_a_tokenizer_larger_than_the_model_is_refused(good, tmp_path):
    with pytest.raises(ModelError, match=r"E515.*has 50 rows"):
        load_tokenizer(copy(good, tmp_path / "m", vocab_size=50))


@pytest.mark.row("F10", "S21")
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"model": 1}', '{"model": {"vocab": [1]}, "added_tokens": [1]}']
)
def test_a_tokenizer_that_is_none_is_told(good, tmp_path, content):
    folder = copy(good, tmp_path / "m")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="E066"):
        load_tokenizer(folder)


@pytest.fixture(scope="module")
def adapter(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told") / "adapter"
    model = load_model(good, ModelConfig(path=str(good), adapter=LoraConfig(rank=2)))
    save_adapter(model, folder, str(good))
    mark_base(folder, good)
    return folder


def test_f15_an_adapter_of_another_base_of_the_same_shape_is_refused(good, adapter, tmp_path):
    other = tiny_model_folder(tmp_path / "other", seed=1)
    assert fingerprint(other) != fingerprint(good) == fingerprint(copy(good, tmp_path / "moved"))
    check_base(adapter, tmp_path / "moved")
    for settings in (ModelConfig(path=str(other), adapter_path=str(adapter)),):
        with pytest.raises(ModelError) as caught:
            load_model(other, settings)
    assert (caught.value.diagnostic.code, caught.value.exit_code) == ("E514", 4)
    assert caught.value.diagnostic.fixes[0].set == {"model.path": str(good)}
    load_model(tmp_path / "moved", ModelConfig(path=str(tmp_path / "moved"), adapter_path=str(adapter)))


@pytest.mark.row("F15")
def test_one_tensor_that_differs_is_another_base(good, adapter, tmp_path):
    other = changed(good, tmp_path / "m", lambda tensors: tensors["model.norm.weight"].add_(1))
    with pytest.raises(ModelError, match="E514"):
        check_base(adapter, other)


@pytest.mark.row("F8", "S8")
def test_settings_of_an_adapter_are_read_without_what_fetches_or_imports(adapter, tmp_path):
    folder = copy(adapter, tmp_path / "a")
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    hostile = {
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"},
        "megatron_config": {"a": 1},
        "megatron_core": "evil.core",
        "tokenizer_kwargs": {"trust_remote_code": True},
        "tokenizer_name_or_path": "owner/evil",
        "_custom": 1,
        "auto_map": {},
    }
    path.write_text(json.dumps({**settings, **hostile}))
    assert read_settings(folder) == {key: value for key, value in settings.items() if key not in hostile}


@pytest.mark.row("S22", "F8")
def test_patterns_of_an_adapter_cannot_run_long(good, adapter, tmp_path):
    slow = "(a+)+$"
    assert [is_quick(one) for one in ("q_proj", r"^model\.layers\.\d+\.q_proj$", ".*q", slow, "a*a*", ".*.*.*.*b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    folder = copy(adapter, tmp_path / "a")
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    for key, value in (("rank_pattern", {slow: 3}), ("modules_to_save", [slow]), ("exclude_modules", slow)):
        path.write_text(json.dumps({**settings, key: value}))
        done = tunesmith("chat", folder, "--prompt", "hi")
        assert (done.code, "E513" in done.text) == (9, True), done
    path.write_text(json.dumps({**settings, "target_modules": rf"(.*\.)*({slow}|\w+_proj)"}))
    assert "model.layers.0.self_attn.q_proj" in read_settings(folder)["target_modules"]
    load_model(good, ModelConfig(path=str(good), adapter_path=str(folder)))


def test_s07_text_of_a_config_is_never_run(good, tmp_path):
    with pytest.raises(ModelError, match="E084"):
        read_config(copy(good, tmp_path / "m", model_type="llama\nimport os; os.system('true')"))
