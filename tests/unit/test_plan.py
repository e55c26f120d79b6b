import json
import subprocess
import sys
from dataclasses import replace

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.cli.plan_view import plan_view
from tunesmith.data.loader import Builder, OfflineSource
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DoesNotFit
from tunesmith.models.policy import Checkpointing
from tunesmith.plan import Plan, make_plan, record_actual
from tunesmith.planning.calibration import further_passes
from tunesmith.planning.machine import Machine
from tunesmith.recipe import load_recipe
from tunesmith.types import Task

MACHINE = Machine("cpu", "a processor", 4, 2, 16 * 10**9, 12 * 10**9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(200):
            question = {"role": "user", "content": f"question {number} " + "why " * (number % 11)}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": "because"}]}) + "\n")
    return path


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def recipe(model, data, *overrides):
    return load_recipe(None, [f"model.path={model}", f"data.train={data}", *overrides], {}).recipe


def planned(model, data, *overrides, machine=MACHINE) -> Plan:
    return make_plan(recipe(model, data, *overrides), machine=machine)


def codes(plan):
    return [problem.code for problem in plan.problems]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.epochs=1"],
        ["train.epochs=2.5", "train.sequences_per_step=7"],
        ["train.epochs=0.3"],
        ["train.steps=13"],
        ["train.sequences_per_step=1000"],
    ],
)
def test_steps_equal_those_of_the_loader(model, data, overrides):
    settings = recipe(model, data, *overrides)
    plan = make_plan(settings, machine=MACHINE)
    prepared = prepare(settings.data.train, settings.data, load_tokenizer(model))
    source = OfflineSource(
        Builder(prepared, Task()),
        [1.0],
        sequences_per_step=settings.train.sequences_per_step,
        tokens_per_step=None,
        microbatch_tokens=settings.train.microbatch_limit("cpu"),
        seed=0,
    )
    assert plan.steps.total == (settings.train.steps or source.steps_for(settings.train.epochs))


def test_steps_of_so_many_tokens_come_close_to_the_loader(model, data):
    settings = recipe(model, data, "train.tokens_per_step=300", "train.sequences_per_step=null")
    plan = make_plan(settings, machine=MACHINE)
    prepared = prepare(settings.data.train, settings.data, load_tokenizer(model))
    source = OfflineSource(
        Builder(prepared, Task()), [1.0], sequences_per_step=None, tokens_per_step=300, microbatch_tokens=4096, seed=0
    )
    assert plan.steps.total == pytest.approx(source.steps_for(1), rel=0.05)
    assert plan.steps.tokens < 300


def test_the_largest_microbatch_keeps_its_limit(model, data):
    assert planned(model, data).steps.microbatches == 1
    small = planned(model, data, "train.microbatch_tokens=100", "data.max_length=100")
    assert small.steps.largest <= 100
    assert small.steps.microbatches > 1
    assert small.memory.activations < planned(model, data).memory.activations


def test_a_large_model_has_larger_microbatches_on_a_cpu(model, data, monkeypatch):
    assert planned(model, data).recipe.train.microbatch_limit("cpu") == 1024
    monkeypatch.setattr("tunesmith.train.config.LARGE_BODY", 1000)
    assert planned(model, data).recipe.train.microbatch_limit("cpu") == 2048
    assert planned(model, data, "train.microbatch_tokens=100").recipe.train.microbatch_limit("cpu") == 100
    assert recipe(model, data).sized(body=10**9, device="cuda").train.microbatch_limit("cuda") == 8192


def test_the_arithmetic_is_written_out(model, data):
    plan = planned(model, data, "train.epochs=3")
    step, steps = plan.arithmetic()
    assert step.startswith("16 sequences × ~")
    assert step.endswith(f"= {plan.steps.tokens:,.0f} tokens per step")
    assert steps == "200 examples / 16 = 13 steps per epoch × 3 = 39 steps"


