"""Task files: what is read, what is made, and how faults are told."""

import json
from pathlib import Path

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.evaluate.instructions import check_instructions
from tunesmith.evaluate.made import GENERATORS, make
from tunesmith.evaluate.tasks import exercises_of, load_suite, shipped_suites

CHOICE = """
name: capitals
kind: choice
prompt: "Capital of {country}? {{x}}"
exercises:
- {country: France, choices: [Rome, Paris], answer: 1, category: west}
- {country: Italy, choices: [Rome, Paris], answer: A}
- {country: Italy, choices: [Rome, Paris], answer: Rome}
"""


def written(folder: Path, text: str, name: str = "task.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(name: str) -> list:
    return [exercises_of(task, path) for task, path in load_suite(name)]


def fault(text: str, folder: Path):
    with pytest.raises(TunesmithError) as caught:
        read(written(folder, text))
    return caught.value.diagnostic


def test_a_task_is_read_with_its_exercises(tmp_path):
    [(task, path)] = load_suite(written(tmp_path, CHOICE))
    found = exercises_of(task, path)
    assert [one.right for one in found] == [1, 0, 0]
    assert found[0].prompt == "Capital of France? {{x}}"
    assert [one.name for one in found] == ["capitals-1", "capitals-2", "capitals-3"]
    assert (found[0].category, found[0].reference) == ("west", "Paris")
    assert len(exercises_of(task, path, limit=2)) == 2


def test_a_file_of_exercises_stands_beside_the_task(tmp_path):
    rows = [{"q": "1 + 1?", "target": 2}, {"q": "x?", "target": ["a", "b"]}, {"q": "y?", "target": 2.5}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = 'name: sums\nkind: generation\nprompt: "{q}"\nanswer: target\ndata: data.jsonl\nscorers: exact\n'
    [(task, path)] = load_suite(written(tmp_path, text))
    found = exercises_of(task, path)
    assert [one.answers for one in found] == [("2",), ("a", "b"), ("2.5",)]
    assert [one.name for one in found] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    assert found[2].where.line == 3


def test_choices_with_labels_are_those_of_arc(tmp_path):
    row = {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}
    text = f"name: t\nkind: choice\nexercises: [{json.dumps(row)}]\n"
    [(task, path)] = load_suite(written(tmp_path, text))
    assert exercises_of(task, path)[0].right == 1


def test_a_suite_lists_names_files_and_tasks(tmp_path):
    written(tmp_path, CHOICE, "capitals.yaml")
    inline = "{name: own, kind: loss, exercises: [{text: Hello there.}]}"
    suite = written(tmp_path, f"tasks: [capitals.yaml, prose, {inline}]\n", "suite.yaml")
    assert [task.name for task, _ in load_suite(suite)] == ["capitals", "prose", "own"]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("name: t\nkind: choise\n", "E451", "kind"),
        ("name: t\nkind: loss\nexcercises: []\n", "E451", "excercises"),
        ("kind: loss\n", "E451", "name"),
        ("- 1\n", "E451", "object"),
        ("name: t\nkind: loss\n", "E451", "no exercises"),
        ("name: t\nkind: loss\ndata: x.jsonl\nmade: {generator: prose}\n", "E451", "both"),
        ("name: t\nkind: generation\nmade: {generator: lists}\n", "E451", "no scorers"),
        ("name: t\nkind: choice\nmade: {generator: patterns}\nscorers: [exact]\n", "E451", "has no scorers"),
        ("name: t\nkind: generation\nmade: {generator: lists}\nscorers: [exact, exact]\n", "E451", "twice"),
        ("tasks: [prose, prose]\n", "E451", "two tasks"),
        ("tasks: [task.yaml]\n", "E451", "itself"),
        ("tasks: [proze]\n", "E450", "proze"),
        ("tasks: []\n", "E451", "list"),
        ("name: t\nkind: generation\nmade: {generator: lists}\nscorers: [exakt]\n", "E453", "exakt"),
        ("name: t\nkind: generation\nmade: {generator: lists}\nscorers: [{name: code}]\n", "E452", "no test"),
        ("name: t\nkind: loss\nmade: {generator: pros}\n", "E454", "pros"),
        ("name: t\nkind: loss\nexercises: [{txt: a}]\n", "E452", "question"),
        ("name: t\nkind: loss\nexercises: [{text: ' '}]\n", "E452", "text"),
        ("name: t\nkind: loss\nexercises: [{question: a}]\n", "E452", "answer"),
        ("name: t\nkind: choice\nexercises: [{question: a, choices: [b, c]}]\n", "E452", "answer"),
        ("name: t\nkind: choice\nexercises: [{question: a, choices: [b], answer: 0}]\n", "E452", "choices"),
        ("name: t\nkind: choice\nexercises: [{question: a, choices: [b, c], answer: 2}]\n", "E462", "2 choices"),
        ("name: t\nkind: choice\nexercises: [{question: a, choices: [b, c], answer: D}]\n", "E462", "'D'"),
        ("name: t\nkind: generation\nexercises: [{question: a}]\nscorers: [exact]\n", "E452", "answer"),
        ("name: t\nkind: generation\nexercises: [{question: a}]\nscorers: [{name: regex, pattern: '('}]\n", "E464", ""),
    ],
)
def test_faults_are_told_with_their_fix(text, code, said, tmp_path):
    found = fault(text, tmp_path)
    assert found.code == code
    assert said in found.message
    assert found.fixes
    assert found.where is not None
    assert found.where.file is not None or code == "E464"


