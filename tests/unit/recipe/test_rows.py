"""The K rows: what a recipe may say, and how a mistake in one is answered."""

import resource
import time
from pathlib import Path

import pytest

from tunesmith.configuring.output_folder import check_output_folder
from tunesmith.configuring.shipped import shipped
from tunesmith.errors import TunesmithError, Unsafe, UsageError
from tunesmith.models.config import FullConfig, LoraConfig
from tunesmith.objectives import OBJECTIVES
from tunesmith.recipe import Loaded, Recipe, load_recipe, to_yaml


def load(folder: Path, text: str, *overrides: str, environment: dict[str, str] | None = None) -> Loaded:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides, environment or {})


def refused(folder: Path, text: str, *overrides: str, environment: dict[str, str] | None = None) -> TunesmithError:
    with pytest.raises(TunesmithError) as caught:
        load(folder, text, *overrides, environment=environment)
    return caught.value


def test_defaults_need_no_file():
    assert load_recipe(None, (), {}).recipe == Recipe()


def test_shorthands(tmp_path):
    recipe = load(tmp_path, "objective: sft\nmodel: {adapter: full}\ndata: {train: a.jsonl}\n").recipe
    assert recipe.objective.name == "sft"
    assert recipe.model.adapter == FullConfig()
    assert [source.path for source in recipe.data.train] == ["a.jsonl"]
    mixed = load(tmp_path, "data:\n  train: [a.jsonl, {path: b.csv, weight: 2}]\n").recipe.data.train
    assert [(source.path, source.weight) for source in mixed] == [("a.jsonl", 1.0), ("b.csv", 2.0)]


def test_settings_of_an_adapter_without_its_method_are_lora(tmp_path):
    adapter = load(tmp_path, "model: {adapter: {rank: 4}}").recipe.model.adapter
    assert isinstance(adapter, LoraConfig)
    assert adapter.rank == 4


def test_one_word_for_a_list(tmp_path):
    recipe = load(tmp_path, "model: {adapter: {targets: q_proj}}", "run.report_to=none").recipe
    assert recipe.model.adapter.targets == ("q_proj",)
    assert recipe.run.report_to == ("none",)


def test_empty_sections_are_defaults(tmp_path):
    assert load(tmp_path, "train:\ndata:\n").recipe == Recipe()
    assert load(tmp_path, "").recipe == Recipe()


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("learning_rate", "1e-4", "train.optimizer.lr"),
        ("per_device_train_batch_size", "4", "train.sequences_per_step"),
        ("lora_r", "8", "model.adapter.rank"),
        ("lora-alpha", "8", "model.adapter.alpha"),
        ("cutoff_len", "512", "data.max_length"),
        ("num_train_epochs", "1", "train.epochs"),
        ("trian", "1", "train"),
    ],
)
@pytest.mark.parametrize("indent", ["", "train:\n  ", "model:\n  adapter:\n    "])
def test_k01_unknown_key_names_the_place_and_the_right_key(tmp_path, key, value, wanted, indent):
    error = refused(tmp_path, f"# a comment\n{indent}{key}: {value}\n")
    where = error.diagnostic.where
    assert error.exit_code == 2
    assert error.diagnostic.code == "E010"
    assert (where.line, where.column) == (2 + indent.count("\n"), len(indent.rpartition("\n")[2]) + 1)
    assert where.file.endswith("recipe.yaml")
    assert wanted in str(error.diagnostic)


def test_k01_a_key_of_another_section_is_found(tmp_path):
    assert "train.optimizer.lr" in str(refused(tmp_path, "train:\n  lr: 1e-4\n"))
    assert "did you mean data.max_length?" in str(refused(tmp_path, "data:\n  max_lenght: 5\n"))
    assert "did you mean train.steps?" in str(refused(tmp_path, "train.steps: 5\n"))


