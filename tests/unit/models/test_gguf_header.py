import struct

import pytest

from tunesmith.errors import ModelError
from tunesmith.models.gguf_header import check_gguf, is_gguf


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def info(name, offset, shape=(4, 2), kind=0):
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def of_tensors(*infos, data):
    return b"GGUF" + struct.pack("<IQQ", 3, len(infos), 0) + b"".join(infos) + data


SPANS = {
    "the same bytes": ([info("a", 0), info("b", 0)], 64, "'b': its bytes belong to another tensor too"),
    "one byte shared": ([info("b", 31), info("a", 0)], 64, "'b': its bytes belong to another tensor too"),
    "past the end": ([info("a", 0), info("b", 32)], 63, "'b': it ends 64 bytes after the header; the file has 63"),
    "two thousand on one": ([info(f"t{index}", 0) for index in range(2000)], 32, "belong to another tensor too"),
    "a type that is none": ([info("a", 0, kind=999)], 64, "unknown type 999"),
    "rows cut in a block": ([info("a", 0, (33, 1), 8)], 64, "rows of 33 weights, which are stored 32 together"),
}


@pytest.mark.row("S21")
@pytest.mark.parametrize(("infos", "bytes", "told"), SPANS.values(), ids=SPANS)
def test_no_byte_belongs_to_two_tensors(tmp_path, infos, bytes, told):
    path = tmp_path / "m.gguf"
    path.write_bytes(of_tensors(*infos, data=b"\0" * bytes))
    with pytest.raises(ModelError, match="E082") as caught:
        check_gguf(path)
    assert told in caught.value.diagnostic.message


def test_tensors_side_by_side_pass(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(of_tensors(info("a", 32), info("b", 0), info("q", 64, (64,), 8), data=b"\0" * 132))
    check_gguf(path)


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
