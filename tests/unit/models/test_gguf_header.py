import struct

import pytest

from tunesmith.errors import ModelError
from tunesmith.models.gguf_header import check_gguf, is_gguf


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors=1, entries=2, version=3, shape=(4, 2), offset=0, data=b"\0" * 64):
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, entries)
    settings = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    settings += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    infos = text("x.weight") + struct.pack("<I", len(shape))
    infos += b"".join(struct.pack("<Q", size) for size in shape) + struct.pack("<IQ", 0, offset)
    return head + settings + infos + data


def test_a_whole_header_passes(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(gguf())
    assert is_gguf(path)
    check_gguf(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"GGML" + gguf()[4:], "does not begin"),
        (gguf(version=1), "version 1"),
        (gguf(tensors=2**60), "are claimed"),
        (gguf(entries=2**60), "are claimed"),
        (gguf(shape=(2**40, 2**20)), "tensor 'x.weight'"),
        (gguf(offset=10**9), "lies outside"),
        (gguf(entries=3), "a name of"),
        (gguf(tensors=2, data=b""), "the file ends inside it"),
        (gguf()[:60], "the file ends"),
    ],
)
def test_f02_lengths_that_lie_are_refused_by_name(tmp_path, content, word):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=word):
        check_gguf(path)


def test_s21_arrays_are_bounded_and_names_stand_once(tmp_path):
    path = tmp_path / "m.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("t")
    path.write_bytes(head + struct.pack("<IIQ", 9, 0, 2_000_001) + bytes(2_000_001))
    with pytest.raises(ModelError, match="at most 2,000,000"):
        check_gguf(path)
    twice = (text("a") + struct.pack("<IB", 0, 1)) * 2
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + twice)
    with pytest.raises(ModelError, match="stands twice"):
        check_gguf(path)