def test_k01_every_unknown_key_is_reported_in_the_order_of_the_file(tmp_path):
    error = refused(tmp_path, "zzz: 1\ntrain: {qqq: 2}\ndata:\n  xxx: 3\n")
    assert [diagnostic.where.line for diagnostic in error.diagnostics] == [1, 2, 4]


def test_k02_duplicate_key_names_both_lines(tmp_path):
    error = refused(tmp_path, "train:\n  steps: 1\n  seed: 3\n  steps: 2\n")
    assert error.diagnostic.code == "E012"
    assert error.diagnostic.where.line == 4
    assert "line 2" in error.diagnostic.evidence[0]


def test_k02_tab_indent_is_named(tmp_path):
    error = refused(tmp_path, "train:\n\tsteps: 1\n")
    assert error.diagnostic.where.line == 2
    assert "tab" in error.diagnostic.message


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("train: {steps: 010}", "train.steps", 10),
        ("train: {optimizer: {lr: 1e-4}}", "train.optimizer.lr", 1e-4),
        ("train: {optimizer: {lr: 1e-04}}", "train.optimizer.lr", 1e-4),
        ("train: {optimizer: {lr: '1e-4'}}", "train.optimizer.lr", 1e-4),
        ("data: {shuffle: no}", "data.shuffle", False),
        ("data: {shuffle: off}", "data.shuffle", False),
        ("data: {shuffle: yes}", "data.shuffle", True),
        ("run: {name: no}", "run.name", "no"),
        ("run: {name: 2024}", "run.name", "2024"),
        ("run: {name: 010}", "run.name", "010"),
        ("model: {revision: 1e10}", "model.revision", "1e10"),
        ("model: {path: 12:30}", "model.path", "12:30"),
    ],
)
def test_k02_words_and_numbers_are_read_as_meant(tmp_path, line, key, value):
    assert {name: found for name, found, _ in load(tmp_path, line).values()}[key] == value


@pytest.mark.parametrize(
    ("override", "range_"),
    [
        ("train.optimizer.lr=-1", "above 0, at most 10"),
        ("train.optimizer.lr=.nan", "above 0, at most 10"),
        ("train.optimizer.lr=fast", "above 0, at most 10"),
        ("train.epochs=0", "above 0, at most 10,000"),
        ("model.adapter.rank=0", "from 1 to 4096"),
        ("model.adapter.rank=2.5", "from 1 to 4096"),
        ("train.steps=true", "number"),
        ("data.overlong=dorp", "drop | cut_turns | split | error"),
        ("data.train_on=[a]", "all_assistant"),
        ("data.train=3", "data.train"),
        ("data=3", "a group with"),
    ],
)
def test_k03_wrong_type_or_range_names_field_and_range(tmp_path, override, range_):
    error = refused(tmp_path, "", override)
    assert error.exit_code == 2
    assert error.diagnostic.code == "E013"
    assert error.diagnostic.where.field == override
    assert range_ in error.diagnostic.message
    assert override.partition("=")[0] in error.diagnostic.message


def test_k03_the_line_of_the_file_and_the_meaning_are_shown(tmp_path):
    error = refused(tmp_path, "train:\n  optimizer:\n    lr: -1\n")
    assert (error.diagnostic.where.line, error.diagnostic.where.field) == (3, "train.optimizer.lr")
    assert "learning rate" in error.diagnostic.evidence[0]


