"""Instructions that a program can verify: how each is said, and whether an answer follows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import DataError, Where, nearest
from tunesmith.evaluate.metrics import valid_json

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++(?=[\s\"')\]]|$)")
BULLET = re.compile(r"^\s*[-*•]\s+\S", re.M)
NUMBERED = re.compile(r"^\s*\d+[.)]\s+\S", re.M)
HEADING = re.compile(r"^#{1,6}\s+\S", re.M)
TITLE = re.compile(r"<<[^<>\n]+>>")
PLACE = re.compile(r"\[[^\[\]\n]+\]")
BOLD = re.compile(r"\*\*[^*\n]+\*\*|(?<!\*)\*[^*\s][^*\n]*\*(?!\*)")
FENCE = re.compile(r"\A```\w*\n(.*)\n```\Z", re.S)

Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """`wants` names what must be given, with its type; `said` is the sentence that asks for it."""

    said: str
    follows: Callable[[str, Given], bool]
    wants: Mapping[str, type | tuple[type, ...]]


def count_words(text: str) -> int:
    return len(WORD.findall(text))


def count_sentences(text: str) -> int:
    """Ends of sentences, and one more where words follow the last."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(WORD.search(rest))


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def times(text: str, word: str) -> int:
    """How often a word or phrase stands in the text, in either case, never as part of a longer word."""
    return len(re.findall(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text.lower()))


def shouted(text: str) -> int:
    """Words of two letters or more in capitals."""
    return sum(len(word) > 1 and word.isupper() for word in WORD.findall(text))


def unfenced(text: str) -> str:
    """The text inside one code fence that holds all of it."""
    found = FENCE.match(text.strip())
    return found[1] if found else text.strip()


def has_keys(text: str, given: Given) -> bool:
    body = unfenced(text)
    return valid_json(body) and set(given["words"]) <= set(json.loads(body))


