"""TensorBoard event files, read back by a parser of their own and by the official one where it is installed."""

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.track.tensorboard import EventFile, crc32c, frame, masked_crc

CHECK = 0xE3069283  # CRC-32C of "123456789": https://reveng.sourceforge.io/crc-catalogue/all.htm


def test_crc32c_has_the_published_check_value():
    assert crc32c(b"123456789") == CHECK
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def records(content: bytes) -> list[bytes]:
    """The records of a TFRecord file; a torn one at the end is left out, a wrong checksum is an AssertionError."""
    found = []
    while len(content) >= 12:
        (length,) = struct.unpack_from("<Q", content)
        if len(content) < 16 + length:
            break
        body = content[12 : 12 + length]
        assert struct.unpack_from("<I", content, 8)[0] == masked_crc(content[:8])
        assert struct.unpack_from("<I", content, 12 + length)[0] == masked_crc(body)
        found.append(body)
        content = content[16 + length :]
    return found


def fields(message: bytes) -> list[tuple[int, object]]:
    """Field numbers and raw values of a protobuf message."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(message):
        key = varint()
        match key & 7:
            case 0:
                value: object = varint()
            case 1:
                value, at = struct.unpack_from("<d", message, at)[0], at + 8
            case 5:
                value, at = struct.unpack_from("<f", message, at)[0], at + 4
            case 2:
                length = varint()
                value, at = message[at : at + length], at + length
            case other:
                raise AssertionError(other)
        found.append((key >> 3, value))
    return found


def points(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by tag as a reader shows them: files by name, a session start drops its step and later ones."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        for body in records(file.read_bytes()):
            event = dict(fields(body))
            if event.get(7) == b"\x08\x01":
                found = {tag: {s: v for s, v in each.items() if s < event[2]} for tag, each in found.items()}
            for number, value in fields(event.get(5, b"")):
                assert number == 1
                scalar = dict(fields(value))
                found.setdefault(scalar[1].decode(), {})[event[2]] = scalar[2]
    return found


def write_two_attempts(folder: Path) -> None:
    first = EventFile(folder, 1)
    for step in range(1, 81):
        first.write(step, {"train/loss": 1.0, "train/lr": step / 1000})
    first.close()
    torn = first.path.read_bytes()
    first.path.write_bytes(torn[:-7])
    second = EventFile(folder, 2)
    second.resume(61)
    for step in range(61, 121):
        second.write(step, {"train/loss": 2.0, "train/lr": step / 1000})
    second.close()


def test_a_resumed_run_shows_120_of_120_points(tmp_path):
    write_two_attempts(tmp_path / "tb")
    found = points(tmp_path / "tb")
    assert sorted(found) == ["train/loss", "train/lr"]
    assert list(found["train/loss"]) == list(range(1, 121))
    assert list(found["train/loss"].values()) == [1.0] * 60 + [2.0] * 60
    assert found["train/lr"][77] == pytest.approx(0.077)


def test_the_official_reader_shows_120_of_120_points(tmp_path):
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the package tensorboard is not installed"
    )
    write_two_attempts(tmp_path / "tb")
    reader = module.EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    reader.Reload()
    shown = reader.Scalars("train/loss")
    assert [each.step for each in shown] == list(range(1, 121))
    assert [each.value for each in shown] == [1.0] * 60 + [2.0] * 60


def test_attempts_sort_by_number_and_never_share_a_file(tmp_path):
    names = [EventFile(tmp_path, attempt).path.name for attempt in (1, 2, 2, 10)]
    assert len(set(names)) == 4
    assert sorted(names) == names
    assert all("tfevents" in name for name in names)


def test_the_first_record_is_the_version(tmp_path):
    file = EventFile(tmp_path, 1)
    (body,) = records(file.path.read_bytes())
    assert dict(fields(body))[3] == b"brain.Event:2"


@given(st.integers(0, 2**62), st.dictionaries(st.text(max_size=12), st.floats(), max_size=5))
def test_any_scalars_read_back_as_single_precision(tmp_path_factory, step, values):
    file = EventFile(tmp_path_factory.mktemp("tb"), 1)
    file.write(step, {name.encode("utf-8", "replace").decode(): value for name, value in values.items()})
    file.close()
    found = points(file.path.parent)
    for name, each in found.items():
        (value,) = each.values()
        assert list(each) == [step]
        original = values.get(name)
        if original is None or math.isnan(original):
            continue
        near = abs(value - original) <= max(abs(original) * 1e-6, 1e-45)
        assert near or (math.isinf(value) and (math.isinf(original) or abs(original) > 3.4e38))


def test_a_changed_byte_is_found_by_the_checksum():
    good = frame(b"hello")
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        try:
            assert records(bad) == []  # a changed length may run past the end
        except AssertionError:
            continue
