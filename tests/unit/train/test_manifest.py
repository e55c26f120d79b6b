"""Manifests that somebody changed and sealed again."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tunesmith.errors import CheckpointError, ModelError
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Part
from tunesmith.train.manifest import seal


def _save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, {"model": {"weight": torch.ones(3)}}, {"step": step}, own=Part({"g": torch.ones(2)}, {"r": 1}))


def _reseal(folder: Path, old: str, new: str) -> None:
    """Change a manifest, and seal it as one who means harm would."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    del body["checksum"]
    text = json.dumps(body, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
    assert old in text
    text = text.replace(old, new)
    try:
        sealed = seal(json.loads(text))
    except ValueError:  # what no writer of ours can spell
        at = text.index(' "config"')
        checksum = hashlib.sha256(text.encode()).hexdigest()
        sealed = f'{text[:at]} "checksum": "{checksum}",\n{text[at:]}'
    path.write_text(sealed)


MISSHAPED = {
    "NaN": ('"step": 2,', '"step": NaN,', "it is not JSON"),
    "a number of 5,000 digits": ('"step": 2,', f'"step": {"9" * 5000},', "it is not JSON"),
    "no number": ('"step": 2,', '"step": [2],', "step is no whole number"),
    "files that are a list": ('"files": {', '"files": [], "more": {', "files does not give each a size"),
    "an entry that is a text": ('"files": {', '"files": {"a": "b",', None),
    "another format": ('"format": 1', '"format": 2', "its format is 2"),
    "no state": ('"state.json"', '"other.json"', "it lists no state.json"),
    "no part of a rank": ('"rank0.json"', '"rank1.json"', "it lists no rank0.json"),
    "ranks without end": ('"ranks": 1', '"ranks": 1000000000', "how many ranks"),
    "versions that are a list": ('"versions": {', '"versions": [], "more": {', "versions does not"),
}


@pytest.mark.row("R6")
@pytest.mark.parametrize(("old", "new", "told"), MISSHAPED.values(), ids=MISSHAPED)
def test_a_sealed_manifest_that_is_none_is_skipped(tmp_path, old, new, told):
    store = CheckpointStore(tmp_path, keep=3)
    _save(store, 1, 2)
    _reseal(tmp_path / "step-2", old, new)
    checkpoint = store.newest()
    assert checkpoint is not None
    assert (checkpoint.step, [each.code for each in checkpoint.skipped]) == (1, ["W110"])
    assert (told or "manifest.json") in checkpoint.skipped[0].message
    _save(store, 3)  # its size, and what is to be removed, are asked of the others
    newest = store.newest()
    assert newest is not None
    assert (newest.step, newest.state) == (3, {"step": 3})


def _replace(path: Path, content: bytes) -> None:
    """Put another file in place of one, and seal the manifest that lists it."""
    path.write_bytes(content)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["files"][path.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path.parent / "manifest.json").write_text(seal(manifest))


@pytest.mark.row("R6")
@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000], ids=["list", "cut", "deep"])
@pytest.mark.parametrize("name", ["state.json", "rank0.json"])
def test_a_sealed_state_that_is_no_object_is_told(tmp_path, name, content):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    folder = tmp_path / "step-1"
    _replace(folder / name, content.encode())
    with pytest.raises(CheckpointError, match=f"checkpoint step-1: {name} (is not JSON|holds no object)") as caught:
        store.at(1).part(0)
    assert caught.value.diagnostic.code == "E111"


@pytest.mark.row("R6", "S21")
@pytest.mark.parametrize(
    "header", [b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}']
)
def test_a_sealed_file_of_tensors_that_is_none_is_told(tmp_path, header):
    store = CheckpointStore(tmp_path)
    _save(store, 1)
    _replace(tmp_path / "step-1" / "model.safetensors", len(header).to_bytes(8, "little") + header + bytes(4))
    checkpoint = store.at(1)
    for read in (checkpoint.tensors, checkpoint.stored):
        with pytest.raises(ModelError, match=r"E082.*model\.safetensors"):
            read("model")
