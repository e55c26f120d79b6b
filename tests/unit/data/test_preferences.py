import json
import math

import pytest

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.formats import convert, recognise
from tunesmith.data.tally import Tally
from tunesmith.data.texts import texts_of
from tunesmith.errors import DataError
from tunesmith.types import Feedback, Labelled, Message, Pair, Process, Ranking, Record

ASK, GOOD, BAD = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "assistant", "content": "Go away"},
)
asked, good, bad = Message("user", "Hi"), Message("assistant", "Hello"), Message("assistant", "Go away")


def read(value, kind="pair", columns=None, shape="auto"):
    source = SourceConfig(path="a.jsonl", columns=columns or {}, shape=shape)
    record = Record(value, "a.jsonl", 7)
    return convert(record, recognise(record, source, kind), source.columns, kind)


def refused(value, kind="pair", **more):
    with pytest.raises(DataError) as caught:
        read(value, kind, **more)
    found = caught.value.diagnostic
    assert (found.where.file, found.where.line) == ("a.jsonl", 7)
    assert found.fixes or found.code in ("E048", "E050", "E051", "E213", "E214", "E222")
    return found


def pair(prompt, chosen, rejected, **more):
    return Pair(prompt, chosen, rejected, "a.jsonl", 7, **more)


CHAT_PAIR = pair((asked,), (good,), (bad,))


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": GOOD, "rejected": BAD},
        {"prompt": [ASK], "chosen": "Hello", "rejected": "Go away"},
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]},
        {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen_messages": [ASK, GOOD], "rejected_messages": [ASK, BAD]},
        {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
         "rejected": {"from": "gpt", "value": "Go away"}},
        {"instruction": "Hi", "input": "", "output": "Hello", "chosen": "Hello", "rejected": "Go away"},
        {"instruction": "Hi", "output": ["Hello", "Go away"]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
    ],
)  # fmt: skip
def test_every_shape_of_a_pair_is_the_same_pair(value):
    assert read(value) == CHAT_PAIR


def test_a_pair_of_texts_stays_plain():
    assert read({"prompt": " a\n", "chosen": " b", "rejected": "c "}) == pair(" a\n", " b", "c ")
    assert list(texts_of(read({"prompt": "a", "chosen": "b", "rejected": "c"}))) == ["a", "b", "c"]


def test_several_turns_system_history_and_the_v1_message_format():
    parts = [{"type": "text", "value": "Be kind."}]
    value = {
        "chosen_messages": [
            {"role": "system", "content": parts, "loss_weight": 0.0},
            ASK,
            {**GOOD, "loss_weight": 1.0},
        ],
        "rejected_messages": [{"role": "system", "content": parts}, ASK, BAD],
    }
    found = read(value)
    assert found.prompt == (Message("system", "Be kind.", weight=0.0), asked)
    assert found.chosen == (Message("assistant", "Hello", weight=1.0),)
    history = read(
        {"instruction": "Hi", "input": "you", "system": "S", "history": [["a", "b"]], "chosen": "x", "rejected": "y"}
    )
    assert [message.content for message in history.prompt] == ["S", "a", "b", "Hi\nyou"]
    turns = [ASK, GOOD, {"role": "user", "content": "And?"}]
    found = read({"chosen": [*turns, GOOD], "rejected": [*turns, BAD]})
    assert len(found.prompt) == 3
    assert read({"chosen": [*turns, GOOD], "rejected": [*turns, GOOD]}) == pair(found.prompt, (good,), (good,))


def test_tool_calls_and_tools_and_answers_of_several_turns():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    steps = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}, GOOD]
    tool = {"name": "add", "parameters": {}}
    found = read({"prompt": [ASK], "chosen": steps, "rejected": [BAD], "tools": json.dumps([tool])})
    assert found.tools == ({"type": "function", "function": tool},)
    assert found.chosen == (Message("assistant", "", (call,)), Message("tool", "3"), good)
    shared = read({"chosen": [ASK, *steps], "rejected": [ASK, *steps[:2], BAD]})
    assert (len(shared.prompt), shared.chosen, shared.rejected) == (3, (good,), (bad,))


