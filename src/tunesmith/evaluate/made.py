"""Exercises made by generators: nothing is fetched, and a seed always makes the same ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tunesmith.evaluate.instructions import said

Made = dict[str, Any]

NAMES = ("Ada", "Ben", "Clara", "Dev", "Elif", "Femi", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mira", "Nils")
PLACES = ("harbour", "library", "market", "station", "museum", "bakery", "orchard", "workshop", "garden", "school")
THINGS = ("lamp", "violin", "kettle", "basket", "map", "ladder", "clock", "blanket", "radio", "umbrella")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
FRUITS = ("apple", "banana", "cherry", "fig", "grape", "lemon", "mango", "olive", "peach", "plum", "quince", "raisin")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TOPICS = ("the sea in winter", "a lost key", "bread", "a night train", "learning to swim", "an old bicycle", "rain")
PACKED = (
    ("boxes", "g", "kg", 1000),
    ("ropes", "cm", "m", 100),
    ("bottles", "ml", "l", 1000),
    ("loops", "m", "km", 1000),
)


def make(generator: str, count: int, seed: int) -> list[Made]:
    """Different exercises where the generator has enough of them; each with a category."""
    found: list[Made] = []
    seen: set[str] = set()
    draws = random.Random(f"{generator} {seed}")
    for turn in range(20 * count):
        if len(found) == count:
            break
        one = GENERATORS[generator](draws, len(found))
        shown = json.dumps(one, sort_keys=True)
        if shown not in seen or turn >= 19 * count:
            seen.add(shown)
            found.append(one)
    return found


def arithmetic(draws: random.Random, at: int) -> Made:
    """Sums, differences, products, and sizes of several things with their unit."""
    kind = ("add", "subtract", "multiply", "units")[at % 4]
    one, other = draws.randint(11, 99), draws.randint(11, 99)
    if kind == "add":
        return {"question": f"What is {one} + {other}?", "answer": str(one + other), "category": kind}
    if kind == "subtract":
        low, high = sorted((one, other))
        return {"question": f"What is {high} - {low}?", "answer": str(high - low), "category": kind}
    if kind == "multiply":
        few = draws.randint(3, 9)
        return {"question": f"What is {one} times {few}?", "answer": str(one * few), "category": kind}
    things, small, large, factor = draws.choice(PACKED)
    few, size = draws.randint(3, 9), draws.randint(2, 19) * 50
    question = f"There are {few} {things} of {size} {small} each. How much is that in all, in {large}?"
    return {"question": question, "answer": f"{few * size / factor:g} {large}", "category": kind}


def lists(draws: random.Random, at: int) -> Made:
    """Words to sort, turn round, count or pick."""
    words = draws.sample(FRUITS, draws.randint(3, 6))
    shown = ", ".join(words)
    kind = ("sort", "reverse", "last", "count")[at % 4]
    question, answer = {
        "sort": (f"Sort these words by alphabet, separated by commas: {shown}", ", ".join(sorted(words))),
        "reverse": (f"Write these words in reverse order, separated by commas: {shown}", ", ".join(reversed(words))),
        "last": (f"Which is the last word of this list? {shown}", words[-1]),
        "count": (f"How many words has this list? Answer with digits. {shown}", str(len(words))),
    }[kind]
    return {"question": question, "answer": answer, "category": kind}


def patterns(draws: random.Random, at: int) -> Made:
    """The next of a row of numbers, letters or days, among four choices."""
    kind = ("steps", "doubling", "days", "letters")[at % 4]
    if kind == "days":
        start = draws.randrange(7)
        row, right = [DAYS[(start + step) % 7] for step in range(3)], DAYS[(start + 3) % 7]
        others = [day for day in DAYS if day != right]
    elif kind == "letters":
        start, step = draws.randrange(10), draws.randint(1, 3)
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        row, right = [alphabet[start + step * place] for place in range(4)], alphabet[start + step * 4]
        others = [letter for letter in alphabet if letter != right]
    else:
        start, step = draws.randint(1, 40), draws.randint(2, 12)
        values = [start + step * place for place in range(5)] if kind == "steps" else [start * 2**n for n in range(5)]
        row, right = [str(value) for value in values[:4]], str(values[4])
        others = [str(values[4] + shift) for shift in (-3, -2, -1, 1, 2, 3, 10)]
    return chosen(draws, f"What comes next? {', '.join(row)},", right, others, kind)


def ordering(draws: random.Random, at: int) -> Made:
    """Who is the tallest, shortest or in the middle, from comparisons in any order."""
    people = draws.sample(NAMES, 4)
    told = [f"{high} is taller than {low}." for high, low in pairwise(people)]
    draws.shuffle(told)
    kind = ("tallest", "shortest", "second tallest")[at % 3]
    right = {"tallest": people[0], "shortest": people[-1], "second tallest": people[1]}[kind]
    others = [name for name in people if name != right]
    return chosen(draws, f"{' '.join(told)} Who is the {kind}?", right, others, kind)


def reading(draws: random.Random, at: int) -> Made:
    """A few sentences, and one thing that they say."""
    people, places = draws.sample(NAMES, 2), draws.sample(PLACES, 2)
    things, colours = draws.sample(THINGS, 2), draws.sample(COLOURS, 2)
    day, price = draws.choice(DAYS), draws.randint(3, 60)
    story = (
        f"On {day} {people[0]} went to the {places[0]} and bought a {colours[0]} {things[0]} for {price} euros. "
        f"{people[1]} stayed at the {places[1]} and mended a {colours[1]} {things[1]}."
    )
    kind = ("who", "where", "what colour", "when")[at % 4]
    question, right, others = {
        "who": (f"Who mended the {things[1]}?", people[1], [name for name in NAMES if name != people[1]]),
        "where": (
            f"Where did {people[0]} go?",
            f"to the {places[0]}",
            [f"to the {one}" for one in PLACES if one != places[0]],
        ),
        "what colour": (f"What colour was the {things[0]}?", colours[0], [one for one in COLOURS if one != colours[0]]),
        "when": (f"On which day did {people[0]} buy it?", day, [one for one in DAYS if one != day]),
    }[kind]
    return chosen(draws, f"{story} {question}", right, others, kind)


def records(draws: random.Random, at: int) -> Made:
    """A sentence to be written as JSON."""
    name, thing, place = draws.choice(NAMES), draws.choice(THINGS), draws.choice(PLACES)
    count, price = draws.randint(2, 90), draws.randint(3, 60)
    sentence = (
        f"{name} orders {count} {thing}s at {price} euros each, to be sent to the {place}.",
        f"Please send {count} {thing}s to the {place} for {name}; each costs {price} euros.",
    )[at % 2]
    answer = {"name": name, "thing": thing, "count": count, "price": price, "place": place}
    question = f"Write this order as one JSON object with the keys {', '.join(answer)}: {sentence}"
    return {"question": question, "answer": json.dumps(answer), "category": ("orders", "requests")[at % 2]}


def prose(draws: random.Random, at: int) -> Made:
    """A short text to measure the loss of; not a stand-in for texts of your own."""
    kind = ("story", "notice")[at % 2]
    people, place, thing = draws.sample(NAMES, 2), draws.choice(PLACES), draws.choice(THINGS)
    day, other = draws.sample(DAYS, 2)
    if kind == "story":
        text = (
            f"On {day} morning {people[0]} walked to the {place} to look for a {thing}. Nobody was there yet, so "
            f"{people[0]} sat down and waited. After an hour {people[1]} came and said that the {thing} had been sold "
            f"on {other}. They laughed about it and went home together."
        )
    else:
        text = (
            f"The {place} is closed on {day} and {other}. If you have lost a {draws.choice(COLOURS)} {thing}, please "
            f"ask for {people[0]} at the desk, or call before {draws.randint(9, 18)}:00. Thank you for your patience."
        )
    return {"text": text, "category": kind}


def instructions(draws: random.Random, at: int) -> Made:
    """A topic with two or three instructions that a program can verify."""
    word, number = draws.choice(THINGS), draws.randint(2, 4)
    groups: dict[str, list[Made]] = {
        "length": [
            {"rule": "words_at_most", "count": draws.randint(3, 8) * 10},
            {"rule": "words_at_least", "count": draws.randint(3, 8) * 10},
            {"rule": "sentences", "count": number},
        ],
        "form": [
            {"rule": "bullets", "count": number + 1},
            {"rule": "paragraphs", "count": number},
            {"rule": "title"},
            {"rule": "numbered", "count": number + 1},
            {"rule": "postscript"},
        ],
        "words": [
            {"rule": "includes", "words": draws.sample(COLOURS, 2)},
            {"rule": "excludes", "words": [*draws.sample(FRUITS, 2), "the"]},
            {"rule": "word_times", "word": word, "count": number},
            {"rule": "no_commas"},
        ],
        "case": [{"rule": "lowercase"}, {"rule": "uppercase"}, {"rule": "capitals_at_least", "count": number}],
    }
    kind = list(groups)[at % len(groups)]
    second = draws.choice([name for name in groups if name != kind])
    wanted = [draws.choice(groups[kind]), draws.choice(groups[second])]
    question = f"Write about {draws.choice(TOPICS)}. {' '.join(map(said, wanted))}"
    return {"question": question, "instructions": wanted, "category": kind}


def chosen(draws: random.Random, question: str, right: str, others: list[str], category: str) -> Made:
    """The right answer among three wrong ones, at a place that is drawn."""
    choices = [right, *draws.sample(others, min(3, len(others)))]
    draws.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(right), "category": category}


GENERATORS: dict[str, Callable[[random.Random, int], Made]] = {
    "arithmetic": arithmetic,
    "lists": lists,
    "patterns": patterns,
    "ordering": ordering,
    "reading": reading,
    "records": records,
    "prose": prose,
    "instructions": instructions,
}
