"""Thirty-two bad files, each refused by the command line with its name and the line of the fault."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.hostile import tunesmith
from tests.tiny import tiny_model_folder

GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
CHAT = '{"messages": [{"role": "%s", "content": %s}, {"role": "assistant", "content": %s}]}\n'


def line(fault: str, before: int = 2) -> Callable[[Path], int]:
    """A file whose fault is on the line after so many good ones."""
    return content((GOOD * before + fault).encode(), before + 1)


def content(whole: bytes, at: int = 1) -> Callable[[Path], int]:
    def write(path: Path) -> int:
        path.write_bytes(whole)
        return at

    return write


def parquet(path: Path) -> int:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a" * 50] * 100}), path)
    path.write_bytes(path.read_bytes()[:-30])
    return 1


def long_line(path: Path) -> int:
    with path.open("wb") as file:
        file.write(GOOD.encode() + b'{"text": "')
        file.seek(64 * 2**20)
        file.write(b'"}\n')
    return 2


def bomb(path: Path) -> int:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write(b"\n" * 2**20)
    return 1


# Name of the file -> what writes it and returns the line of its fault; the exit code is 4, of the bomb 9.
CORPUS: dict[str, Callable[[Path], int]] = {
    "truncated.jsonl": line('{"messages": [{"role": "user", "content": "wh'),
    "comma.jsonl": line('{"text": "a",}\n'),
    "quotes.jsonl": line("{'text': 'a'}\n"),
    "comment.jsonl": line('{"text": "a"} // note\n'),
    "two.jsonl": line(GOOD.strip() + " " + GOOD),
    "list.jsonl": line('[{"text": "a"}]\n'),
    "scalar.jsonl": line('"text"\n'),
    "duplicate.jsonl": line('{"text": "a", "text": "b"}\n'),
    "nan.jsonl": line(GOOD.replace("}\n", ', "score": NaN}\n')),
    "infinite.jsonl": line(GOOD.replace("}\n", ', "score": 1e999}\n')),
    "digits.jsonl": line(GOOD.replace("}\n", f', "id": {"7" * 5000}' + "}\n")),
    "missing.jsonl": line('{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}\n'),
    "null.jsonl": line(CHAT % ("user", "null", '"a"')),
    "number.jsonl": line(CHAT % ("user", "7", '"a"')),
    "changed.jsonl": line('{"messages": "q"}\n', 3000),
    "role.jsonl": line(CHAT % ("asistant", '"q"', '"a"')),
    "empty-turn.jsonl": line(CHAT % ("user", '"q"', '""')),
    "order.jsonl": line('{"messages": [{"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}]}\n'),
    "empty.jsonl": content(b""),
    "blank.jsonl": content(b"\n \n\r\n"),
    "bytes.jsonl": content(GOOD.encode() + b'{"text": "caf\xc3\x28"}\n', 2),
    "utf16.jsonl": content(GOOD.encode("utf-16")),
    "latin1.jsonl": content(GOOD.encode() + '{"text": "naïve café"}\n'.encode("latin-1"), 2),
    "nul.jsonl": content(GOOD.encode() + b'{"text": "a\0b"}\n', 2),
    "surrogate.jsonl": line('{"text": "\\ud83d"}\n'),
    "long.jsonl": long_line,
    "deep.jsonl": line('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
    "cut.jsonl.gz": content(gzip.compress(GOOD.encode() * 50, mtime=0)[:-9], 51),
    "bomb.jsonl.gz": bomb,
    "page.jsonl": content(b"<!DOCTYPE html><title>404</title>"),
    "cut.parquet": parquet,
    "ragged.csv": content(b"prompt,completion\na,b\nc\n", 3),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("corpus") / "model")


@pytest.mark.row("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D11", "D14", "D16", "D17", "D18")
@pytest.mark.row("D19", "D20", "D21", "D22", "D23", "D24")
def test_thirty_two_bad_files_are_named_with_their_line(tmp_path, model, evidence):
    assert len(CORPUS) == 32
    named = []
    for name, write in CORPUS.items():
        path = tmp_path / name
        at = write(path)
        if "parquet" not in name and not name.endswith(".gz"):
            assert path.stat().st_size == 0 or at <= path.read_bytes().count(b"\n") + 1
        done = tunesmith("data", "check", "sft", f"data.train={path}", f"model.path={model}")
        assert done.code == (9 if "bomb" in name else 4), (name, done)
        assert "E029" not in done.text
        assert "Traceback" not in done.text
        assert len(done.text) < 5000, name
        places = re.findall(rf"--> {re.escape(str(path))}:(\d+)", done.text.replace("\n", ""))
        assert str(at) in places, (name, at, done.text)
        named.append(name)
    evidence("D1", "D16", "D21", claim="bad data files named with their line", figure=f"{len(named)} of 32")


@pytest.mark.row("D7", "D8")
def test_the_same_faults_are_told_as_json(tmp_path, model):
    at = CORPUS["role.jsonl"](tmp_path / "role.jsonl")
    done = tunesmith("train", "sft", f"data.train={tmp_path / 'role.jsonl'}", f"model.path={model}", "--json")
    told = json.loads(done.text.splitlines()[-1])["error"]
    assert (done.code, told["where"]["line"]) == (4, at)
    assert told["where"]["file"].endswith("role.jsonl")
