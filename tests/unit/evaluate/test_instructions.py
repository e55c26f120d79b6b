"""Every instruction: an answer that follows it and one that does not."""

import pytest

from tunesmith.errors import DataError, Where
from tunesmith.evaluate.instructions import RULES, check_instructions, follows, said

CASES = [
    ({"rule": "words_at_least", "count": 3}, "It's one two-three", "One two"),
    ({"rule": "words_at_most", "count": 2}, "One two", "One two three"),
    ({"rule": "sentences", "count": 2}, "Yes! I do 3.5 times.", "Yes."),
    ({"rule": "sentences_at_most", "count": 1}, "Only one", "Two. Three."),
    ({"rule": "paragraphs", "count": 2}, "One\n\nTwo\nstill two\n", "One\nTwo"),
    ({"rule": "lines", "count": 2}, "One\n\nTwo", "One"),
    ({"rule": "bullets", "count": 2}, "- a\n* b", "- a\nb"),
    ({"rule": "numbered", "count": 2}, "1. a\n2) b", "1. a\n- b"),
    ({"rule": "headings", "count": 1}, "## Title\ntext", "#hash"),
    ({"rule": "highlights", "count": 2}, "*one* and **two**", "*one* and 2 * 3"),
    ({"rule": "placeholders", "count": 1}, "Dear [name],", "Dear [],"),
    ({"rule": "includes", "words": ["red", "deep blue"]}, "Red and deep blue.", "reddish and deep blue"),
    ({"rule": "excludes", "words": ["the"]}, "There we go", "In the end"),
    ({"rule": "word_times", "word": "map", "count": 2}, "A map of a Map, not maps", "map"),
    ({"rule": "letter_at_least", "word": "e", "count": 2}, "Even", "odd"),
    ({"rule": "starts_with", "word": "Dear"}, " Dear all", "dear all"),
    ({"rule": "ends_with", "word": "Bye."}, "So. Bye.\n", "Bye. So"),
    ({"rule": "lowercase"}, "all small, 1", "One"),
    ({"rule": "uppercase"}, "ALL LARGE", "123"),
    ({"rule": "capitals_at_least", "count": 1}, "a BIG one", "A big one"),
    ({"rule": "no_commas"}, "none here", "one, here"),
    ({"rule": "quoted"}, '"all of it"', '"part" of it'),
    ({"rule": "title"}, "<<A day>>\ntext", "<A day>"),
    ({"rule": "json"}, '```json\n{"a": 1}\n```', '{"a": 1'),
    ({"rule": "json_keys", "words": ["a"]}, '{"a": 1, "b": 2}', '{"b": 2}'),
    ({"rule": "postscript"}, "Text\nP.S. more", "Text P.S. more"),
    ({"rule": "one_of", "words": ["yes", "no"]}, " yes ", "Yes"),
    ({"rule": "separated", "count": 2}, "one\n******\ntwo", "one\n******\none"),
]


@pytest.mark.parametrize(("instruction", "good", "bad"), CASES, ids=[case[0]["rule"] for case in CASES])
def test_an_answer_follows_it_or_not(instruction, good, bad):
    check_instructions([instruction], Where())
    assert follows(good, instruction)
    assert not follows(bad, instruction)
    assert not follows("", instruction)
    assert "{" not in said(instruction)


def test_every_rule_has_its_case():
    assert [case[0]["rule"] for case in CASES] == list(RULES)


@pytest.mark.parametrize(
    "wrong",
    [
        None, [], ["lowercase"], [{"count": 3}], [{"rule": "lowercas"}], [{"rule": "bullets"}],
        [{"rule": "bullets", "count": "3"}], [{"rule": "bullets", "count": True}], [{"rule": "includes", "words": [1]}],
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused(wrong):
    with pytest.raises(DataError) as caught:
        check_instructions(wrong, Where("t.jsonl", 4))
    assert caught.value.diagnostic.code == "E463"
    assert caught.value.diagnostic.fixes
