"""The quickstart's task: messy English notes with names, dates, amounts and units, to be turned into strict JSON."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from tunesmith.data import messy_frames as frames
from tunesmith.data import messy_values as values

Split = Literal["train", "test"]

KEYS = ("name", "date", "quantity", "unit", "amount", "currency")
SYSTEM = "Extract JSON: " + ", ".join(KEYS)
DROPPED = 0.3  # share of the optional parts that are left out
FIRST_DAY, DAYS = date(2022, 1, 1), 6 * 365


class Filled(NamedTuple):
    """One slot: how the note says it, and the keys of the answer it stands for."""

    text: str
    answer: dict[str, Any]


def frames_of(split: Split) -> tuple[str, ...]:
    """The sentence frames of a split; no frame is in both."""
    if split == "train":
        return frames.TRAIN_GOODS + frames.TRAIN_TIME
    return frames.TEST_GOODS + frames.TEST_TIME


def generate(n: int, split: Split, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different records as system, user and assistant messages; every frame is used before one is used again."""
    random = Random(f"{split} {seed}")
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    for frame in _rounds(frames_of(split), random):
        if len(records) == n:
            break
        text, answer = write(frame, split, random)
        if text not in seen:
            seen.add(text)
            records.append(_record(text, answer))
    return records


OPTIONAL = re.compile(r"\[([^\[\]|]*)(?:\|([^\[\]]*))?\]")  # [words], or [words|others]


def write_dataset(folder: Path, *, train: int = 800, test: int = 200, seed: int = 0) -> tuple[Path, Path]:
    """Write `train.jsonl` and `test.jsonl` under `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, split, n in zip(paths, ("train", "test"), (train, test), strict=True):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in generate(n, split, seed))
        path.write_text("".join(lines), encoding="utf-8")
    return paths


def write(frame: str, split: Split, random: Random) -> tuple[str, str]:
    """One note made from `frame`, and its answer."""
    is_goods = frame in frames.TRAIN_GOODS or frame in frames.TEST_GOODS
    frame = OPTIONAL.sub(lambda part: (part[2] or "") if random.random() < DROPPED else part[1], frame)
    filled = _fill(frame, is_goods, split, random)
    found = {key: value for slot in filled.values() for key, value in slot.answer.items()}
    answer = json.dumps({key: found.get(key) for key in KEYS}, separators=(",", ":"))
    return _mess(frame, filled, random), answer


def _record(text: str, answer: str) -> dict[str, Any]:
    turns = (("system", SYSTEM), ("user", text), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _rounds(every: tuple[str, ...], random: Random) -> Iterator[str]:
    while True:
        yield from random.sample(every, len(every))


def _fill(frame: str, is_goods: bool, split: Split, random: Random) -> dict[str, Filled]:
    unit = random.choice(list(values.GOODS_UNITS if is_goods else values.TIME_UNITS))
    makers = {
        "name": lambda: _name(split, random),
        "date": lambda: _date(random),
        "quantity": lambda: _quantity(unit, random),
        "amount": lambda: _amount(random),
        "item": lambda: Filled(random.choice(values.GOODS_UNITS[unit][3]), {}),
        "ref": lambda: Filled(f"#{random.randint(1000, 9999)}", {}),
    }
    return {slot: makers[slot]() for slot in re.findall(r"{(\w+)}", frame)}


def _name(split: Split, random: Random) -> Filled:
    name = f"{random.choice(_names_of(split, values.FIRST_NAMES))} {random.choice(_names_of(split, values.LAST_NAMES))}"
    return Filled(name, {"name": name})


def _names_of(split: Split, names: Sequence[str]) -> list[str]:
    return [name for index, name in enumerate(names) if (index % 5 == 0) == (split == "test")]


def _date(random: Random) -> Filled:
    day = FIRST_DAY + timedelta(days=random.randrange(DAYS))
    if random.random() < 0.2:  # the leading zero is the hard part: show it more often
        day = day.replace(day=random.randint(1, 9))
    month, short = values.MONTHS[day.month - 1], values.MONTHS[day.month - 1][:3]
    ordinal = f"{day.day}{_ordinal_ending(day.day)}"
    text = random.choice(
        (
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{month} {ordinal} {day.year}",
            f"{ordinal} of {month} {day.year}",
            f"{day.day} {short} {day.year}",
            f"{short} {day.day} {day.year}",
            f"{day.day}-{short}-{day.year}",
            day.isoformat(),
        )
    )
    return Filled(text, {"date": day.isoformat()})


def _ordinal_ending(day: int) -> str:
    return "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def _quantity(unit: str, random: Random) -> Filled:
    spellings, low, high = (values.GOODS_UNITS.get(unit) or values.TIME_UNITS[unit])[:3]
    spelling = random.choice(spellings)
    number = random.randint(low, random.choice((high, min(high, 10 * low))))
    if number <= 20 and len(spelling) > 3 and random.random() < 0.4:
        text = f"{values.NUMBER_WORDS[number]} {spelling}"
    else:
        glue = "" if len(spelling) <= 2 and random.random() < 0.5 else " "
        text = f"{number}{glue}{spelling}"
    return Filled(text, {"quantity": number, "unit": unit})


def _amount(random: Random) -> Filled:
    codes = list(values.CURRENCIES)
    code = random.choices(codes, [values.CURRENCIES[code][2] for code in codes])[0]
    sign, words, _ = values.CURRENCIES[code]
    whole = random.randint(5, random.choice((99, 999, 9999)))
    cents = random.choice((0, 0, 0, random.randint(1, 9) * 10 + random.randint(1, 9)))  # never a trailing zero
    digits = f"{whole:,}" if random.random() < 0.6 else str(whole)
    digits += f".{cents}" if cents else ""
    text = f"{sign}{digits}" if random.random() < 0.6 else f"{digits} {random.choice(words)}"
    return Filled(text, {"amount": round(whole + cents / 100, 2) if cents else whole, "currency": code})


def _mess(frame: str, filled: dict[str, Filled], random: Random) -> str:
    """Add openers and closers, drop capitals and swap letters in the frame's own words; the values stay as they are."""
    opener = random.choice(values.OPENERS) + " " if random.random() < 0.35 else ""
    closer = " " + random.choice(values.CLOSERS) if random.random() < 0.35 else ""
    lower, typos = random.random() < 0.35, random.random() < 0.3
    pieces = re.split(r"{(\w+)}", opener + frame + closer)
    for index, piece in enumerate(pieces):
        if index % 2:
            pieces[index] = filled[piece].text
            continue
        text = piece.lower() if lower else piece
        pieces[index] = re.sub(r"[A-Za-z]{5,}", lambda word: _typo(word[0], random), text) if typos else text
    return "".join(pieces)


def _typo(word: str, random: Random) -> str:
    if random.random() > 0.4:
        return word
    at = random.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
