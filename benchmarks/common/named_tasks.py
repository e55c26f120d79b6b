"""Made exercises in the shape of public data sets, as files that the harness's named tasks read."""

import json
import random
from pathlib import Path

from tunesmith.evaluate.made import COLOURS, DAYS, FRUITS, NAMES, PLACES, THINGS, make


def write_tasks(folder: Path, count: int) -> Path:
    """`count` exercises of every task, the same ones each time; `folder/NAME/SPLIT.jsonl`."""
    stories = [one["text"] for one in make("prose", 3 * count, 1)]
    mmlu = [as_mmlu(one) for one in make("reading", count + 5, 7)]
    files = {
        "arc_easy/test": [as_arc(at) for at in range(count)],
        "hellaswag/validation": [as_hellaswag(at, stories) for at in range(count)],
        "piqa/validation": [as_piqa(at) for at in range(count)],
        "boolq/validation": [as_boolq(at, stories) for at in range(count)],
        "winogrande/validation": [as_winogrande(at) for at in range(count)],
        "mmlu_anatomy/test": mmlu[5:],
        "mmlu_anatomy/dev": mmlu[:5],
        "gsm8k/test": [as_gsm8k(one) for one in make("arithmetic", count, 3)],
        "gsm8k/train": [as_gsm8k(one) for one in make("arithmetic", 16, 4)],
        "wikitext/test": [{"page": " ".join(stories[at : at + 4])} for at in range(0, min(count, 40), 4)],
    }
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def as_arc(at: int) -> dict:
    draws = random.Random(at)
    name, place, thing = draws.choice(NAMES), draws.choice(PLACES), draws.choice(THINGS)
    right = f"to mend the {thing} and bring it back to the {place}"
    others = [f"to {what} and never go to the {place} again" for what in ("eat the bread", "paint a door", "sell it")]
    texts = [right, *others]
    draws.shuffle(texts)
    labels = ["A", "B", "C", "D"]
    question = f"{name} found a broken {thing} at the {place}, and wanted to help. What did {name} most likely plan?"
    answer = labels[texts.index(right)]
    return {"id": str(at), "question": question, "choices": {"text": texts, "label": labels}, "answerKey": answer}


def as_mmlu(made: dict) -> dict:
    return {"question": made["question"], "subject": "anatomy", "choices": made["choices"], "answer": made["answer"]}


def as_hellaswag(at: int, stories: list[str]) -> dict:
    """A story, and four ways in which it may go on."""
    draws = random.Random(at)
    before, last = f"{stories[at]} {stories[at + 1]}", draws.choice(NAMES)
    things, places = draws.sample(THINGS, 4), draws.sample(PLACES, 4)
    endings = [
        f"took the {thing} to the {place} and gave it to a friend who had waited there since {draws.choice(DAYS)}."
        for thing, place in zip(things, places, strict=True)
    ]
    told = {"ctx_a": before, "ctx_b": last, "ctx": f"{before} {last}"}
    return {
        "ind": at,
        "activity_label": "Telling a story",
        **told,
        "endings": endings,
        "label": str(draws.randrange(4)),
    }


def as_piqa(at: int) -> dict:
    draws = random.Random(at)
    thing, place, wrong = draws.choice(THINGS), draws.choice(PLACES), draws.choice(FRUITS)
    right = f"Wipe it with a soft cloth, let it dry, and carry the {thing} to the {place} in a box."
    other = f"Soak it in {wrong} juice for a week, and throw the {thing} over the wall of the {place}."
    label = draws.randrange(2)
    pair = (right, other) if label == 0 else (other, right)
    return {"goal": f"How to bring a {thing} clean to the {place}?", "sol1": pair[0], "sol2": pair[1], "label": label}


def as_boolq(at: int, stories: list[str]) -> dict:
    """Several questions about one long passage, as the data set has them."""
    draws = random.Random(at)
    first = at // 4 * 4
    passage = " ".join(stories[first : first + 4])
    name = draws.choice(NAMES)
    return {
        "passage": passage,
        "question": f"does {name} appear in this text",
        "label": int(name in passage),
        "idx": at,
    }


def as_winogrande(at: int) -> dict:
    draws = random.Random(at)
    one, other = draws.sample(NAMES, 2)
    thing, colour = draws.choice(THINGS), draws.choice(COLOURS)
    sentence = f"{one} gave the {colour} {thing} to {other} because _ did not need it any more."
    return {"sentence": sentence, "option1": one, "option2": other, "answer": "1"}


def as_gsm8k(made: dict) -> dict:
    number = made["answer"].split()[0]
    return {"question": made["question"], "answer": f"The result is {number}.\n#### {number}"}
