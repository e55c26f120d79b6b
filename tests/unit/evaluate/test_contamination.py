"""Exercises that stand in training data are found, and nothing else is."""

import json

from tunesmith.data.config import SourceConfig
from tunesmith.evaluate.contamination import FOUND, overlaps, records_in, texts_in
from tunesmith.evaluate.exercise import Exercise

LONG = "Ada walked to the old harbour on Monday and bought a red lamp for nine euros"
SHORT = "What is 12 + 35?"


def exercise(name: str, text: str) -> Exercise:
    return Exercise(name, f"Please answer. {text}", fields={"question": text})


def look(*texts: str, size: int = 8):
    exercises = [exercise("long", LONG), exercise("short", SHORT), exercise("tiny", "Why so?")]
    return overlaps({"t": exercises}, [(f"f:{at + 1}", [text]) for at, text in enumerate(texts)], size)[0]


def test_copies_are_found_whatever_their_case_and_signs():
    found = look("nothing here", f"Story: {LONG.upper()}!!", "so: what is 12 + 35 ?")
    assert [(one.name, one.share, one.record) for one in found.seen] == [("long", 1.0, "f:2"), ("short", 1.0, "f:3")]
    assert (found.checked, found.too_short, found.records) == (2, 1, 3)
    assert found.names == {"long", "short"}


def test_other_numbers_and_single_phrases_are_no_copy():
    assert look("What is 12 + 36?", "Ada walked to the old harbour on Monday", "walked to the").seen == ()


def test_from_half_of_the_ngrams_on_it_counts():
    words = LONG.split()
    grams = len(words) - 7
    needed = next(count for count in range(1, grams + 1) if count / grams >= FOUND)
    assert look(" ".join(words[: 7 + needed])).names == {"long"}
    assert look(" ".join(words[: 6 + needed])).names == frozenset()


def test_ngrams_do_not_reach_over_two_texts():
    half = LONG.split()
    exercises = {"t": [exercise("long", LONG)]}
    assert overlaps(exercises, [("f:1", [" ".join(half[:7]), " ".join(half[7:])])], 8)[0].seen == ()


def test_every_text_of_a_record_is_read(tmp_path):
    record = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["b", {"c": "d"}]}],
        "n": 1,
    }
    assert list(texts_in(record)) == ["user", "a", "assistant", "b", "d"]
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": LONG}) + "\nbroken\n" + json.dumps({"any": {"shape": SHORT}}) + "\n")
    found = list(records_in([SourceConfig(path=str(path))]))
    assert [texts for _, texts in found] == [[LONG], [SHORT]]
    assert found[1][0].endswith("train.jsonl:3")
