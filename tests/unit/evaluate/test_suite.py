"""A tiny model at tasks of every kind: what is asked, what is measured, what is reported."""

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError, ModelError, UsageError
from tunesmith.evaluate.asking import Asking
from tunesmith.evaluate.comparison import Report, report_on
from tunesmith.evaluate.contamination import Overlap, Seen
from tunesmith.evaluate.deciding import check_pairwise, decide
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.page import page
from tunesmith.evaluate.plots import Mark, interval_plot, ticks
from tunesmith.evaluate.suite import TaskRun, Working, cut, run_task
from tunesmith.evaluate.tasks import TaskConfig, exercises_of
from tunesmith.evaluate.told import markdown, number
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.types import Message

COUNTRIES = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid")]
CAPITALS = [
    {"question": f"Capital of {name}?", "choices": ["Paris", "Rome", "Madrid"], "answer": city, "category": name[0]}
    for name, city in COUNTRIES
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture(scope="module")
def working(folder: Path) -> Working:
    return Working(load_base(folder, ModelConfig(path=str(folder))), load_tokenizer(folder))


def task_of(kind: str, exercises: list[dict], **settings) -> TaskConfig:
    return TaskConfig.model_validate({"name": "t", "kind": kind, "exercises": exercises, **settings})


def run(working: Working, task: TaskConfig) -> TaskRun:
    return run_task(working, task, exercises_of(task, Path("t.yaml")))


def logprob(folder: Path, before: list[int], after: list[int]) -> float:
    """Of tokens behind others, through transformers' own attention."""
    model = load_base(folder, ModelConfig(path=str(folder)))
    model.set_attn_implementation("eager")
    ids = [*before, *after]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, ids[place]].item() for place in range(len(before), len(ids)))


def test_choices_in_plain_text_continue_the_question(working, folder):
    found = run(working, task_of("choice", CAPITALS, prompt="{question}\nAnswer:", chat="never"))
    tokenizer = working.tokenizer
    before = tokenizer.encode("Capital of France?\nAnswer:", specials=False)
    wanted = [
        logprob(folder, before, tokenizer.encode(f" {one}", specials=False)) for one in ("Paris", "Rome", "Madrid")
    ]
    detail = found.results[0].detail
    assert detail["logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert [one.name for one in found.measures] == ["accuracy", "accuracy_length", "accuracy_tokens"]
    for one in found.results:
        sums, names = one.detail["logprobs"], one.detail["choices"]
        assert one.answer == names[sums.index(max(sums))]
        assert one.scores["accuracy"] == float(one.answer == one.reference)
        lengths = [value / len(name) for value, name in zip(sums, names, strict=True)]
        assert one.scores["accuracy_length"] == float(names[lengths.index(max(lengths))] == one.reference)


def test_choices_in_a_chat_continue_its_prompt(working, folder):
    found = run(working, task_of("choice", CAPITALS, system="Be short.", normalise="length"))
    before = working.tokenizer.prompt_ids([Message("system", "Be short."), Message("user", "Capital of France?")])
    wanted = [
        logprob(folder, before, working.tokenizer.encode(one, specials=False)) for one in ("Paris", "Rome", "Madrid")
    ]
    assert found.results[0].detail["logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert found.measures[0].name == "accuracy_length"


def test_solved_examples_stand_before_the_question(working):
    task = task_of("choice", CAPITALS[:2], examples=[CAPITALS[2]], chat="never")
    asking = Asking.of(task, working.tokenizer)
    [one, _] = exercises_of(task, Path("t.yaml"))
    assert working.tokenizer.decode(asking.question(one)) == "Capital of Spain? Madrid\n\nCapital of France?"
    chat = Asking.of(task.model_copy(update={"chat": "always"}), working.tokenizer)
    turns = [Message("user", "Capital of Spain?"), Message("assistant", "Madrid"), Message("user", one.prompt)]
    assert chat.question(one) == working.tokenizer.prompt_ids(turns)


def test_loss_is_that_of_every_token_and_bits_are_by_bytes(working, folder):
    text = "The quick brown föx."
    found = run(working, task_of("loss", [{"text": text}]))
    ids = working.tokenizer.encode(text, specials=False)
    nats = -logprob(folder, Asking.of(found.task, working.tokenizer).starts, ids)
    [one] = found.results
    assert one.scores["loss"] == pytest.approx(nats / len(ids), abs=1e-5)
    assert one.scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), abs=1e-5)
    assert one.weights == {"loss": len(ids), "bits_per_byte": len(text.encode())}


def test_long_texts_are_measured_in_pieces(working):
    task = task_of("loss", [{"text": "Hello, how are you? " * 200}])
    [one] = run(working, task).results
    assert one.detail["tokens"] == len(working.tokenizer.encode("Hello, how are you? " * 200, specials=False)) > 512