def test_the_line_of_a_fault_is_told(tmp_path):
    found = fault("name: t\nkind: generation\nmade: {generator: lists}\nscorers:\n- exact\n- exakt\n", tmp_path)
    assert found.where is not None
    assert found.where.line == 6
    assert [fix.label for fix in found.fixes] == ["did you mean exact?"]
    wrong = fault("name: t\nkind: loss\nmade: {generator: prose}\nmax_new_tokens: many\n", tmp_path)
    assert wrong.where is not None
    assert (wrong.where.line, wrong.where.field) == (4, "max_new_tokens")


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_tasks_can_be_run(name):
    for task, path in load_suite(name):
        found = exercises_of(task, path)
        assert task.about
        assert task.made is not None
        assert len(found) == task.made.count
        assert len({one.name for one in found}) == len(found)
        assert all(one.category for one in found)


@pytest.mark.parametrize("generator", GENERATORS)
def test_generators_repeat_and_seeds_differ(generator):
    made = make(generator, 30, 3)
    assert made == make(generator, 30, 3)
    assert made != make(generator, 30, 4)
    assert len({json.dumps(one, sort_keys=True) for one in made}) == 30
    for one in made:
        if "choices" in one:
            assert len(set(one["choices"])) == 4
            assert 0 <= one["answer"] < 4
        if "instructions" in one:
            check_instructions(one["instructions"], None)


def test_made_answers_are_right():
    for one in make("arithmetic", 80, 5):
        numbers = [int(word.strip("?")) for word in one["question"].split() if word.strip("?").isdigit()]
        a, b = numbers[:2]
        if one["category"] != "units":
            right = {"add": a + b, "subtract": a - b, "multiply": a * b}[one["category"]]
            assert one["answer"] == str(right)
    for one in make("ordering", 40, 5):
        above = [sentence.split(" is taller than ") for sentence in one["question"].split(". ")[:3]]
        chosen = one["choices"][one["answer"]]
        heights = {name: 0 for pair in above for name in pair}
        for _ in heights:
            for high, low in above:
                heights[high] = max(heights[high], heights[low.rstrip(".")] + 1)
        ranked = sorted(heights, key=lambda name: -heights[name])
        assert chosen == {"tallest": ranked[0], "second tallest": ranked[1], "shortest": ranked[-1]}[one["category"]]
    for one in make("lists", 40, 5):
        words = one["question"].split(": ", 1)[-1].split(". ")[-1].split("? ")[-1].split(", ")
        right = {"sort": ", ".join(sorted(words)), "reverse": ", ".join(words[::-1])}
        right |= {"last": words[-1], "count": str(len(words))}
        assert one["answer"] == right[one["category"]]