def test_k03_an_unknown_method_offers_the_nearest(tmp_path):
    error = refused(tmp_path, "model:\n  adapter: lra\n")
    assert "words lora | rslora | dora" in error.diagnostic.message
    assert "freeze | bitfit" in error.diagnostic.message
    assert error.diagnostic.fixes[0].set == {"model.adapter.method": "lora"}


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["train.tokens_per_step=99", "train.sequences_per_step=8"], ["train.tokens_per_step", "train.seq"]),
        (["train.sequences_per_step="], ["train.tokens_per_step", "train.sequences_per_step"]),
        (["model.adapter=freeze"], ["model.adapter.first", "model.adapter.last"]),
        (["train.schedule.warmup=100", "train.steps=50"], ["train.schedule.warmup", "train.steps"]),
        (["train.early_stopping={}"], ["train.early_stopping.patience", "data.eval"]),
        (["train.early_stopping={}", "data.eval=a"], ["train.early_stopping.patience", "train.evaluate_every"]),
        (["train.evaluate_every=5"], ["train.evaluate_every", "data.eval"]),
        (["model.adapter=full", "model.adapter_path=x"], ["model.adapter_path", "model.adapter.method"]),
        (["train.optimizer.lr_new_layers=1e-3"], ["train.optimizer.lr_new_layers", "model.adapter.modules_to_save"]),
        (["model.adapter.targets=[]"], ["model.adapter.targets"]),
        (["run.report_to=[none, wandb]"], ["run.report_to"]),
    ],
)  # fmt: skip
def test_k04_contradictions_name_both_fields_and_a_fix_that_works(tmp_path, overrides, fields):
    error = refused(tmp_path, "", *overrides)
    assert [diagnostic.code for diagnostic in error.diagnostics] == ["E014"]
    assert all(any(line.startswith(field) for line in error.diagnostic.evidence) for field in fields)
    (fix,) = error.diagnostic.fixes
    load(tmp_path, "", *overrides, *fix.command.split()[3:])


def test_k04_warnings_do_not_stop(tmp_path):
    codes = [warning.code for warning in load(tmp_path, "model: {adapter: full}").warnings]
    assert codes == ["W011"]
    assert load(tmp_path, "train: {epochs: 3}", "train.steps=5").warnings == ()
    assert [w.code for w in load(tmp_path, "train: {steps: 5}", "train.epochs=3").warnings] == ["W010"]


def test_k05_precedence_and_origin(tmp_path):
    text = "train:\n  steps: 1\n  seed: 1\n  optimizer:\n    lr: 1e-5\n"
    environment = {"TUNESMITH__TRAIN__STEPS": "2", "TUNESMITH__TRAIN__SEED": "2", "TUNESMITH_HOME": "/x"}
    loaded = load(tmp_path, text, "train.steps=3", environment=environment)
    train = loaded.recipe.train
    assert (train.steps, train.seed, train.optimizer.lr, train.epochs) == (3, 2, 1e-5, 1.0)
    origins = {key: origin.kind for key, _, origin in loaded.values()}
    assert origins["train.steps"] == "override"
    assert origins["train.seed"] == "environment"
    assert origins["train.optimizer.lr"] == "file"
    assert origins["train.epochs"] == "default"
    assert loaded.origins["train.optimizer.lr"].where.line == 5
    assert "TUNESMITH__TRAIN__SEED=2" in str(loaded.origins["train.seed"])


def test_k05_an_unknown_variable_is_refused(tmp_path):
    error = refused(tmp_path, "", environment={"TUNESMITH__TRAIN__STPES": "2"})
    assert "TUNESMITH__TRAIN__STPES=2" in str(error.diagnostic.where)
    assert "train.steps" in str(error)


def test_k05_another_method_drops_what_the_file_said_of_the_old_one(tmp_path):
    text = "model: {adapter: {method: lora, rank: 4}}"
    assert load(tmp_path, text, "model.adapter.method=full").recipe.model.adapter == FullConfig()
    assert load(tmp_path, text, "model.adapter=full").recipe.model.adapter == FullConfig()
    assert "rank" in refused(tmp_path, text, "model.adapter.rank=8", "model.adapter.method=full").diagnostic.message


def test_k05_entries_of_a_list(tmp_path):
    text = "data: {train: [a, b]}"
    sources = load(tmp_path, text, "data.train.0.weight=2", "data.train.2.path=c").recipe.data.train
    assert [(source.path, source.weight) for source in sources] == [("a", 2.0), ("b", 1.0), ("c", 1.0)]
    assert load(tmp_path, text, "data.train.0.columns={prompt: q}").recipe.data.train[0].columns == {"prompt": "q"}
    assert "from 0 to 2" in refused(tmp_path, text, "data.train.5.path=x").diagnostic.message


