import json
import re
from datetime import date

import pytest

from tunesmith.data import messy_frames, messy_values
from tunesmith.data.messy_text import KEYS, frames_of, generate, write_dataset

SPLITS = ("train", "test")
WORD = re.compile(r"[A-Za-z]+")


def note_of(record):
    return record["messages"][1]["content"]


def answer_of(record):
    return record["messages"][2]["content"]


def shape_of(word):
    """Letters in order: what a swap of two letters and lower case leave alone."""
    return "".join(sorted(word.lower()))


def fixed_words(frame):
    """The words that every note of a frame must hold."""
    return {shape_of(word) for word in WORD.findall(re.sub(r"\[.*?\]|{\w+}", " ", frame))}


def spelled_dates(day):
    month, n = day.strftime("%B"), day.day
    ends = {"st", "nd", "rd", "th"}
    spelled = {f"{n} {month} {day.year}", f"{month} {n}, {day.year}", day.isoformat(), f"{n}-{month[:3]}-{day.year}"}
    spelled |= {f"{n} {month[:3]} {day.year}", f"{month[:3]} {n} {day.year}"}
    return (
        spelled | {f"{month} {n}{end} {day.year}" for end in ends} | {f"{n}{end} of {month} {day.year}" for end in ends}
    )


def spelled_quantity(number, unit):
    spellings = (messy_values.GOODS_UNITS.get(unit) or messy_values.TIME_UNITS[unit])[0]
    numbers = [str(number), *messy_values.NUMBER_WORDS[number : number + 1]]
    return {f"{digits}{gap}{spelling}" for digits in numbers for spelling in spellings for gap in ("", " ")}


def spelled_amount(amount, currency):
    sign, words, _ = messy_values.CURRENCIES[currency]
    digits = {str(amount), f"{amount:,}"}
    return {f"{sign}{one}" for one in digits} | {f"{one} {word}" for one in digits for word in words}


def test_at_least_forty_frames_and_twelve_held_out():
    train, test = frames_of("train"), frames_of("test")
    assert len(set(train) | set(test)) == len(train) + len(test) >= 40
    assert len(test) >= 12


def test_train_and_test_frames_differ_in_more_than_their_slots():
    skeletons = [re.sub(r"[\[\]|]|{\w+}|\W", "", frame).lower() for split in SPLITS for frame in frames_of(split)]
    assert sum(skeletons.count(skeleton) > 1 for skeleton in skeletons if skeleton) == 0


@pytest.mark.parametrize("split", SPLITS)
def test_every_frame_names_one_person_and_closes_its_brackets(split):
    for frame in frames_of(split):
        assert frame.count("{name}") == 1
        assert all(frame.count(slot) <= 1 for slot in ("{date}", "{quantity}", "{amount}"))
        assert set(re.findall(r"{(\w+)}", frame)) <= {"name", "date", "quantity", "amount", "item", "ref"}
        assert frame.count("[") == frame.count("]")


@pytest.mark.parametrize("split", SPLITS)
def test_every_frame_is_reached(split):
    frames = frames_of(split)
    notes = [{shape_of(word) for word in WORD.findall(note_of(record))} for record in generate(len(frames), split)]
    assert all(any(fixed_words(frame) <= words for words in notes) for frame in frames)


@pytest.mark.parametrize("split", SPLITS)
def test_no_note_occurs_twice(split):
    notes = [note_of(record) for record in generate(1500, split)]
    assert len(set(notes)) == 1500


def test_no_note_and_no_name_is_in_both_splits():
    notes, people = [], []
    for split in SPLITS:
        records = generate(800, split)
        notes.append({note_of(record) for record in records})
        people.append({json.loads(answer_of(record))["name"] for record in records})
    assert not notes[0] & notes[1]
    assert not {name for person in people[0] for name in person.split()} & {
        name for person in people[1] for name in person.split()
    }


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_strict_json_with_keys_in_order(split):
    for record in generate(500, split):
        found = json.loads(answer_of(record))
        assert tuple(found) == KEYS
        assert answer_of(record) == json.dumps(found, separators=(",", ":"))
        assert (found["quantity"] is None) == (found["unit"] is None)
        assert (found["amount"] is None) == (found["currency"] is None)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_hold_exactly_the_values_of_the_note(split):
    every_word = {word for sign, words, _ in messy_values.CURRENCIES.values() for word in (sign.strip(), *words)}
    for record in generate(1000, split):
        note, found = note_of(record), json.loads(answer_of(record))
        assert found["name"] in note
        if found["date"] is None:
            assert not re.search(r"\b20\d\d\b", re.sub(r"#\d+", "", note)) or found["amount"] or found["quantity"]
        else:
            assert any(text in note for text in spelled_dates(date.fromisoformat(found["date"])))
        if found["quantity"] is not None:
            assert any(text in note for text in spelled_quantity(found["quantity"], found["unit"]))
        if found["amount"] is None:
            assert not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", note) for word in every_word)
        else:
            assert any(text in note for text in spelled_amount(found["amount"], found["currency"]))


def test_every_kind_of_value_can_be_missing_but_the_name():
    answers = [json.loads(answer_of(record)) for record in generate(400, "train")]
    missing = {key for answer in answers for key, value in answer.items() if value is None}
    assert missing == set(KEYS) - {"name"}


def test_records_depend_on_the_seed_alone():
    assert generate(50, "train", 3) == generate(50, "train", 3)
    assert generate(50, "train", 3) == generate(90, "train", 3)[:50]
    assert generate(50, "train", 3) != generate(50, "train", 4)


def test_the_prompt_names_the_keys():
    roles = [message["role"] for message in generate(1, "test")[0]["messages"]]
    system = generate(1, "test")[0]["messages"][0]["content"]
    assert roles == ["system", "user", "assistant"]
    assert all(key in system for key in KEYS)


def test_write_dataset_writes_both_files(tmp_path):
    paths = write_dataset(tmp_path / "new", train=30, test=20, seed=1)
    rows = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths]
    assert [path.name for path in paths] == ["train.jsonl", "test.jsonl"]
    assert rows == [generate(30, "train", 1), generate(20, "test", 1)]


def test_frames_are_data():
    for name in ("TRAIN_GOODS", "TRAIN_TIME", "TEST_GOODS", "TEST_TIME"):
        assert all(isinstance(frame, str) for frame in vars(messy_frames)[name])
