"""Headers of safetensors and GGUF with bytes changed, cut or swollen: typed errors, quickly and in little memory."""

import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tests.unit.models.test_gguf_header import gguf

from tunesmith.errors import TunesmithError
from tunesmith.models.gguf_header import check_gguf
from tunesmith.models.headers import read_header

TENSORS = save({f"model.layers.{at}.weight": np.zeros((4, at + 1), np.float32) for at in range(6)})
SAFETENSORS_END = 8 + struct.unpack("<Q", TENSORS[:8])[0]
SPICES = (
    b"\xff" * 8,
    b"\0" * 8,
    b"[",
    b"{",
    b'"',
    b"-1",
    b"9" * 30,
    b"1e999",
    b"\\ud800",
    b"[" * 3000,
    b"GGUF",
    b"\x7f" * 7,
)


def mutated(content: bytes, end: int, chance: random.Random) -> bytes:
    """One to four changes before `end`, and sometimes a cut."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(end, len(changed)))
        action = chance.randrange(5)
        if action == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            changed[at] = chance.randrange(256)
        elif action == 2:
            changed[at:at] = chance.choice(SPICES)
        elif action == 3:
            del changed[at : at + chance.randint(1, 9)]
        else:
            changed[at : at + 8] = struct.pack("<Q", chance.choice([0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]))
    return bytes(changed[: chance.randint(0, len(changed))] if chance.random() < 0.2 else changed)


def attack(read: Callable[[Path], object], content: bytes, end: int, path: Path, count: int) -> Counter[str]:
    """How so many mutated files were read: `accepted`, or the code of the error."""
    chance, found = random.Random(21), Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path.write_bytes(mutated(content, end, chance))
        begin = time.process_time()
        try:
            read(path)
            found["accepted"] += 1
        except TunesmithError as error:
            found[error.diagnostic.code if len(str(error)) < 2000 else "too long a message"] += 1
        assert time.process_time() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kB
    return found


def read_safetensors(path: Path) -> None:
    """What our reader accepts, the library that loads the weights accepts as well."""
    read_header(path)
    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except SafetensorError as error:
        raise AssertionError(f"{error}: {path.read_bytes()!r}") from error


def run(folder: Path, count: int) -> int:
    path = folder / "a.safetensors"
    read_header_ok = attack(read_safetensors, TENSORS, SAFETENSORS_END, path, count)
    walked = attack(check_gguf, gguf(), len(gguf()), folder / "a.gguf", count)
    for found in (read_header_ok, walked):
        assert found["E082"] > count / 2
        assert found["accepted"] > 0
        assert set(found) <= {"accepted", "E082", "E085"}
    return 2 * count


@pytest.mark.row("S21", "F2")
def test_some_mutated_headers(tmp_path):
    run(tmp_path, 300)


@pytest.mark.row("S21", "F2")
@pytest.mark.nightly
def test_five_thousand_mutated_headers_of_each(tmp_path, evidence):
    figure = run(tmp_path, 5000)
    evidence(
        "S21", claim="mutated headers with typed errors only, each in 1 s and 200 MB", figure=f"{figure:,}", seed=21
    )
