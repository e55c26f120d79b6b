import json
from pathlib import Path

import pytest

from tunesmith.data.canonical import to_record
from tunesmith.data.config import SourceConfig
from tunesmith.data.conversion import Wish, alike, convert_file, default_out
from tunesmith.data.entries import read_entries
from tunesmith.data.fix import fix_file
from tunesmith.data.formats import convert, recognise
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, UsageError
from tunesmith.types import (
    Completion,
    Conversation,
    Document,
    Feedback,
    Labelled,
    Message,
    Pair,
    Process,
    Ranking,
    Record,
)

ASK = {"role": "user", "content": "Hi"}


def say(text):
    return [{"role": "assistant", "content": text}]


def converted(tmp_path, rows, target, *, columns=None, on_bad="error", **wish):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = SourceConfig(path=str(path), columns=columns or {})
    report = convert_file(source, out, Wish(target, **wish), Tally(on_bad), force=True)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert report.written == len(found)
    assert report.to_json()["left_out"].keys() == {reason for reason, count in report.left_out.items() if count}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    return found, report.to_json()["left_out"]


RANKING = {"prompt": [ASK], "answers": ["a", "b", "c", "d"], "scores": [4, 1, 4, 2.5]}


def test_rankings_become_pairs_with_the_margin_of_their_scores(tmp_path):
    found, left_out = converted(tmp_path, [RANKING], "pairs")
    texts = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["margin"]) for pair in found]
    assert texts == [("a", "d", 1.5), ("a", "b", 3.0), ("c", "d", 1.5), ("c", "b", 3.0), ("d", "b", 1.5)]
    assert left_out == {"ties": 1}
    found, left_out = converted(tmp_path, [RANKING], "pairs", margin=2.0)
    assert (len(found), left_out) == (2, {"ties": 1, "closer than the margin 2": 3})
    found, left_out = converted(tmp_path, [RANKING], "pairs", which="adjacent")
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in found] == [
        ("c", "d"),
        ("d", "b"),
    ]
    found, left_out = converted(tmp_path, [RANKING], "pairs", which="best-worst")
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in found] == [("a", "b")]
    plain = {"prompt": "q", "answers": ["a", "b", "c"]}
    found, left_out = converted(tmp_path, [plain], "pairs")
    assert found[0] == {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert (len(found), left_out) == (3, {})


def test_pairs_become_feedback_rankings_and_answers_to_learn(tmp_path):
    rows = [
        {"instruction": "Hi", "chosen": "a", "rejected": "b", "margin": 2},
        {"instruction": "Hi", "chosen": "c", "rejected": " c"},
    ]
    found, left_out = converted(tmp_path, rows, "feedback")
    assert found == [
        {"prompt": [ASK], "completion": say("a"), "label": True},
        {"prompt": [ASK], "completion": say("b"), "label": False},
    ]
    assert left_out == {"answers equal or rated alike": 1}
    found, _ = converted(tmp_path, rows, "rankings")
    assert found == [{"prompt": [ASK], "answers": [say("a"), say("b")], "scores": [2.0, 0.0]}]
    found, left_out = converted(tmp_path, rows, "sft")
    assert found == [{"prompt": [ASK], "completion": say("a")}, {"prompt": [ASK], "completion": say("c")}]
    assert left_out == {}
    found, left_out = converted(tmp_path, rows[:1] * 2 + [{**rows[0], "margin": 0.5}], "pairs", margin=1)
    assert (len(found), left_out) == (2, {"closer than the margin 1": 1})


def test_feedback_becomes_pairs_by_prompt_and_counts_the_unmatched(tmp_path):
    rows = [
        {"prompt": prompt, "completion": answer, "label": label}
        for prompt, answer, label in [
            ("p", "good 1", True), ("q", "lonely", True), ("p", "bad 1", False), ("p", "bad 2", False),
            ("p", "bad 3", False), ("p", "good 2", True), ("r", "lonely too", False),
            ("s", "x", True), ("s", "x", False),
        ]
    ]  # fmt: skip
    found, left_out = converted(tmp_path, rows, "pairs")
    assert found == [
        {"prompt": "p", "chosen": "good 1", "rejected": "bad 1"},
        {"prompt": "p", "chosen": "good 2", "rejected": "bad 2"},
    ]
    assert left_out == {
        "good answers without a bad one": 1,
        "bad answers without a good one": 2,
        "equal answers": 1,
    }
    found, left_out = converted(tmp_path, rows, "rankings")
    assert found[0]["answers"] == ["good 1", "good 2", "bad 1", "bad 2", "bad 3"]
    assert found[0]["scores"] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert left_out == {"good answers without a bad one": 1, "bad answers without a good one": 1}
    found, left_out = converted(tmp_path, rows, "sft")
    assert (len(found), left_out) == (4, {"bad answers": 5})
    assert converted(tmp_path, rows, "feedback")[0] == rows


def test_rankings_become_feedback_and_answers_to_learn(tmp_path):
    found, left_out = converted(tmp_path, [RANKING], "feedback")
    assert [(row["completion"][0]["content"], row["label"]) for row in found] == [("a", True), ("b", False)]
    assert left_out == {"answers between the best and the worst": 2}
    assert converted(tmp_path, [RANKING], "sft")[0] == [{"prompt": [ASK], "completion": say("a")}]
    tied = {**RANKING, "scores": [1, 1, 1, 1]}
    assert converted(tmp_path, [RANKING, tied], "rankings")[1] == {"answers equal or rated alike": 1}


def test_what_is_learned_after_a_conversion_is_the_answer_alone(tmp_path):
    turns = [ASK, *say("earlier"), ASK]
    found, _ = converted(tmp_path, [{"prompt": turns, "chosen": "a", "rejected": "b"}], "sft")
    record = Record(found[0], "f", 1)
    entry = convert(record, recognise(record, SourceConfig(path="f")), {})
    assert [message.weight for message in entry.messages] == [0.0, 0.0, 0.0, None]


@pytest.mark.parametrize(
    ("rows", "target", "wish", "words"),
    [
        ([{"text": "a"}], "pairs", {}, "answers or texts to learn cannot become pairs"),
        ([{"messages": [ASK, *say("a")]}], "feedback", {}, "cannot become feedback"),
        ([{"prompt": "q", "answers": ["a", "b"]}], "pairs", {"margin": 1.0}, "--margin needs scores"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "pairs", {"margin": 1.0}, "--margin needs scores"),
        ([{"prompt": "q", "completion": "a", "label": True}], "pairs", {}, "none of 1 records can become pairs"),
        ([{"text": "a"}], "sft", {"margin": 1.0}, "--margin has no meaning"),
        (
            [{"prompt": "q", "chosen": "a", "rejected": "b"}],
            "pairs",
            {"which": "adjacent"},
            "--adjacent has no meaning",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(tmp_path, rows, target, wish, words):
    with pytest.raises((DataError, UsageError), match="E221") as caught:
        converted(tmp_path, rows, target, **wish)
    assert words in caught.value.diagnostic.message
    assert caught.value.diagnostic.fixes
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_bad_records_stop_the_conversion_or_are_counted(tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "", "rejected": "b"}]
    with pytest.raises(DataError, match="E050"):
        converted(tmp_path, rows, "feedback")
    assert not (tmp_path / "out.jsonl").exists()
    found, left_out = converted(tmp_path, rows, "feedback", on_bad="skip")
    assert (len(found), left_out) == (2, {"empty turn or no assistant turn": 1})


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    out = default_out(str(path), "feedback")
    assert out.name == "a.feedback.jsonl"
    out.write_text("mine")
    with pytest.raises(UsageError, match="E053") as caught:
        convert_file(SourceConfig(path=str(path)), out, Wish("feedback"), Tally())
    assert "--force" in caught.value.diagnostic.fixes[1].label
    assert out.read_text() == "mine"
    convert_file(SourceConfig(path=str(path)), out, Wish("feedback"), Tally(), force=True)
    assert len(out.read_text().splitlines()) == 2
    convert_file(SourceConfig(path=str(path)), path, Wish("pairs"), Tally(), force=True)
    assert json.loads(path.read_text()) == {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(UsageError, match="E221"):
        default_out(str(tmp_path), "pairs")


def test_columns_and_kinds_may_be_named(tmp_path):
    rows = [{"question": "q", "yes": "a", "no": "b"}]
    columns = {"prompt": "question", "chosen": "yes", "rejected": "no"}
    found, _ = converted(tmp_path, rows, "pairs", columns=columns)
    assert found == [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    rows = [{"prompt": "q", "completion": "a", "label": "fine"}]
    with pytest.raises(DataError, match="E213"):
        converted(tmp_path, rows, "sft")
    assert converted(tmp_path, rows, "sft", source_kind="sequence")[0] == [{"prompt": "q", "completion": "a"}]
    with pytest.raises(DataError, match="E047"):
        converted(tmp_path, [{"x": 1}], "pairs")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, 2.5]}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CHAT = (Message("system", "S"), Message("user", "u", name="Ann"))
SAID = (
    Message("assistant", "", (CALL,)),
    Message("tool", "3", tool_call_id="c"),
    Message("assistant", "ä", weight=0.0),
)
ENTRIES = {
    "sequence": [
        Conversation((*CHAT, *SAID), "f", 1, (TOOL,)),
        Completion(" a", "b\n", "f", 1),
        Document("text", "f", 1),
    ],
    "pair": [
        Pair(CHAT, SAID, (Message("assistant", "no"),), "f", 1, (TOOL,), 0.5),
        Pair("p ", " c", "r", "f", 1),
    ],
    "feedback": [Feedback(CHAT, SAID, False, "f", 1, (TOOL,)), Feedback("p", "c", True, "f", 1)],
    "ranking": [
        Ranking(CHAT, (SAID, (Message("assistant", "x"),)), "f", 1, (TOOL,), (2.0, -1.0)),
        Ranking("p", ("a", "b", "c"), "f", 1),
    ],
    "label": [Labelled("t", "name", "f", 1), Labelled(CHAT, 2.5, "f", 1)],
    "process": [Process("p", ("a", "b"), (1.0, 0.25), "f", 1), Process(CHAT, ("a",), (0.0,), "f", 1)],
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_canonical_records_read_as_the_same_entries(kind):
    for entry in ENTRIES[kind]:
        record = Record(json.loads(json.dumps(to_record(entry))), "f", 1)
        assert convert(record, recognise(record, SourceConfig(path="f"), kind), {}, kind) == entry


def test_anything_becomes_canonical(tmp_path):
    found, _ = converted(tmp_path, [{"instruction": "Hi", "input": "", "output": "a"}], "canonical")
    assert found == [{"messages": [ASK, *say("a")]}]
    found, _ = converted(tmp_path, [{"instruction": "Hi", "chosen": "a", "rejected": "b"}], "canonical")
    assert found == [{"prompt": [ASK], "chosen": say("a"), "rejected": say("b")}]
    found, _ = converted(tmp_path, [{"text": "a", "label": "x"}], "canonical")
    assert found == [{"text": "a", "label": "x"}]


def test_alike_ignores_white_space_at_the_ends_and_weights():
    assert alike("a ", "a")
    assert not alike("a", "b")
    assert not alike("a", (Message("assistant", "a"),))
    assert alike((Message("assistant", "a", weight=1.0),), (Message("assistant", " a"),))
    assert not alike((Message("assistant", "a", (CALL,)),), (Message("assistant", "a"),))


def test_fix_drops_records_with_equal_answers_when_asked(tmp_path):
    src = tmp_path / "a.jsonl"
    rows = [
        '{"prompt": "q", "chosen": "a", "rejected": "a"}',
        '{"prompt": "q",  "chosen": "a", "rejected": "b"}',
        '{"prompt": "q", "answers": ["a", "b"], "scores": [2, 2]}',
        '{"prompt": "q", "chosen": 3, "rejected": "b"}',
        '{"text": "a"}',
    ]
    src.write_text("\n".join(rows) + "\n")
    report = fix_file(src, tmp_path / "b.jsonl", drop_identical=True)
    assert (tmp_path / "b.jsonl").read_text().splitlines() == [rows[1], rows[3], rows[4]]
    assert report.fixed == {"records with equal answers left out": 2}
    assert (tmp_path / "b.jsonl").exists()
    fix_file(src, tmp_path / "c.jsonl")
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 5
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(UsageError, match="E221"):
        fix_file(tmp_path / "d.json", tmp_path / "e.json", drop_identical=True)


REAL = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets (../shared/data) are not here")
def test_real_preferences_survive_a_round_of_conversions(tmp_path):
    source = SourceConfig(path=str(REAL / "pref_rasbt_1100"))
    there, back = tmp_path / "there.jsonl", tmp_path / "back.jsonl"
    report = convert_file(source, there, Wish("feedback"), Tally())
    assert (report.written, report.to_json()["left_out"]) == (2188, {"answers equal or rated alike": 6})
    again = convert_file(SourceConfig(path=str(there)), back, Wish("pairs"), Tally())
    kept = [entry for entry in read_entries(source, kind="pair") if not alike(entry.chosen, entry.rejected)]
    pairs = list(read_entries(SourceConfig(path=str(back)), kind="pair"))
    assert again.written == len(pairs) == 1094
    assert sorted(repr((one.prompt, one.chosen)) for one in pairs) == sorted(
        repr((one.prompt, one.chosen)) for one in kept
    )