def test_the_json_form_holds_what_programs_rely_on(model, data):
    content = json.loads(json.dumps(planned(model, data).to_json()))
    assert set(content["parameters"]) == {"total", "trainable"}
    assert content["memory"]["peak"] == sum(
        size for name, size in content["memory"].items() if name not in ("peak", "paged")
    )
    parts = {"weights", "adapters", "gradients", "optimizer", "activations", "head", "other", "trunk", "copies"}
    assert parts | {"peak", "paged"} == set(content["memory"])
    assert content["trunk"] is None
    assert content["steps"] == 13
    assert content["guess"] is True
    assert [problem["code"] for problem in content["problems"]] == ["W181"]
    assert content["checkpointing"] == {"offloaded": 0, "full": 0, "selective": 0, "seconds": 0}
    assert content["seconds"] > 0


def test_a_finished_run_replaces_the_guess(model, data):
    plan = planned(model, data)
    actual = {"tokens": 10_000, "seconds": 20.0, "peak_memory_bytes": plan.memory.peak}
    assert record_actual(plan, actual) == ()
    again = planned(model, data)
    assert not again.speed.is_guess
    assert again.speed.flops / again.flops == pytest.approx(500, rel=1e-3)


def test_a_peak_far_from_the_plan_is_told(model, data):
    plan = planned(model, data)
    actual = {"tokens": 10, "seconds": 1.0, "peak_memory_bytes": 2 * plan.memory.peak}
    assert [warning.code for warning in record_actual(plan, actual)] == ["W187"]


def test_ranks_share_the_work_and_the_memory_of_a_cpu(model, data):
    settings = recipe(model, data)
    one, two = (make_plan(settings, machine=MACHINE, ranks=ranks) for ranks in (1, 2))
    assert two.steps.total == one.steps.total
    assert two.steps.largest < one.steps.largest
    assert two.machine.memory_free == one.machine.memory_free // 2
    assert two.seconds == pytest.approx(one.seconds / 2)


def test_what_does_not_fit_is_refused_with_fixes_that_do(model, data):
    limits = ["train.activation_checkpointing=off", "data.max_length=256"]
    need = planned(model, data, *limits).memory.peak
    tight = replace(MACHINE, memory_free=int(need / 0.9) - 1_000_000)
    plan = planned(model, data, *limits, machine=tight)
    assert not plan.fits
    assert plan.problems[0].code == "E180"
    assert plan.problems[0].fixes
    with pytest.raises(DoesNotFit) as caught:
        plan.check()
    assert caught.value.exit_code == 3
    plan.check(force=True)
    for fix in plan.problems[0].fixes:
        mended = [*limits, *(f"{key}={value}" for key, value in fix.set.items())]
        assert planned(model, data, *mended, machine=tight).fits, fix


def test_layers_form_again_only_what_memory_needs(model, data):
    loose = planned(model, data)
    assert loose.checkpointing == Checkpointing()
    tight = replace(MACHINE, memory_free=int(loose.memory.peak / 0.9) - 1000)
    plan = planned(model, data, machine=tight)
    assert plan.fits
    assert plan.checkpointing == Checkpointing(selective=1)
    assert plan.flops > loose.flops
    assert 0 < plan.seconds_again < plan.seconds
    assert plan.seconds - plan.seconds_again == pytest.approx(loose.seconds)
    assert planned(model, data, "train.activation_checkpointing=full").checkpointing == Checkpointing(full=2)


def test_offloading_is_refused_on_a_cpu(model, data):
    problem = planned(model, data, "train.activation_checkpointing=offloaded").problems[0]
    assert (problem.code, problem.level) == ("E188", "error")
    assert problem.fixes[0].set == {"train.activation_checkpointing": "full"}
    gpu = replace(MACHINE, device="cuda")
    assert "E188" not in codes(planned(model, data, "train.activation_checkpointing=offloaded", machine=gpu))


def test_updates_in_the_backward_pass_need_one_pass_and_one_process(model, data):
    words = ["model.adapter=full", "train.optimizer.lr=2e-5", "train.clip_norm=0", "train.sequences_per_step=4"]
    inside = [*words, "train.optimizer.in_backward=true"]
    plain, saving = planned(model, data, *words), planned(model, data, *inside)
    assert saving.memory.gradients < 0.7 * plain.memory.gradients
    assert replace(saving.memory, gradients=plain.memory.gradients) == plain.memory
    several = planned(model, data, *inside, "train.microbatch_tokens=60", "data.max_length=60")
    assert several.memory.gradients == plain.memory.gradients
    problem = next(problem for problem in several.problems if problem.code == "W188")
    assert problem.fixes[0].set["train.sequences_per_step"] < 4
    assert "E189" in [each.code for each in make_plan(recipe(model, data, *inside), machine=MACHINE, ranks=2).problems]
    assert not {"W188", "E189"} & set(codes(saving))