@pytest.mark.parametrize(
    "override", ["train.steps", "=3", "train..steps=3", "--steps=3", "train.steps.x=3", "data=[", ""]
)
def test_k05_a_bad_override_is_its_own_place(tmp_path, override):
    error = refused(tmp_path, "train: {steps: 4}", override)
    assert error.exit_code == 2
    assert error.diagnostic.where.field == override


@pytest.mark.row("S12")
@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch canary']",
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "[" * 200_000,
        "{a: " * 200_000,
        "a: [" + "1," * 400_000 + "1]",
    ],
    ids=["python", "aliases", "lists", "objects", "wide"],
)
def test_k06_attacks_are_refused_as_unsafe(tmp_path, text):
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    error = refused(tmp_path, text)
    assert isinstance(error, Unsafe)
    assert error.exit_code == 9
    assert time.process_time() - start < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000


def test_k06_a_large_file_is_refused_at_once(tmp_path):
    path = tmp_path / "data.yaml"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)
    start = time.process_time()
    with pytest.raises(Unsafe, match="larger than 1 MB"):
        load_recipe(path, (), {})
    assert time.process_time() - start < 1


def test_k07_output_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    held = tmp_path / "runs" / "held"
    held.mkdir(parents=True)
    (held / "run.json").write_text("{}")
    file = tmp_path / "file"
    file.write_text("x")
    for path in (Path("/"), tmp_path, Path("~"), held, file, file / "run", Path("/proc/run")):
        with pytest.raises(UsageError) as caught:
            check_output_folder(path)
        assert caught.value.diagnostic.code == "E019"
    check_output_folder(tmp_path / "runs" / "new" / "deep")
    assert not (tmp_path / "runs" / "new").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "held", "run.json", "runs"]


@pytest.mark.parametrize("version", ["2", "0", "one", "1.5"])
def test_k08_another_version_is_named(tmp_path, version):
    error = refused(tmp_path, f"model: {{}}\nversion: {version}\n")
    assert error.diagnostic.code == "E018"
    assert version in error.diagnostic.message
    assert error.diagnostic.where.line == 2
    assert load(tmp_path, "version: 1").recipe.version == 1


@pytest.mark.parametrize("name", ["sft", "sft.yaml", "recipes/sft.yaml", "full", "quickstart"])
def test_shipped_recipes_load_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(name, ["data.train=a.jsonl"], {})
    assert loaded.warnings == ()
    assert loaded.recipe.data.train[0].path == "a.jsonl"


def test_a_missing_recipe_offers_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="tunesmith recipes show full"):
        load_recipe(tmp_path / "ful.yaml", (), {})


@pytest.mark.parametrize("name", ["yes", "1e-5", "010", "0o7", "12:30", "null", "a", "-1", "1.5", "true", "1_0"])
def test_a_recipe_written_and_read_is_the_same(tmp_path, name):
    overrides = [f"model.path='{name}'", "train.early_stopping={patience: 2}", "data.eval=e", "train.evaluate_every=1"]
    recipe = load(tmp_path, "", *overrides, "train.optimizer.lr=1e-5").recipe
    assert recipe.model.path == name
    assert load(tmp_path, to_yaml(recipe)).recipe == recipe


def test_k01_a_key_of_another_objective_names_the_objectives_that_have_it(tmp_path):
    error = refused(tmp_path, "objective:\n  name: ranking_reward\n  center: 0.1\n")
    assert error.diagnostic.code == "E010"
    assert error.diagnostic.message == "objective=ranking_reward has no key center; reward has it"
    assert error.diagnostic.fixes[-1].set == {"objective.name": "reward"}
    assert "did you mean objective.center" not in str(error.diagnostic)
    assert "rank has it" not in str(error.diagnostic)
    error = refused(tmp_path, "model: {adapter: {method: full, rank: 4}}\n")
    assert "model.adapter=full has no key rank; lora, rslora, dora," in error.diagnostic.message