def test_transcripts_keep_every_character_but_one_space():
    before = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman:  two\nlines "
    value = {"chosen": before + "\n\nAssistant: A ", "rejected": before + "\n\nAssistant:B"}
    assert [message.content for message in read(value).prompt] == ["Hi", "Yes?", " two\nlines "]
    assert read(value).chosen == (Message("assistant", "A "),)
    assert read(value, shape="transcript") == read(value)


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ({"chosen": "a", "rejected": "b"}, "E211", "there is no prompt for chosen and rejected"),
        ({"chosen": [ASK, GOOD], "rejected": [BAD]}, "E211", "share no turn"),
        ({"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "Ho"}, BAD]}, "E211", "share no turn"),
        ({"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD, {**ASK, "content": "Ho"}, BAD]}, "E211",
         "part at a user turn"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD, ASK, BAD]}, "E211", "chosen is only the beginning"),
        ({"prompt": "Ho", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "E211", "is not what the conversations ask"),
        ({"prompt": [ASK], "chosen": [GOOD, ASK], "rejected": [BAD]}, "E051", "ends with a user turn"),
        ({"prompt": [ASK], "chosen": [], "rejected": [BAD]}, "E050", "holds no answer"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "E050", "chosen is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "E050", "prompt is empty"),
        ({"prompt": [ASK], "chosen": [{**GOOD, "content": ""}], "rejected": [BAD]}, "E050", "turn is empty"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "E048", "chosen is null"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "E048", "chosen is a number (3)"),
        ({"instruction": "a", "output": ["b", "c", "d"]}, "E214", "holds 3 answers"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "wide"}, "E213", "margin is 'wide'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "E213", "the margin is -1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2}, "E213", "is -1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1}, "E213", "score_rejected is missing"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "E211", "differs"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "E222", "a turn of the human"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "E050", "empty"),
        ({"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
         "E051", "second user turn"),
    ],
)  # fmt: skip
def test_bad_pairs_name_the_field_and_the_reason(value, code, words):
    found = refused(value)
    assert (found.code, words in found.message) == (code, True), found


def test_margins_are_given_or_the_difference_of_the_scores():
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert read(texts).margin is None
    assert read({**texts, "margin": 0.5, "score_chosen": 9, "score_rejected": 1}).margin == 0.5
    assert read({**texts, "score_chosen": "4.5", "score_rejected": 4}).margin == 0.5
    assert read({**texts, "margin": None}).margin is None


@pytest.mark.parametrize(
    ("label", "is_good"),
    [(True, True), (False, False), (1, True), (0, False), ("good", True), ("Bad", False), ("true", True), ("0", False)],
)
def test_labels_of_feedback(label, is_good):
    value = {"prompt": "a", "completion": "b", "label": label}
    assert read(value, "feedback") == Feedback("a", "b", is_good, "a.jsonl", 7)


def test_feedback_in_every_shape():
    chat = Feedback((asked,), (good,), True, "a.jsonl", 7)
    for value in (
        {"messages": [ASK, GOOD]},
        {"conversations": [ASK, GOOD]},
        {"instruction": "Hi", "output": "Hello"},
        {"prompt": [ASK], "completion": [GOOD]},
        {"prompt": [ASK], "completion": "Hello"},
    ):
        assert read({**value, "label": True}, "feedback") == chat
    turns = [ASK, BAD, ASK, GOOD]
    assert len(read({"messages": turns, "label": 1}, "feedback").prompt) == 3
    assert read({"messages": [ASK, GOOD], "kto_tag": 1}, "feedback", columns={"label": "kto_tag"}) == chat


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "E213", "label is 'maybe'; want true or false"),
        ({"prompt": "a", "completion": "b", "label": 2}, "E213", "label is a number (2)"),
        ({"prompt": "a", "completion": "b", "label": None}, "E213", "label is null"),
        ({"messages": [ASK, GOOD, ASK], "label": True}, "E051", "ends with a user turn"),
        ({"messages": [ASK], "label": True}, "E050", "no assistant turn"),
    ],
)
def test_bad_feedback(value, code, words):
    found = refused(value, "feedback")
    assert (found.code, words in found.message) == (code, True), found


def test_rankings_keep_their_order_or_follow_their_scores():
    texts = {"prompt": "a", "answers": ["b", "c", "d"]}
    assert read(texts, "ranking") == Ranking("a", ("b", "c", "d"), "a.jsonl", 7)
    found = read({**texts, "scores": [1, 3.5, 1]}, "ranking")
    assert (found.answers, found.scores) == (("c", "b", "d"), (3.5, 1.0, 1.0))
    chats = read({"prompt": [ASK], "responses": ["Hello", [BAD]], "ratings": ["1", "2"]}, "ranking")
    assert (chats.prompt, chats.answers) == ((asked,), ((bad,), (good,)))
    assert read({"messages": [ASK], "completions": [GOOD, BAD]}, "ranking").answers == ((good,), (bad,))
    assert read({"instruction": "Hi", "answers": ["Hello", "Go away"]}, "ranking").prompt == (asked,)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"answers": ["b"]}, "E214", "a ranking needs two or more"),
        ({"scores": [1]}, "E214", "1 numbers for 2 answers"),
        ({"scores": [1, "x"]}, "E213", "scores[1] is 'x'; want a number"),
        ({"scores": [1, True]}, "E213", "scores[1] is true"),
        ({"scores": [1, math.nan]}, "E213", "scores[1] is nan"),
        ({"scores": 3}, "E213", "want a list of numbers"),
        ({"answers": ["b", 2]}, "E048", "answers[1] is a number"),
        ({"answers": ["b", ""]}, "E050", "answers[1] is empty"),
    ],
)
def test_bad_rankings(more, code, words):
    found = refused({"prompt": "a", "answers": ["b", "c"], **more}, "ranking")
    assert (found.code, words in found.message) == (code, True), found


