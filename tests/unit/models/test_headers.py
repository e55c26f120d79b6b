import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from tunesmith.errors import ModelError, Unsafe
from tunesmith.models.headers import TensorInfo, read_header, read_headers

TENSORS = {"a.weight": np.zeros((4, 3), np.float32), "b.weight": np.zeros((5,), np.float16)}


def one(folder, name="model.safetensors", tensors=TENSORS):
    path = folder / name
    save_file(tensors, str(path))
    return path


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def sharded(folder):
    one(folder, "model-00001-of-00002.safetensors", {"a.weight": TENSORS["a.weight"]})
    one(folder, "model-00002-of-00002.safetensors", {"b.weight": TENSORS["b.weight"]})
    weight_map = {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors",
    }
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return index, weight_map


def test_names_types_and_shapes_equal_what_was_saved(tmp_path):
    one(tmp_path)
    found = read_headers(tmp_path)
    assert found == {"a.weight": TensorInfo("F32", (4, 3)), "b.weight": TensorInfo("F16", (5,))}
    assert found["a.weight"].numel == 12
    assert found["a.weight"].nbytes == 48


def test_shards_are_read_as_one_model(tmp_path):
    sharded(tmp_path)
    assert set(read_headers(tmp_path)) == set(TENSORS)


def test_f02_a_truncated_file_names_file_and_tensor(tmp_path):
    path = one(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"model.safetensors, tensor b.weight.*truncated") as caught:
        read_headers(tmp_path)
    assert caught.value.diagnostic.code == "E082"


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}"])
def test_f02_empty_files_and_huge_headers_are_refused_without_reading_them(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="E082"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"a": ("F32", [2], [0, 8]), "b": ("F32", [1], [4, 8])}, "overlaps"),
        ({"a": ("F32", [1], [0, 4])}, "follow the last tensor"),
        ({"a": ("F32", [1], [4, 8])}, "hole"),
        ({"a": ("F32", [3], [0, 8])}, "does not fill"),
        ({"a": ("F32", [2**40, 2**40], [0, 8])}, "does not fill"),
        ({"a": ("X99", [2], [0, 8])}, "unknown type"),
        ({"a": ("F32", [-2], [0, 8])}, "whole numbers"),
        ({"a": ("F32", [2.0], [0, 8])}, "whole numbers"),
        ({"a": ("F32", [2], [8, 0])}, "end at byte"),
        ({"a": ("F32", [2], [0, 16])}, "truncated"),
    ],
)
def test_f02_offsets_that_lie_are_refused(tmp_path, entries, word):
    header = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in entries.items()}
    with pytest.raises(ModelError, match=word):
        read_header(raw(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff\xfe", b'{"a": 1}', b"[" * 100_000])
def test_f02_headers_that_are_no_object_are_refused(tmp_path, header):
    with pytest.raises(ModelError, match="E082"):
        read_header(raw(tmp_path / "x.safetensors", header))


def test_f04_missing_and_extra_shards_and_names_are_told_all_at_once(tmp_path):
    index, weight_map = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "stray.safetensors")
    index.write_text(json.dumps({"weight_map": {**weight_map, "c": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError) as caught:
        read_headers(tmp_path)
    text = "\n".join(caught.value.diagnostic.evidence)
    assert "missing shard model-00002-of-00002.safetensors" in text
    assert "stray.safetensors is not in the index" in text
    assert "model-00001-of-00002.safetensors lacks c" in text


def test_f04_an_index_never_leads_out_of_its_folder(tmp_path):
    index, _ = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(Unsafe, match="outside its folder"):
        read_headers(tmp_path)


def test_f01_a_pickle_named_safetensors_is_unsafe(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(Unsafe) as caught:
        read_headers(tmp_path)
    assert caught.value.exit_code == 9


def test_f01_a_folder_with_only_pickles_is_unsafe_whatever_they_are_called(tmp_path):
    (tmp_path / "weights.mdl").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(Unsafe, match=r"weights\.mdl"):
        read_headers(tmp_path)


def test_s21_a_header_that_would_fill_the_memory_is_refused_unread(tmp_path):
    for header, word in ((b"[" * 9_000_000, "is not a list of tensors"), (b" " * 10_000_001, "at most 10,000,000")):
        with pytest.raises(ModelError, match=word):
            read_header(raw(tmp_path / "x.safetensors", header))


def test_f02_a_type_that_is_a_list_is_refused(tmp_path):
    header = {"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}
    with pytest.raises(ModelError, match="unknown type"):
        read_header(raw(tmp_path / "x.safetensors", header, bytes(8)))
