"""What the plan says of paged optimiser states: where they are, what is left in memory, and when it cannot be."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.cli.plan_view import plan_view
from tunesmith.errors import DoesNotFit
from tunesmith.plan import Plan, make_plan
from tunesmith.planning import paging
from tunesmith.planning.machine import Machine
from tunesmith.recipe import load_recipe, with_absolute_paths

CPU = Machine("cpu", "a processor", 4, 2, 16 * 10**9, 12 * 10**9)
GPU = Machine("cuda", "a GPU", 4, 2, 24 * 10**9, 20 * 10**9)
FILE, AUTO = "train.optimizer.paging=file", "train.optimizer.paging=auto"
LARGEST = 4000 * 64  # numbers of the embedding
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paging, "file_system", lambda folder: "ext4")
    monkeypatch.setattr(paging, "is_installed", lambda: True)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), vocab_size=4000)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "chats.jsonl", "sequence", 40)


@pytest.fixture
def planned(model, data, tmp_path):
    def plan(*words: str, machine: Machine = CPU, adapter: str = "full", **options) -> Plan:
        given = [f"model.path={model}", f"data.train={data}", f"run.folder={tmp_path}", f"model.adapter={adapter}"]
        return make_plan(load_recipe(None, [*given, *words], {}).recipe, machine=machine, **options)

    return plan


def codes(plan: Plan) -> dict[str, tuple]:
    return {problem.code: problem.fixes for problem in plan.problems}


def test_states_are_on_disk_but_for_the_largest_and_the_small(planned):
    plain, paged = planned(), planned(FILE)
    states = 8 * plain.trained.total
    small = sum(8 * size for size in sizes(plain) if 8 * size < 2**16)
    assert plain.memory.paged == 0
    assert paged.memory.paged == states - small
    assert plain.memory.optimizer - paged.memory.optimizer == states - small - 8 * LARGEST
    assert plain.memory.peak - paged.memory.peak == plain.memory.optimizer - paged.memory.optimizer
    assert paged.to_json()["memory"]["paged"] == paged.memory.paged
    assert not paged.problems or "E304" not in codes(paged)


def sizes(plan: Plan) -> list[int]:
    found = []
    for shape in plan.trained.shapes.values():
        size = 1
        for side in shape:
            size *= side
        found.append(size)
    return found


def test_states_in_8_bits_are_paged_as_well(planned):
    eight = planned("train.optimizer=adamw8bit", FILE)
    assert 0 < eight.memory.paged < planned(FILE).memory.paged
    assert eight.memory.paged == 8 * LARGEST  # of layers they are small, and the embedding's stay in fp32


def test_a_gpu_shares_them_with_the_host(planned):
    plain, paged = planned(machine=GPU), planned(AUTO, machine=GPU)
    large = sum(8 * size for size in sizes(plain) if size >= 10**5)
    assert paged.memory.paged == large > 0
    assert plain.memory.optimizer - paged.memory.optimizer == large
    assert not any(code.startswith("E") for code in codes(paged))


def test_the_plan_says_where_they_are(planned, tmp_path):
    console = Console(width=300)
    with console.capture() as seen:
        console.print(plan_view(planned(FILE)))
        console.print(plan_view(planned(AUTO, machine=GPU)))
        console.print(plan_view(planned(f"train.optimizer.paging_folder={tmp_path}/pages", AUTO)))
    text = seen.get()
    assert f"in a file in {tmp_path}, in memory those of one parameter" in text
    assert "move between the GPU and the host's memory" in text
    assert f"in a file in {tmp_path}/pages" in text


@pytest.mark.parametrize(
    ("words", "machine", "code", "mended"),
    [
        ([FILE], GPU, "E306", {"train.optimizer.paging": "auto"}),
        ([AUTO, "train.optimizer.name=lion"], GPU, "E306", {"train.optimizer.name": "adamw8bit"}),
        ([AUTO, "train.optimizer.paging_folder=there"], GPU, "E306", {"train.optimizer.paging_folder": None}),
        ([AUTO, "model.adapter=lisa"], GPU, "E306", {"train.optimizer.paging": "off"}),
        ([FILE, "train.optimizer={name: sgd, momentum: 0}", FILE], CPU, "E306", {"train.optimizer.paging": "off"}),
        (["train.optimizer.paging_folder=there"], CPU, "E306", {"train.optimizer.paging": "auto"}),
    ],
)  # fmt: skip
def test_what_cannot_be_paged_is_refused_with_what_can(planned, words, machine, code, mended):
    plan = planned(*words, machine=machine)
    assert codes(plan)[code][0].set == mended
    with pytest.raises(DoesNotFit):
        plan.check()
    fixed = [f"{key}={'null' if value is None else value}" for key, value in mended.items()]
    assert code not in codes(planned(*words, *fixed, machine=machine)), "the fix is one"


def test_a_gpu_without_bitsandbytes_is_told_how_to_install_it(planned, monkeypatch):
    monkeypatch.setattr(paging, "is_installed", lambda: False)
    assert codes(planned(AUTO, machine=GPU))["E305"][0].command == "pip install bitsandbytes"
    assert "E305" not in codes(planned(AUTO))
    assert "E305" not in codes(planned(machine=GPU))


def test_another_system_is_refused(planned, monkeypatch):
    monkeypatch.setattr(paging.sys, "platform", "darwin")
    assert codes(planned(FILE))["E306"][0].set == {"train.optimizer.paging": "off"}


def test_a_disk_without_room_is_told_before_anything_is_loaded(planned, monkeypatch):
    size = planned(FILE).memory.paged
    monkeypatch.setattr(paging.shutil, "disk_usage", lambda folder: Usage(0, 0, size))
    assert "E304" not in codes(planned(FILE))
    assert codes(planned(FILE, ranks=2))["E304"][1].set == {"train.optimizer.name": "adamw8bit"}  # a file each
    monkeypatch.setattr(paging.shutil, "disk_usage", lambda folder: Usage(0, 0, size - 1))
    assert codes(planned(FILE))["E304"][0].label.startswith("train.optimizer.paging_folder=")


def test_a_folder_in_memory_and_states_that_are_all_small_are_told(planned, monkeypatch):
    assert codes(planned(FILE, "model.adapter.rank=2", adapter="lora"))["W303"][0].set == {
        "train.optimizer.paging": "off"
    }
    monkeypatch.setattr(paging, "file_system", lambda folder: "tmpfs")
    assert "W304" in codes(planned(FILE))


def test_file_systems_are_told_apart(monkeypatch):
    monkeypatch.undo()
    assert paging.file_system(Path("/proc/self")) == "proc"
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/my\\040disk xfs rw 0 0\n"
    monkeypatch.setattr(paging, "read_text", lambda path: mounts)
    found = [paging.file_system(Path(place)) for place in ("/root", "/tmp/a", "/tmp/my disk/b", "/tmpx")]
    assert found == ["ext4", "tmpfs", "xfs", "ext4"]


def test_memory_that_is_short_is_mended_by_paging(planned):
    words = ["train.optimizer.name=schedule_free", "train.schedule.name=constant", "train.microbatch_tokens=128"]
    tiny = replace(CPU, memory_free=1)
    plain, paged = planned(*words, machine=tiny).memory.peak, planned(*words, FILE, machine=tiny).memory.peak
    assert paged < plain
    found = codes(planned(*words, machine=replace(CPU, memory_free=round((plain + paged) / 2 / 0.9))))
    assert {"train.optimizer.paging": "auto"} in [fix.set for fix in found["E180"]]


def test_the_folder_is_found_from_anywhere():
    words = [AUTO, "train.optimizer.paging_folder=pages"]
    recipe = with_absolute_paths(load_recipe(None, words, {}).recipe)
    assert recipe.train.optimizer.paging_folder == str(Path("pages").absolute())
