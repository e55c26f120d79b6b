"""What could let code in is off by a literal at every call, and no setting of a recipe turns it on."""

import ast
from functools import cache

import pytest
from tests.house.source import ROOT, python_files, tree

from tunesmith.configuring.catalogue import stored_schema
from tunesmith.errors import UsageError
from tunesmith.recipe import load_recipe

DANGEROUS = ("trust_remote_code", "allow_pickle", "weights_only", "use_safetensors")
READERS = ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "shelve.open",
           "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.safe_load", "marshal.loads", "marshal.load",
           "tarfile.open", "shutil.unpack_archive")  # fmt: skip


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Place, name and node of every call."""
    return list(every_call())


def every_call():
    for path in python_files("src"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_s06_every_option_that_lets_code_in_is_a_literal():
    found = 0
    for place, _, node in calls():
        for keyword in node.keywords:
            if keyword.arg in DANGEROUS:
                wanted = keyword.arg in ("weights_only", "use_safetensors")
                assert isinstance(keyword.value, ast.Constant), place
                assert keyword.value.value is wanted, place
                found += 1
    assert found >= 4


def test_s06_every_folder_that_transformers_reads_is_read_without_remote_code():
    read = []
    for place, name, node in calls():
        if name.endswith(".from_pretrained") and ("Auto" in name or name.startswith("factory")):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "trust_remote_code" in given, place
            read.append(place)
    assert read


@pytest.mark.row("S2", "S9", "S12")
def test_nothing_reads_a_pickle_or_a_yaml_that_builds_objects():
    assert [(place, name) for place, name, _ in calls() if name in READERS] == []


@pytest.mark.row("S5", "S6")
@pytest.mark.parametrize("value", ["null", "0", "", "false", "true", "'no'", "[]"])
@pytest.mark.parametrize("key", ["model.trust_remote_code", "trust_remote_code", "model.allow_pickle"])
def test_no_recipe_can_let_code_in(key, value):
    with pytest.raises(UsageError) as caught:
        load_recipe("sft", [f"{key}={value}", "data.train=x.jsonl"], {})
    assert caught.value.diagnostic.code == "E010"
    assert key.rpartition(".")[2] not in str(stored_schema())
