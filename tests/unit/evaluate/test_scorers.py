"""Each scorer on answers that are right, nearly right and wrong."""

import builtins
import json

import pytest
from pydantic import TypeAdapter

from tunesmith.errors import DataError, MachineError, UsageError, Where
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.json_schema import CHECKS, FORMS, check_schema, fits
from tunesmith.evaluate.quantities import Quantity, quantities
from tunesmith.evaluate.scorers import SCORERS, SHARES, AnswerScorer, Scorer, unknown_scorer

READ: TypeAdapter[AnswerScorer] = TypeAdapter(Scorer)


def score(name: str, answer: str, *wanted: str, fields: dict | None = None, **settings) -> float:
    scorer = READ.validate_python({"name": name, **settings})
    exercise = Exercise("e", "q", wanted, fields=fields or {})
    scorer.prepare()
    scorer.check(exercise)
    return scorer.score(answer, exercise)


@pytest.mark.parametrize(
    ("name", "answer", "wanted", "settings", "value"),
    [
        ("exact", " Paris\n", "Paris", {}, 1),
        ("exact", "paris", "Paris", {}, 0),
        ("exact", "paris", "Paris", {"ignore_case": True}, 1),
        ("exact", "apple,  fig.", "apple, fig", {"ignore_punctuation": True}, 1),
        ("contains", "It is Paris, I think.", "paris", {}, 1),
        ("contains", "It is Parisian.", "Paris", {}, 0),
        ("contains", "It is Paris.", "paris", {"ignore_case": False}, 0),
        ("regex", "no. Answer: B", "B", {"pattern": r"Answer: (\w)"}, 1),
        ("regex", "Answer: A. No, Answer: B", "A", {"pattern": r"Answer: (\w)"}, 0),
        ("regex", "nothing", "B", {"pattern": r"Answer: (\w)"}, 0),
        ("regex", "x is yes", "", {"pattern": r"\byes\b"}, 1),
        ("numeric", "12 + 30 = 42.", "42", {}, 1),
        ("numeric", "It costs $1,234.50", "1234.5", {}, 1),
        ("numeric", "That is 3500 g.", "3.5 kg", {}, 1),
        ("numeric", "That is 3.5", "3.5 kg", {}, 0),
        ("numeric", "That is 3.5", "3.5 kg", {"unit_required": False}, 1),
        ("numeric", "That is 3.5 m", "3.5 kg", {"unit_required": False}, 0),
        ("numeric", "3.5 l", "3500 ml", {}, 1),
        ("numeric", "about 41.9", "42", {"tolerance": 0.01}, 1),
        ("numeric", "about 41.9", "42", {}, 0),
        ("numeric", "42 and not 7", "42", {"which": "first"}, 1),
        ("numeric", "seven", "7", {}, 0),
        ("numeric", "-3", "\N{MINUS SIGN}3", {}, 1),
        ("numeric", "it is 3/4", "0.75", {}, 1),
        ("numeric", "50 %", "50%", {}, 1),
        ("json", '```json\n{"a": 1.0, "b": [true]}\n```', '{"b": [true], "a": 1}', {}, 1),
        ("json", '{"a": true}', '{"a": 1}', {}, 0),
        ("json", 'Here: {"a": 1}', '{"a": 1}', {}, 0),
        ("f1", "the cat sat", "a cat", {}, 2 / 3),
        ("f1", "the", "", {}, 1),
        ("f1", "dog", "cat", {}, 0),
    ],
)  # fmt: skip
def test_answers_get_their_score(name, answer, wanted, settings, value):
    assert score(name, answer, wanted, **settings) == pytest.approx(value)


def test_the_best_of_several_right_answers_counts():
    assert score("exact", "NYC", "New York", "NYC") == 1
    assert score("f1", "new york city", "NYC", "New York") == pytest.approx(0.8)


def test_numbers_are_found_with_their_units():
    assert quantities("O3 and x-5, 10-3, 1e3 m, .5 h") == [
        Quantity(5, 5), Quantity(10, 10), Quantity(3, 3), Quantity(1000, 1000, "length"), Quantity(0.5, 1800, "time"),
    ]  # fmt: skip
    assert quantities("+,O3 1/0 $5 60 km/h") == [Quantity(5, 5, "dollars"), Quantity(60, 60 / 3.6, "speed")]


def test_bleu_and_chrf_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    answer, wanted = "the cat sat on the mat", "the cat is on the mat"
    assert score("bleu", wanted, wanted) == pytest.approx(1)
    assert score("bleu", answer, wanted) == pytest.approx(sacrebleu.sentence_bleu(answer, [wanted]).score / 100)
    assert score("chrf", answer, wanted) == pytest.approx(sacrebleu.sentence_chrf(answer, [wanted]).score / 100)


def test_rouge_is_rouge_scores():
    pytest.importorskip("rouge_score")
    assert score("rouge1", "the cat sat", "the cat") == pytest.approx(0.8)
    assert score("rouge2", "the cat sat", "the cat") == pytest.approx(2 / 3)
    assert score("rougeL", "cats the", "the cat") == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["bleu", "rougeL"])