def test_labelled_texts_and_chats():
    assert read({"text": "a", "label": "sports"}, "label") == Labelled("a", "sports", "a.jsonl", 7)
    assert read({"text": "a", "label": 3}, "label").label == 3.0
    assert read({"text": "a", "label": True}, "label").label == "true"
    assert read({"messages": [ASK], "label": "greeting"}, "label").text == (asked,)
    assert refused({"text": "a", "label": None}, "label").code == "E213"
    assert refused({"text": "a", "label": math.inf}, "label").code == "E213"
    assert refused({"text": " ", "label": "x"}, "label").code == "E050"
    assert refused({"messages": [GOOD], "label": "x"}, "label").code == "E051"


def test_answers_in_steps():
    wanted = Process("a", ("b", "c"), (1.0, 0.25), "a.jsonl", 7)
    assert read({"prompt": "a", "steps": ["b", "c"], "labels": [True, 0.25]}, "process") == wanted
    assert read({"prompt": "a", "completions": ["b", "c"], "labels": [1, 0.25]}, "process") == wanted
    steps = [{"text": "b", "label": True}, {"text": "c", "label": 0.25}]
    assert read({"prompt": "a", "steps": steps}, "process") == wanted
    assert read({"prompt": [ASK], "steps": ["b"], "labels": [0]}, "process").prompt == (asked,)
    assert refused({"prompt": "a", "steps": ["b"], "labels": [1, 0]}, "process").code == "E214"
    assert refused({"prompt": "a", "steps": ["b"], "labels": [2]}, "process").code == "E213"
    assert refused({"prompt": "a", "steps": ["b", " "], "labels": [1, 0]}, "process").code == "E050"


@pytest.mark.parametrize(
    ("value", "kind", "words", "fix"),
    [
        ({"messages": [ASK, GOOD]}, "pair", "one of answers or texts to learn (messages)", "objective=sft"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "sequence", "(prompt, chosen, rejected)",
         "tunesmith data convert a.jsonl --to sft -o a.sft.jsonl"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "feedback", "learns from feedback", "--to feedback"),
        ({"prompt": "a", "answers": ["b", "c"]}, "pair", "one of rankings", "--to pairs"),
        ({"prompt": "a", "completion": "b", "label": True}, "pair", "one of feedback", "--to pairs"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "ranking", "learns from rankings", "--to rankings"),
        ({"text": "a"}, "label", "one of answers or texts to learn (text)", "objective=sft"),
        ({"prompt": "a", "steps": ["b"], "labels": [1]}, "pair", "in steps", "objective=process_reward"),
    ],
)  # fmt: skip
def test_a_record_of_another_kind_names_both_and_the_fix(value, kind, words, fix):
    found = refused(value, kind)
    assert found.code == "E210"
    assert words in found.message
    assert any(fix in (one.command or one.label) for one in found.fixes)


def test_an_unknown_record_proposes_columns():
    found = refused({"question": "a", "winner": "b", "loser": "c"})
    assert found.code == "E047"
    wanted = {"data.train.0.columns": {"chosen": "winner", "rejected": "loser"}}
    assert wanted in [fix.set for fix in found.fixes]


def test_faults_and_kinds_through_files(tmp_path):
    path = tmp_path / "a.jsonl"
    good_pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [good_pair, {**good_pair, "chosen": ""}, good_pair, {**good_pair, "rejected": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(path))
    with pytest.raises(DataError) as caught:
        list(read_entries(source, kind="pair"))
    assert [found.where.line for found in caught.value.diagnostics] == [2, 4]
    tally = Tally("skip")
    assert [entry.line for entry in read_entries(source, tally, kind="pair")] == [1, 3]
    assert tally.skipped == {"empty turn or no assistant turn": 1, "missing or wrong field": 1}
    with pytest.raises(DataError, match="E210"):
        list(read_entries(source, Tally("skip")))


def test_a_csv_of_feedback_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\na,b,1\nc,d,0\n")
    found = list(read_entries(SourceConfig(path=str(path)), kind="feedback"))
    assert [entry.good for entry in found] == [True, False]


def test_imitating_feedback_is_a_warning(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [ASK, GOOD], "label": False}) + "\n")
    tally = Tally()
    assert len(list(read_entries(SourceConfig(path=str(path)), tally))) == 1
    (warning,) = tally.warnings
    assert warning.code == "W210"
    assert "--to sft" in warning.fixes[1].command
