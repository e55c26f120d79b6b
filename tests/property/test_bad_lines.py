"""Mutated data files end in records or in an error that names file and line: never a traceback, never a hang."""

import gzip
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.config import Shape, SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.fix import fix_file, fixed_name
from tunesmith.errors import TunesmithError
from tunesmith.types import Kind

LINES = {
    "alpaca": {
        "instruction": 'Say "hi" [now] {x}',
        "input": "",
        "output": "caf\u00e9 \U0001f600\n",
        "history": [["a", "b"]],
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        "tools": "[]",
        "id": -1.5e3,
    },
    "prompt_completion": {"prompt": "a\\", "completion": "\u4e2d\u6587", "n": 1234567890, "ok": [True, False, None]},
    "text": {"text": 'tab\t quote" slash\\ \u0000 end', "deep": [[[[{"a": [{}]}]]]]},
}
SPICES = [
    b"\0",
    b"\xff",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"'",
    b",",
    b"//",
    b"{",
    b"}",
    b"[" * 70,
    b"\r",
    b"\n",
    b"\xef\xbb\xbf",
    b'"',
    b"\\",
]


def mutate(content: bytes, random: random.Random) -> bytes:
    """Flip, drop, insert, repeat or cut bytes, one to four times."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        action = random.randrange(6)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif action == 1:
            del changed[at : at + random.randint(1, 6)]
        elif action == 2:
            changed[at:at] = random.choice(SPICES)
        elif action == 3:
            changed[at:at] = changed[at : at + random.randint(1, 40)]
        elif action == 4:
            del changed[at:]
        elif at < len(changed):
            changed[at] = random.randrange(256)
    return bytes(changed)


JUDGED: dict[Kind, list[dict]] = {
    "pair": [
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "caf\u00e9", "rejected": [{"role": "assistant",
         "content": "b"}], "margin": 1.5},
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
         "rejected": {"from": "gpt", "value": "c"}, "tools": "[]"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"instruction": "a", "output": ["b", "c"], "score_chosen": 2, "score_rejected": 1},
    ],
    "feedback": [
        {"prompt": "a", "completion": "b", "label": True},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": "bad"},
    ],
    "ranking": [{"prompt": "a", "answers": ["b", ["c"], {"role": "assistant", "content": "d"}], "scores": [1, 2.5, -3]},
                {"prompt": "a", "responses": ["b", "c"], "ratings": [4, 4]}],
    "label": [{"text": "a", "label": "news"}, {"messages": [{"role": "user", "content": "a"}], "label": 0.5}],
    "process": [{"prompt": "a", "steps": [{"text": "b", "label": 1}, {"text": "c", "label": False}]}],
}  # fmt: skip


def survive(path: Path, shape: Shape = "auto", kind: Kind = "sequence") -> list[str]:
    """Read the file; every fault must name it and a line. Returns the codes."""
    begin = time.perf_counter()
    codes = []
    try:
        list(read_entries(SourceConfig(path=str(path), shape=shape), kind=kind))
    except TunesmithError as error:
        for found in error.diagnostics:
            assert found.where is not None
            assert found.where.file == str(path)
            assert found.where.line is not None
            assert found.where.line >= 1
            codes.append(found.code)
    assert time.perf_counter() - begin < 5  # a second each, on a machine with other work
    return codes


def test_d32_10000_mutated_lines(tmp_path, evidence):
    chance = random.Random(32)
    path = tmp_path / "a.jsonl"
    codes: Counter[str] = Counter()
    for shape, value in LINES.items():
        for index in range(50):
            good = json.dumps(value, ensure_ascii=index % 2 == 0).encode()
            path.write_bytes(b"\n".join([good, *(mutate(good, chance) for _ in range(40))]))
            codes.update(survive(path, shape))
    assert codes.keys() >= {
        "E030",
        "E033",
        "E034",
        "E035",
        "E036",
        "E037",
        "E038",
        "E039",
        "E048",
        "E049",
        "E051",
    }
    assert codes.total() > 3000
    told = f"10,000 lines, {codes.total():,} faults, each with file:line"
    evidence("D32", claim="mutated lines of data without a traceback", figure=told, seed=32)


@pytest.mark.parametrize("kind", JUDGED)
def test_d32_mutated_lines_of_records_that_judge(tmp_path, kind):
    chance = random.Random(kind)
    path = tmp_path / "a.jsonl"
    codes: Counter[str] = Counter()
    for value in JUDGED[kind]:
        good = json.dumps(value).encode()
        for _ in range(30):
            path.write_bytes(b"\n".join([good, *(mutate(good, chance) for _ in range(20))]))
            codes.update(survive(path, kind=kind))
            codes.update(survive(path, kind=chance.choice(list(JUDGED))))
    assert codes.keys() >= {"E030", "E048", "E210"}
    assert codes.total() > 300


def shuffled(value, chance: random.Random):
    """The same record with some of its parts exchanged for other kinds of values."""
    if chance.random() < 0.15:
        return chance.choice(
            [None, True, 0, -2.5, "", " ", "x", [], {}, ["x"], {"role": "user", "content": "y"}, "NaN"]
        )
    if isinstance(value, dict):
        return {key: shuffled(part, chance) for key, part in value.items() if chance.random() > 0.05}
    if isinstance(value, list):
        return [shuffled(part, chance) for part in value]
    return value


@pytest.mark.parametrize("kind", JUDGED)
def test_records_with_wrong_parts_are_read_or_refused_by_name(tmp_path, kind):
    chance = random.Random(f"{kind} parts")
    path = tmp_path / "a.jsonl"
    codes: Counter[str] = Counter()
    for value in JUDGED[kind] * 20:
        rows = [value, *(shuffled(value, chance) for _ in range(20))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if isinstance(row, dict)))
        codes.update(survive(path, kind=kind))
    assert codes.keys() >= {"E048", "E050"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.parquet"])
def test_d32_mutated_files(tmp_path, name):
    chance = random.Random(name)
    path = tmp_path / name
    lines = [json.dumps(LINES["prompt_completion"])] * 20
    contents = {
        "a.jsonl": "\n".join(lines).encode(),
        "a.json": f"[{', '.join(lines)}]".encode(),
        "a.csv": b'prompt,completion\n"a ""b"", c","d\ne"\nf,g\n' * 5,
        "a.txt": "some caf\u00e9\r\nlines\n".encode() * 20,
        "a.jsonl.gz": gzip.compress("\n".join(lines).encode()),
    }
    if name == "a.parquet":
        pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": [f"row {index}" for index in range(100)]}), path)
        contents[name] = path.read_bytes()
    codes = set()
    for _ in range(200):
        path.write_bytes(mutate(contents[name], chance))
        codes.add(tuple(survive(path)))
    assert len(codes) > 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_d32_any_bytes(tmp_path, content):
    for name in ("a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.txt"):
        (tmp_path / name).write_bytes(content)
        survive(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "text", "role", "content", "conversations", "from", "value", "tools"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_d32_any_json_value(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps(value) + "\n")
    survive(tmp_path / "a.jsonl")


def test_repair_survives_and_its_copy_is_valid_json(tmp_path):
    chance = random.Random(2)
    good = [json.dumps(value).encode() for value in LINES.values()]
    path = tmp_path / "a.jsonl"
    out = fixed_name(path)
    for index in range(600):
        path.write_bytes(mutate(good[index % len(good)], chance) + b"\n")
        try:
            fix_file(path, out)
        except TunesmithError:
            continue
        for line in out.read_bytes().split(b"\n"):
            if line.strip():
                json.loads(line)
        out.unlink()