def test_a_missing_package_is_told_with_the_command(name, monkeypatch):
    real = builtins.__import__

    def without(module, *rest):
        if module.split(".")[0] in ("sacrebleu", "rouge_score"):
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError) as caught:
        READ.validate_python({"name": name}).prepare()
    assert caught.value.diagnostic.code == "E457"
    assert caught.value.diagnostic.fixes[0].command == "pip install 'tunesmith[eval]'"


def test_instructions_are_all_followed_or_a_share_of_them():
    fields = {"instructions": [{"rule": "lowercase"}, {"rule": "words_at_most", "count": 2}]}
    assert score("instructions", "two words", fields=fields) == 1
    assert score("instructions", "now three words", fields=fields) == 0
    assert score("instructions_share", "now three words", fields=fields) == 0.5


SCHEMA = {
    "type": "object",
    "required": ["name", "tags"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^[a-z]+$"},
        "tags": {"type": "array", "items": {"enum": ["x", "y", 1]}, "minItems": 1, "maxItems": 3, "uniqueItems": True},
        "size": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 10},
        "kind": {"anyOf": [{"const": "a"}, {"type": "number", "exclusiveMinimum": 1, "maximum": 2}]},
        "odd": {"allOf": [{"type": "integer"}, {"not": {"const": 2}}]},
        "one": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        "never": False,
    },
}


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"size": None}, True),
        ({"size": 3.0}, True),
        ({"size": 3.5}, False),
        ({"size": True}, False),
        ({"size": -1}, False),
        ({"size": 10}, False),
        ({"name": ""}, False),
        ({"name": "toolong"}, False),
        ({"name": "A"}, False),
        ({"tags": []}, False),
        ({"tags": ["x", "x"]}, False),
        ({"tags": ["x", "y", 1, "x"]}, False),
        ({"tags": [True]}, False),
        ({"tags": "x"}, False),
        ({"kind": "a"}, True),
        ({"kind": 2}, True),
        ({"kind": 1}, False),
        ({"kind": 2.5}, False),
        ({"odd": 2}, False),
        ({"one": 1.5}, True),
        ({"one": 1}, False),
        ({"never": 1}, False),
        ({"other": 1}, False),
    ],
)
def test_a_schema_allows_what_it_says(change, valid):
    answer = json.dumps({"name": "ab", "tags": ["x"], **change})
    assert score("json_schema", answer, schema=SCHEMA) == valid
    assert score("json_schema", answer, fields={"schema": SCHEMA}) == valid


def test_text_that_is_no_json_fits_no_schema():
    assert score("json_schema", "no", schema={}) == 0
    assert score("json_schema", "NaN", schema={}) == 0
    assert fits({"a": 1}, {"required": ["b"]}) is False


@pytest.mark.parametrize(
    "wrong", [{"$ref": "#/x"}, {"typ": "object"}, {"type": "text"}, {"pattern": "("}, {"minItems": -1}, {"anyOf": 3}, 7]
)
def test_a_schema_that_is_not_understood_is_refused(wrong):
    with pytest.raises(UsageError) as caught:
        check_schema({"properties": {"a": wrong}}, Where("task.yaml", 3))
    assert caught.value.diagnostic.code == "E460"
    assert CHECKS.keys() == FORMS.keys()


@pytest.mark.parametrize(
    ("name", "wanted", "settings", "code"),
    [
        ("exact", (), {}, "E452"),
        ("numeric", ("many",), {}, "E452"),
        ("json", ("{",), {}, "E452"),
        ("json_schema", (), {}, "E452"),
        ("instructions", (), {}, "E463"),
        ("regex", (), {"pattern": "("}, "E464"),
    ],
)
def test_exercises_that_cannot_be_scored_are_refused(name, wanted, settings, code):
    with pytest.raises((DataError, UsageError)) as caught:
        score(name, "x", *wanted, **settings)
    assert caught.value.diagnostic.code == code
    assert caught.value.diagnostic.fixes or code == "E452"


PROGRAM = {"program": "{prompt}{answer}\n{tests}"}
FIELDS = {"prompt": "def double(x):\n", "tests": ["assert double(2) == 4", "assert double('a') == 'aa'"]}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("    return 2 * x", 1),
        ("    return x + 2", 0),
        ("    return 2 * x\nraise SystemExit(0)", 0),
        ("    pass\n```python\ndef double(x):\n    return x + x\n```\nThat is all.", 0),
        ("```python\n    return x + x\n```\nThat is all.", 1),
        ("```\n    return x + x", 1),
    ],
)
def test_code_is_right_when_its_program_runs_to_the_end(answer, value):
    assert score("code", answer, fields=FIELDS, **PROGRAM) == value


def test_code_names_what_an_exercise_lacks():
    with pytest.raises(DataError, match="no test: the program of the scorer names it"):
        score("code", "x = 1")


def test_unknown_scorers_are_told_with_the_nearest():
    found = unknown_scorer("exakt", Where("t.yaml")).diagnostic
    assert (found.code, found.fixes[0].label) == ("E453", "did you mean exact?")
    assert unknown_scorer("pass_at_1", Where("t.yaml")).diagnostic.fixes[0].label == "did you mean code?"


def test_every_scorer_has_its_name_in_the_list():
    settings = {"regex": {"pattern": "x"}}
    titles = [READ.validate_python({"name": name, **settings.get(name, {})}).title for name in SCORERS]
    assert titles == list(SCORERS)
    assert set(SCORERS) > SHARES
