"""Advice for recipes: what is on already is seen, figures are filled in, and every command can be typed."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from tunesmith.cli.model import choose_weights
from tunesmith.evaluate.advice import RULES, advise
from tunesmith.evaluate.changes import Sheet
from tunesmith.evaluate.forgetting import BASE, Report, Weights, report_on
from tunesmith.evaluate.suite import Measure
from tunesmith.recipe import Recipe, load_recipe, to_yaml
from tunesmith.running.forgetting_advice import advice_on, recipe_facts, values_of
from tunesmith.running.forgetting_tasks import Wish
from tunesmith.track.run_dir import RunDir

KL = "also=[{name: kl_to_reference, coefficient: 0.2}, {name: k3_to_reference}]"


@pytest.fixture
def run(tmp_path) -> RunDir:
    (tmp_path / "a run").mkdir()
    return RunDir(tmp_path / "a run")


def recipe(*words: str) -> Recipe:
    return load_recipe(None, ["data.train=train.jsonl", "train.optimizer.lr=3e-4", *words], {}).recipe


def sheet(loss: float, side) -> Sheet:
    names = tuple(map(str, range(10)))
    values = tuple(float(value) for value in loss * np.linspace(0.99, 1.01, 10))
    return Sheet(side, side, Measure("loss", lower=True), names, values, (1.0,) * 10)


def report(*figures: tuple[float, float], weight: float = 0.5) -> Report:
    """The base with losses of 2 and 1, then a checkpoint of every tenth step, the last one final."""
    states = [Weights(BASE, None, False, (sheet(2.0, "new"), sheet(1.0, "general")))]
    for at, (new, general) in enumerate(figures, 1):
        states.append(
            Weights(f"step {10 * at}", 10 * at, at == len(figures), (sheet(new, "new"), sheet(general, "general")))
        )
    return report_on("run", states, weight)


def rules(found: Report, given: Recipe, run: RunDir, *, cut: bool = False) -> list[str]:
    return [one.rule for one in advice_on(found, given, run, Wish(), cut=cut)]


LOST, KEPT, NEITHER = report((1.0, 1.3), (0.9, 1.3), (0.8, 1.3)), report((1.0, 1.0)), report((2.0, 1.0))


@pytest.mark.parametrize(
    ("found", "words", "expected"),
    [
        (KEPT, [], ["fine"]),
        (LOST, [], ["mix", "rate", "share"]),
        (LOST, ["model.adapter=full"], ["mix", "lora", "freeze", "rate", "share"]),
        (LOST, ["data.general.train=g.jsonl"], ["mix more", "rate", "share", "kl"]),
        (LOST, ["data.general.train=g.jsonl", "data.general.share=0.4"], ["rate", "share", "kl"]),
        (LOST, ["data.general.train=g.jsonl", KL], ["mix more", "rate", "share", "kl more"]),
        (LOST, ["objective=dpo"], ["rate", "share", "kl"]),
        (LOST, ["model.adapter=bottleneck"], ["mix", "rate"]),
        (report((1.0, 1.05)), [], ["mix", "share", "checkpoints"]),
        (report((0.9, 1.02), (0.9, 1.9), (0.9, 1.9)), [], ["earlier", "stop", "mix", "rate", "share"]),
        (report((1.9, 1.9)), [], ["base", "mix", "rate", "share", "checkpoints"]),
        (NEITHER, [], ["longer"]),
        (NEITHER, [KL], ["kl less"]),
    ],
)
def test_what_is_advised(run, found, words, expected):
    assert rules(found, recipe(*words), run) == expected


def test_a_guard_that_watches_is_not_advised_again(run):
    words = ["data.general.eval=g.jsonl", "train.evaluate_every=5", "train.early_stopping={watch: general}"]
    found = report((0.9, 1.02), (0.9, 1.9), (0.9, 1.9))
    assert rules(found, recipe(*words), run) == ["earlier", "mix", "rate", "share"]


def test_more_records_are_asked_for_where_the_interval_is_wide(run):
    states = []
    for name, general in ((BASE, [1.0] * 10), ("final", [0.4, 1.6] * 5)):
        one = sheet(2.0 if name == BASE else 1.0, "new")
        other = Sheet("g", "general", one.measure, one.names, tuple(general), one.weights)
        states.append(Weights(name, None, name != BASE, (one, other)))
    found = report_on("run", states, 0.5)
    assert rules(found, recipe(), run, cut=True) == ["more records"]
    assert rules(found, recipe(), run) == ["more data"]


def test_facts_of_recipes():
    assert recipe_facts(recipe()) == {"mixable", "a way back", "comparable"}
    assert "full" in recipe_facts(recipe("model.adapter=full"))
    assert recipe_facts(recipe(KL)) >= {"kl"}
    assert "kl much" in recipe_facts(recipe("also=[{name: kl_to_reference, coefficient: 1.5}]"))
    assert "comparable" not in recipe_facts(recipe("model.adapter.targets=[q_proj, lm_head]"))
    assert "a way back" not in recipe_facts(recipe("model.adapter=prompt"))


@pytest.mark.parametrize("words", [[], ["model.adapter=full"], [KL], ["data.general.train=general.jsonl"]])
def test_every_command_can_be_typed(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    for name in ("FILE", "train.jsonl", "general.jsonl"):
        Path(name).write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    given = recipe(*words)
    run.write_config(to_yaml(given))
    values = values_of(report((0.9, 1.02), (0.9, 1.9)), given, run, Wish())
    for one in RULES:
        (told,) = (found for found in advise(one.when, values, [one]))
        assert "{" not in told.says
        typed = shlex.split(told.command)
        if not typed:
            continue
        assert typed[0] == "tunesmith"
        if one.kind == "command":
            assert str(run.path) in typed
            continue
        assert typed[:3] == ["tunesmith", "train", str(run.config_file)]
        changed = load_recipe(typed[2], typed[3:], {}).recipe
        assert changed.run.name == f"a-run-{one.name.replace(' ', '-')}"
        assert changed.model_copy(update={"run": given.run}) != given, one.name


def test_figures_are_filled_in(run):
    found = report((0.9, 1.02), (0.9, 1.9))
    values = values_of(found, recipe(KL), run, Wish(limit=50))
    assert values["kept"] == "-90.0 %"
    assert (values["best"], values["best_weights"], choose_weights("step-10")) == ("step 10", "step-10", 10)
    assert values["best_kept"] == "-2.0 %"
    assert values["rise"] == "0.03"
    assert values["lower_rate"] == "0.0001"
    assert values["more_records"] == "200"
    (setting,) = shlex.split(values["also_more"])
    assert json.loads(setting.removeprefix("also=")) == [
        {"name": "k3_to_reference"},
        {"name": "kl_to_reference", "coefficient": 0.6},
    ]