def test_the_view_tells_what_is_formed_again(model, data):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_view(planned(model, data, "train.activation_checkpointing=selective")))
    assert "gate and up of 2 of 2 layers, " in console.export_text()


def test_few_steps_are_a_warning_unless_asked_for(model, data):
    assert "W181" in codes(planned(model, data))
    assert "W181" not in codes(planned(model, data, "train.steps=3"))
    assert "W181" not in codes(planned(model, data, "train.epochs=5"))


@pytest.mark.parametrize(("method", "rate", "odd"), [("lora", 2e-4, False), ("lora", 1e-6, True), ("lora", 0.1, True),
                                                     ("full", 2e-5, False), ("full", 1e-8, True)])  # fmt: skip
def test_rates_outside_the_usual_range_are_a_warning(model, data, method, rate, odd):
    plan = planned(model, data, f"model.adapter={method}", f"train.optimizer.lr={rate}")
    assert ("W183" in codes(plan)) == odd


def test_too_many_threads_and_too_long_examples_are_warnings(model, data):
    assert "W185" in codes(planned(model, data, machine=replace(MACHINE, threads=8)))
    middle = round(planned(model, data).counted.mean_length)
    assert "W184" in codes(planned(model, data, f"data.max_length={middle}"))


def test_stripped_keys_are_named(model, data, tmp_path):
    folder = tiny_model_folder(tmp_path / "hostile")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    problem = next(problem for problem in planned(folder, data).problems if problem.code == "W080")
    assert problem.evidence == ("auto_map",)


def test_the_view_holds_the_arithmetic_and_fits_80_columns(model, data):
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    plan = planned(model, data)
    console.print(plan_view(plan))
    text = console.export_text()
    assert "13 steps per epoch" in text
    assert "LoRA, rank 16" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_plan_needs_neither_transformers_nor_more_than_5_cpu_seconds(model, data):
    code = (
        "import resource, sys\nfrom tunesmith.cli.main import run\n"
        "try:\n    run(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(use.ru_utime + use.ru_stime, 'transformers' in sys.modules, file=sys.stderr)\n"
    )
    words = ["plan", "sft", f"model.path={model}", f"data.train={data}", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    seconds, transformers = done.stderr.split()[-2:]
    assert float(seconds) < 5
    assert transformers == "False"
    assert json.loads(done.stdout)["schema"] == 1


def test_a_plan_that_does_not_fit_exits_with_3(model, data, capsys):
    from tunesmith.cli.main import run

    huge = ["train.microbatch_tokens=1000000", "data.max_length=1000000", "train.sequences_per_step=100000"]
    long = ["train.activation_checkpointing=off", "model.attention=dense"]
    with pytest.raises(SystemExit) as caught:
        run(["plan", "sft", f"model.path={model}", f"data.train={data}", *huge, *long, "--json"])
    content = json.loads(capsys.readouterr().out)
    assert caught.value.code == (0 if content["fits"] else 3)
    assert content["problems"]


def test_the_reference_is_counted_once_per_record_and_the_looks_ahead_every_time():
    def passes(*words: str) -> float:
        return further_passes(load_recipe(None, list(words), {}).recipe)

    assert passes() == 0
    assert passes("objective=dpo") == 1
    assert passes("objective=kto") == 3  # the reference twice, and a look at the mismatched answers
    kto = load_recipe(None, ["objective=kto"], {}).recipe
    assert further_passes(kto, prompt_share=0.75) == 2.25
    assert passes("objective=dpo", "train.epochs=4") == 0.25
    assert passes("objective=dpo", "train.epochs=4", "model.reference.update_every=8", "model.adapter=full") == 1