def test_k03_range_and_meaning_are_those_of_the_chosen_objective(tmp_path):
    error = refused(tmp_path, "", "objective.name=cdpo", "objective.epsilon=0.6")
    assert error.diagnostic.message == "objective.epsilon: got 0.6, want a number from 0 to 0.5"
    assert ":" not in error.diagnostic.evidence[0].partition(" ")[0]
    error = refused(tmp_path, "", "objective.name=robust_dpo", "objective.epsilon=0.6")
    assert error.diagnostic.message.endswith("at least 0, below 0.5")


@pytest.mark.parametrize("objective", [kind.model_fields["name"].default for kind in OBJECTIVES])
def test_every_objective_is_trained_by_its_name_or_by_the_recipe_that_is_offered(objective):
    if objective in shipped():
        assert load_recipe(objective, [], {}).recipe.objective.title == objective
        return
    with pytest.raises(UsageError, match=f"{objective} is an objective") as caught:
        load_recipe(objective, [], {})
    command = caught.value.diagnostic.fixes[0].command.split()
    assert command[:2] == ["tunesmith", "train"]
    offered, changed = load_recipe(command[2], [], {}).recipe, load_recipe(command[2], command[3:], {}).recipe
    assert changed.objective.title == objective
    assert changed.objective.reads == offered.objective.reads
    if offered.objective.reads == "logprobs":
        assert changed.objective.kind == offered.objective.kind


LISTED = """\
data: {train: a.jsonl}
objective:
  - dpo
  - name: sft
    coefficient: 0.2
  - name: kto
    lambda_good: 2.0
also:
  - {name: ipo, beta: 0.5}
"""


def test_objectives_of_a_list_keep_their_places(tmp_path):
    text = LISTED.replace("  - name: kto\n    lambda_good: 2.0\n", "")
    rows = {key: origin for key, _, origin in load(tmp_path, text, "also.1.beta=0.4").values()}
    lines = {key: origin.where.line for key, origin in rows.items() if origin.kind == "file"}
    assert lines["objective.name"] == 3
    assert (lines["also.0.name"], lines["also.0.coefficient"], lines["also.1.name"]) == (4, 5, 7)
    assert rows["also.1.beta"].kind == "override"
    assert rows["objective.beta"].kind == "default"


def test_objectives_of_a_list_on_the_command_line_come_from_there(tmp_path):
    loaded = load(
        tmp_path, "data: {train: a.jsonl}\n", "objective=[dpo, {name: sft, coefficient: 0.2}]", "train.steps=3"
    )
    kinds = {key: origin.kind for key, _, origin in loaded.values()}
    assert kinds["objective.name"] == kinds["also.0.name"] == kinds["also.0.coefficient"] == "override"


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("coefficient: 0.2", "coefficient: much", 5, "also.0.coefficient"),
        ("coefficient: 0.2", "coefficent: 0.2", 5, "also.0.coefficent"),
        ("lambda_good: 2.0", "lambda_good: -1", 7, "also.1.lambda_good"),
        ("beta: 0.5", "beta: -1", 9, "also.2.beta"),
        ("  - dpo", "  - {name: dpo, beta: -1}", 3, "objective.beta"),
        ("- name: sft", "- name: sfd", 4, "also.0.name"),
    ],
)
def test_a_fault_in_a_list_of_objectives_is_told_where_it_stands(tmp_path, old, new, line, field):
    found = next(one for one in refused(tmp_path, LISTED.replace(old, new)).diagnostics if one.where.field == field)
    assert (found.where.file, found.where.line) == (str(tmp_path / "recipe.yaml"), line)