def test_the_loss_of_an_answer_leaves_its_question_out(working, folder):
    found = run(working, task_of("loss", [{"question": "Hello", "answer": "Hi."}], chat="never"))
    tokenizer = working.tokenizer
    ids = tokenizer.encode(" Hi.", specials=False)
    nats = -logprob(folder, tokenizer.encode("Hello", specials=False), ids)
    assert found.results[0].scores["loss"] == pytest.approx(nats / len(ids), abs=1e-5)


def test_answers_are_the_models_own_and_every_scorer_marks_them(working):
    rows = [{"question": "Hello", "answer": "Hi"}, {"question": "Good morning", "answer": "x"}]
    task = task_of("generation", rows, scorers=["exact", "f1"], max_new_tokens=8)
    prompts = [working.tokenizer.prompt_ids([Message("user", row["question"])]) for row in rows]
    made = generate(working.model, working.tokenizer, prompts, Sampling(8))
    found = run(working, task)
    assert [one.answer for one in found.results] == [one.text for one in made]
    assert [one.finished for one in found.results] == [one.finished for one in made]
    assert all(one.scores.keys() == {"exact", "f1"} for one in found.results)
    right = [{**row, "answer": one.text} for row, one in zip(rows, made, strict=True)]
    again = run(working, task_of("generation", right, scorers=["exact"], max_new_tokens=8))
    assert [one.scores["exact"] for one in again.results] == [1.0, 1.0]


def test_stops_end_answers_to_plain_text():
    assert cut("\n42\nQuestion", ["\n"]) == ("\n42", True)
    assert cut("42 and", ["\n", "!"]) == ("42 and", False)
    assert cut("a;b!", ["!", ";"]) == ("a", True)


def test_a_model_without_a_template_is_told(working, tmp_path):
    bare = load_tokenizer(tiny_model_folder(tmp_path, template=None))
    task = task_of("generation", [{"question": "q", "answer": "a"}], scorers=["exact"], max_new_tokens=2)
    plain = run(replace(working, tokenizer=bare), task)
    assert [one.code for one in plain.warnings] == ["W451"]
    with pytest.raises(ModelError) as caught:
        run(replace(working, tokenizer=bare), task.model_copy(update={"chat": "always"}))
    assert caught.value.diagnostic.code == "E456"


def test_what_does_not_fit_is_left_out_and_told(working):
    long = "word " * 600
    for kind, more in (("choice", {"choices": ["a", "b"], "answer": 0}), ("generation", {"answer": "a"})):
        scorers = {"scorers": ["exact"]} if kind == "generation" else {}
        rows = [{"question": long, **more}, {"question": "short", **more}]
        found = run(working, task_of(kind, rows, max_new_tokens=2, **scorers))
        assert len(found.results) == 1
        assert "W452" in [one.code for one in found.warnings]
        with pytest.raises(DataError) as caught:
            run(working, task_of(kind, rows[:1], **scorers))
        assert caught.value.diagnostic.code == "E461"


def test_pairwise_answers_are_decided_by_a_rule(working, tmp_path):
    rows = [{"question": "Hello"}, {"question": "Good morning"}, {"question": "Why?"}]
    task = task_of("pairwise", rows, decider={"rule": "longer"}, max_new_tokens=4)
    base = run(working, task)
    first, second, third = base.results
    base.results[:] = [replace(first, answer="short"), replace(second, answer="the longer one"), third]
    other = replace(base, results=[replace(first, answer="longer one"), replace(second, answer="short"), third])
    found = decide({"a": base, "b": other}, tmp_path / "votes.jsonl")
    assert [one.scores["wins"] for one in found["b"].results] == [1.0, 0.0, 0.5]
    assert {one.scores["wins"] for one in found["a"].results} == {0.5}
    check_pairwise([task], ["a", "b"])
    for tasks, models, code in (([task], ["a"], "E458"), ([task_of("pairwise", rows)], ["a", "b"], "E270")):
        with pytest.raises(UsageError) as caught:
            check_pairwise(tasks, models)
        assert caught.value.diagnostic.code == code


@pytest.fixture(scope="module")
def report(working) -> Report:
    """Two runs, of which the second knows nothing any more, with an answer that would break a page."""
    names = [f"e{at}" for at in range(12)]
    rows = [
        {"question": f"<b>{name}</b> & | ` {at}", "answer": "a", "category": "xy"[at % 2]}
        for at, name in enumerate(names)
    ]
    first = run(working, task_of("generation", rows, scorers=["exact"], max_new_tokens=1, about="a < b"))
    texts = run(working, task_of("loss", [{"text": f"Text {at}."} for at in range(5)], name="u"))
    good = replace(first, results=[replace(one, scores={"exact": 1.0}, answer="a") for one in first.results])
    bad = replace(
        first, results=[replace(one, scores={"exact": 0.0}, answer="</pre>\x00<script>") for one in first.results]
    )
    worse = replace(
        texts, results=[replace(one, scores={n: v + 1 for n, v in one.scores.items()}) for one in texts.results]
    )
    overlaps = [Overlap("t", 12, 0, 100, (Seen("t-1", 1.0, "f:1"),)), Overlap("u", 0, 5, 100, ())]
    return report_on("two", {"<base>": [good, texts], "new": [bad, worse]}, overlaps)