N = {"count": int}
RULES: dict[str, Rule] = {
    "words_at_least": Rule("Use at least {count} words.", lambda text, to: count_words(text) >= to["count"], N),
    "words_at_most": Rule("Use at most {count} words.", lambda text, to: 0 < count_words(text) <= to["count"], N),
    "sentences": Rule("Write exactly {count} sentences.", lambda text, to: count_sentences(text) == to["count"], N),
    "sentences_at_most": Rule(
        "Write at most {count} sentences.", lambda text, to: 0 < count_sentences(text) <= to["count"], N
    ),
    "paragraphs": Rule(
        "Write exactly {count} paragraphs, with an empty line between them.",
        lambda text, to: len(paragraphs(text)) == to["count"],
        N,
    ),
    "lines": Rule("Write exactly {count} lines.", lambda text, to: len(lines(text)) == to["count"], N),
    "bullets": Rule(
        "Give exactly {count} bullet points, each on a line that begins with a dash.",
        lambda text, to: len(BULLET.findall(text)) == to["count"],
        N,
    ),
    "numbered": Rule(
        "Give a numbered list of exactly {count} points.",
        lambda text, to: len(NUMBERED.findall(text)) == to["count"],
        N,
    ),
    "headings": Rule(
        "Use at least {count} Markdown headings.", lambda text, to: len(HEADING.findall(text)) >= to["count"], N
    ),
    "highlights": Rule(
        "Highlight at least {count} phrases with asterisks, *like this*.",
        lambda text, to: len(BOLD.findall(text)) >= to["count"],
        N,
    ),
    "placeholders": Rule(
        "Leave at least {count} places to fill in, in square brackets, such as [name].",
        lambda text, to: len(PLACE.findall(text)) >= to["count"],
        N,
    ),
    "includes": Rule(
        "Use each of these words: {words}.",
        lambda text, to: all(times(text, one) for one in to["words"]),
        {"words": list},
    ),
    "excludes": Rule(
        "Do not use any of these words: {words}.",
        lambda text, to: bool(text.strip()) and not any(times(text, one) for one in to["words"]),
        {"words": list},
    ),
    "word_times": Rule(
        "Use the word {word} exactly {count} times.",
        lambda text, to: times(text, to["word"]) == to["count"],
        {"word": str, "count": int},
    ),
    "letter_at_least": Rule(
        "Use the letter {word} at least {count} times.",
        lambda text, to: text.lower().count(to["word"].lower()) >= to["count"],
        {"word": str, "count": int},
    ),
    "starts_with": Rule(
        "Begin with exactly these words: {word}", lambda text, to: text.lstrip().startswith(to["word"]), {"word": str}
    ),
    "ends_with": Rule(
        "End with exactly these words, and nothing after them: {word}",
        lambda text, to: text.rstrip().endswith(to["word"]),
        {"word": str},
    ),
    "lowercase": Rule(
        "Write in lower case only.", lambda text, _: any(map(str.isalpha, text)) and text == text.lower(), {}
    ),
    "uppercase": Rule(
        "Write in CAPITALS only.", lambda text, _: any(map(str.isalpha, text)) and text == text.upper(), {}
    ),
    "capitals_at_least": Rule(
        "Write at least {count} words in CAPITALS.", lambda text, to: shouted(text) >= to["count"], N
    ),
    "no_commas": Rule("Do not use commas.", lambda text, _: bool(text.strip()) and not re.search("[,，、]", text), {}),
    "quoted": Rule(
        "Put the whole answer in double quotation marks.",
        lambda text, _: len(text.strip()) > 2 and text.strip()[0] in '"“' and text.strip()[-1] in '"”',
        {},
    ),
    "title": Rule(
        "Give it a title in double angle brackets, <<like this>>.", lambda text, _: bool(TITLE.search(text)), {}
    ),
    "json": Rule("Answer with JSON and nothing else.", lambda text, _: valid_json(unfenced(text)), {}),
    "json_keys": Rule("Answer with one JSON object that has the keys {words}.", has_keys, {"words": list}),
    "postscript": Rule(
        "Add a postscript that begins with P.S.", lambda text, _: bool(re.search(r"^\s*P\.\s?S\.", text, re.M)), {}
    ),
    "one_of": Rule(
        "Answer with one of these and nothing else: {words}.",
        lambda text, to: text.strip() in to["words"],
        {"words": list},
    ),
    "separated": Rule(
        "Give exactly {count} different answers with a line of six asterisks between them.",
        lambda text, to: len({part.strip() for part in text.split("******") if part.strip()}) == to["count"],
        N,
    ),
}


def said(instruction: Given) -> str:
    """The sentence that asks for it."""
    given = {name: ", ".join(value) if isinstance(value, list) else value for name, value in instruction.items()}
    return RULES[instruction["rule"]].said.format_map(given)


def follows(answer: str, instruction: Given) -> bool:
    return RULES[instruction["rule"]].follows(answer, instruction)


def check_instructions(value: Any, where: Where) -> None:
    """DataError E463 unless these are instructions that can be verified."""
    if not isinstance(value, list) or not value:
        raise bad_instruction("`instructions` is a list with at least one of them", where)
    for one in value:
        if not isinstance(one, dict) or not isinstance(one.get("rule"), str):
            raise bad_instruction("an instruction is an object with a `rule`", where)
        rule = RULES.get(one["rule"])
        if rule is None:
            near = nearest(one["rule"], RULES)
            raise bad_instruction(f"no rule is called {one['rule']!r}", where, near and f"did you mean {near}?")
        for name, kind in rule.wants.items():
            if not isinstance(one.get(name), kind) or isinstance(one.get(name), bool):
                raise bad_instruction(f"the rule {one['rule']} needs {name}", where)
            if kind is list and not all(isinstance(word, str) for word in one[name]):
                raise bad_instruction(f"{name} of the rule {one['rule']} is a list of words", where)


def bad_instruction(message: str, where: Where, fix: str | None = None) -> DataError:
    example = 'for example "instructions": [{"rule": "words_at_most", "count": 50}]'
    evidence = [f"rules: {', '.join(RULES)}"]
    return DataError("E463", message, where=where, evidence=evidence, fixes=[fix or example])
