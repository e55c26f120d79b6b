"""Conversations in files, and votes that training reads."""

import json
from pathlib import Path

import pytest

from tunesmith.chat.files import Loaded, conversations, load, save
from tunesmith.chat.votes import Duel, Votes
from tunesmith.data.config import SourceConfig
from tunesmith.data.formats import convert, recognise
from tunesmith.data.sources import read_source
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, UsageError
from tunesmith.types import Message, Pair

ASKED = (Message("system", "Be short."), Message("user", "Hello\n\u2028there"))
TALK = (*ASKED, Message("assistant", "Hi."))
WEIGHTS = {"one": {"base": "a"}, "other": {"base": "a", "adapter": "b"}}


def duel(at: int = 0, seed: int = 0) -> Duel:
    return Duel.of((*ASKED[:1], Message("user", f"Question {at}")), {"one": f"A{at}", "other": f"B{at}"}, seed)


def test_a_conversation_goes_on_in_its_file_and_others_stand_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    assert save(TALK, path) == f"added as conversation 1 of {path}"
    longer = (*TALK, Message("user", "More"), Message("assistant", "No."))
    assert save(longer, path) == f"replaced conversation 1 of {path}"
    assert save(TALK, path) == f"added as conversation 2 of {path}"
    assert conversations(path) == [longer, TALK]
    assert load(path) == Loaded(TALK)


def test_a_question_without_an_answer_is_told_apart(tmp_path: Path) -> None:
    path, asked = tmp_path / "chats.jsonl", Message("user", "More?")
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {}}}
    looked = [{"role": "user", "content": "Look"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    looked.append({"role": "tool", "content": "a sea", "tool_call_id": "c1"})
    rows = [{"role": turn.role, "content": turn.content} for turn in (*TALK, asked)]
    path.write_text(json.dumps({"messages": rows}) + "\n")
    assert load(path) == Loaded(TALK, "More?")
    path.write_text(json.dumps({"messages": looked}) + "\n")
    loaded = load(path)
    assert ([turn.role for turn in loaded.messages], *loaded[1:]) == (["user", "assistant"], None, 1)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    before = path.read_bytes()
    for messages, place in ((TALK, path), (ASKED, tmp_path / "new.jsonl"), (TALK, tmp_path / "chat.txt")):
        with pytest.raises(UsageError) as caught:
            save(messages, place)
        assert caught.value.diagnostic.code == "E484"
    assert "/save " in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("")
    with pytest.raises(DataError):
        load(path)


@pytest.mark.parametrize(("place", "words"), [("no/where.jsonl", "no folder"), ("made.jsonl", "is a folder")])
def test_a_place_that_is_none_is_told(place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "made.jsonl").mkdir()
    with pytest.raises(UsageError, match=words) as caught:
        save(TALK, tmp_path / place)
    assert caught.value.diagnostic.code == "E484"


def test_the_order_is_drawn_and_balanced() -> None:
    turned = [duel(at).turned for at in range(400)]
    assert 160 < sum(turned) < 240
    assert turned == [duel(at).turned for at in range(400)]
    assert turned != [duel(at, seed=1).turned for at in range(400)]
    some = duel(turned.index(True))
    assert some.shown == ("other", "one")
    assert some.texts == (some.answers["other"], some.answers["one"])


def test_votes_are_pairs_and_what_is_no_pair_stands_apart(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with Votes(path, WEIGHTS, 0) as votes:
        assert votes.write(duel(0), "1", {"temperature": 1}) == duel(0).shown[0]
        assert len(path.read_text().splitlines()) == 1  # it is there at once
        assert votes.write(duel(1), "2", {}) == duel(1).shown[1]
        assert votes.write(duel(2), "tie", {}) is None
        assert votes.write(duel(3), "bad", {}) is None
    source = SourceConfig(path=str(path))
    records = list(read_source(source, Tally()))
    for at, record in enumerate(records):
        pair = convert(record, recognise(record, source, "pair"), source.columns, "pair")
        assert isinstance(pair, Pair)
        winner = duel(at).shown[at]
        assert pair.chosen == (Message("assistant", duel(at).answers[winner]),)
        assert pair.prompt == duel(at).prompt
        assert record.value["vote"]["said"] == winner
    assert len(records) == 2
    others = [json.loads(line) for line in votes.others.read_text().splitlines()]
    assert [row["vote"]["said"] for row in others] == ["tie", "bad"]
    assert "chosen" not in others[0]


def test_votes_stay_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    for at in range(3):
        with Votes(path, WEIGHTS, 0) as votes:
            assert votes.earlier == at
            votes.write(duel(at), "1", {})
            votes.write(duel(9), "2", {}, 1)
            assert votes.take_back(1)
            assert not votes.take_back(1)
    assert len(path.read_text().splitlines()) == 3
    wins = [duel(at).shown[0] for at in range(3)]
    tally = votes.tally()
    assert tally.wins == (wins.count("one"), wins.count("other"))
    assert (tally.ties, tally.bad, tally.earlier) == (0, 0, 2)
    assert tally.rate is not None
    assert (tally.rate.n, tally.rate.value) == (3, pytest.approx(wins.count("one") / 3))
    assert tally.rate.low < tally.rate.value < tally.rate.high or tally.rate.value in (0, 1)
    with Votes(path, {"one": {"base": "new"}, "other": WEIGHTS["other"]}, 0) as votes:
        assert (votes.earlier, votes.tally().rate) == (0, None)  # other weights of the same name
    with Votes(path, {"ours": WEIGHTS["one"], "theirs": WEIGHTS["other"]}, 0) as votes:
        assert votes.tally().wins == tally.wins  # the same weights under other names


def test_votes_are_taken_back_turn_by_turn_and_no_others_go(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with Votes(path, WEIGHTS, 0) as votes:
        votes.write(duel(0), "1", {})  # of an earlier conversation
        votes.write(duel(1), "tie", {}, 1)
        votes.write(duel(2), "bad", {})  # its turn is gone, the vote stays
        votes.write(duel(3), "2", {}, 2)
        assert [votes.take_back(turn) for turn in (3, 2, 1, 1)] == [False, True, True, False]
        votes.write(duel(4), "1", {}, 1)
        votes.settle()
        assert not votes.take_back(1)
        tally = votes.tally()
    pairs, others = ([json.loads(row) for row in file.read_text().splitlines()] for file in (path, votes.others))
    assert [row["prompt"][1]["content"] for row in pairs] == ["Question 0", "Question 4"]
    assert [(row["prompt"][1]["content"], row["vote"]["said"]) for row in others] == [("Question 2", "bad")]
    assert (sum(tally.wins), tally.ties, tally.bad) == (2, 0, 1)


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(UsageError) as caught:
        Votes(path, WEIGHTS, 0)
    assert caught.value.diagnostic.code == "E485"
    assert [each.name for each in tmp_path.iterdir()] == ["p.jsonl"]
    with Votes(tmp_path / "new.jsonl", WEIGHTS, 0) as votes:
        assert votes.tally().rate is None
        with pytest.raises(UsageError, match="E261"):
            Votes(tmp_path / "new.jsonl", WEIGHTS, 0)
    assert [each.name for each in tmp_path.iterdir()] == ["p.jsonl"]