def test_regressions_come_first(report):
    first = report.differences[0]
    assert (first.task, first.verdict, first.main, first.category) == ("t", "worse", True, "")
    assert (first.change.value, first.worse, first.test) == (-1.0, 12, "mcnemar")
    assert first.p == pytest.approx(2 * 0.5**12)
    loss = next(one for one in report.differences if one.measure == "bits_per_byte")
    assert (loss.change.value, loss.worse, loss.verdict) == (pytest.approx(-1), 5, "open")  # p of 5 signs is 1/16
    assert {one.category for one in report.differences} == {"", "x", "y"}
    assert [one.change for one in report.changes] == sorted(one.change for one in report.changes)
    clean = [one.clean.n for one in report.summaries if one.clean is not None]
    assert clean == [11, 11]
    assert [one.code for one in report.warnings] == ["W450"]
    json.dumps(report.to_json(), allow_nan=False)


def test_the_page_is_well_formed_and_needs_nothing_else(report):
    text = page(report)
    root = ElementTree.fromstring(text)
    assert root.tag == "html"
    tags = {node.tag for node in root.iter()}
    assert tags >= {"svg", "table", "details", "style", "h2"}
    assert not tags & {"script", "img", "link", "iframe", "b2"}
    assert not [value for node in root.iter() for name, value in node.attrib.items() if name in ("src", "href")]
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text
    assert "<base>" not in text
    seen: list[str] = []
    parser = HTMLParser()
    parser.handle_data = seen.append
    parser.feed(text)
    assert any("<base>" in part for part in seen)
    dots = list(root.iter("circle"))
    assert dots
    assert all(0 <= float(dot.attrib["cx"].removesuffix("%")) <= 100 for dot in dots)


def test_the_page_folds_away_what_shows_no_difference(report):
    root = ElementTree.fromstring(page(report))
    tables = list(root.iter("table"))
    verdicts = [[row[0].text for row in one.iter("tr")][1:] for one in tables[:2]]
    assert verdicts == [["worse", "open"], ["open"] * len(verdicts[1])]
    folded = next(node for node in root.iter("details"))
    assert folded[0].text == f"{len(verdicts[1])} other figures and categories: no difference shown"
    assert list(folded.iter("table")) == [tables[1]]
    titles = [cell.text for cell in tables[0].iter("th")]
    assert "model" not in titles  # only one is compared with the first


def test_labels_are_whole_however_long_they_are():
    mark = Mark("a name that is longer than any plot is wide <" * 4, 3.0, 2.0, math.nan, "3", "m1")
    root = ElementTree.fromstring(interval_plot("<t>", [mark, replace(mark, high=4.0)], zero=True))
    assert [node.text for node in root.iter("span") if node.get("class") == "label"][1:] == [mark.label] * 2
    first, second = [[line for line in row.iter("line") if line.get("class") == "whisker"] for row in list(root)[1:]]
    assert (len(first), len(second)) == (0, 1)  # an interval without an end is not drawn
    assert float(second[0].attrib["x1"].strip("%")) < float(second[0].attrib["x2"].strip("%"))


@pytest.mark.parametrize(
    ("value", "measure", "told"),
    [(0.12345, "loss", "+0.123"), (-0.00004, "loss", "0.000"), (-1234.5, "perplexity", "-1,234"),
     (0.0004, "exact", "0.0"), (-0.1, "exact", "-10.0")],
)  # fmt: skip
def test_numbers_have_the_digits_that_mean_something(value, measure, told):
    assert number(value, measure, signed=True) == told


def test_markdown_tells_the_same(report):
    text = markdown(report)
    assert "new against <base>: worse: t; no difference shown: u" in text
    assert "## Lost" in text
    assert "## Gained" not in text
    assert "1 of 12 seen in 100 records" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| worse")}
    assert widths == {11}


def test_one_model_alone_has_no_differences(report, working):
    done = run(working, task_of("choice", CAPITALS, chat="never"))
    alone = report_on("one", {"a": [done]})
    assert (alone.differences, alone.changes, alone.warnings) == ([], [], [])
    assert ElementTree.fromstring(page(alone)).tag == "html"
    assert "Differences" not in markdown(alone)
    assert alone.summaries[0].categories.keys() == {"F", "I", "S"}


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-3.2, 0.1), (-0.0004, 0.0003), (0, 1e4), (7.1, 7.3)])
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= place <= high + 1e-9 for place in found)
    assert found == sorted(found)


def test_names_of_exercises_pair_results():
    one = Exercise("a", "q", ("x",))
    assert one.reference == "x"
    assert Exercise("a", "q").reference == ""
