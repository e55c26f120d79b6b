import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from tunesmith.errors import MachineError, ModelError, Unsafe
from tunesmith.models.locate import locate
from tunesmith.models.safety import read_config


def folder_with(tmp_path, *names):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in names:
        if name.endswith(".safetensors"):
            save_file({"a": np.zeros(2, np.float32)}, str(folder / name))
        else:
            (folder / name).write_text("{}")
    return folder


def test_a_folder_with_config_and_safetensors_is_itself(tmp_path):
    folder = folder_with(tmp_path, "config.json", "model.safetensors")
    assert locate(str(folder)) == folder


def test_an_adapter_folder_is_one_too(tmp_path):
    folder = folder_with(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    assert locate(str(folder)) == folder


def test_f01_a_folder_with_only_a_pickle_is_refused_as_unsafe_with_the_way_out(tmp_path):
    folder = folder_with(tmp_path, "config.json")
    (folder / "pytorch_model.weights").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(Unsafe) as caught:
        locate(str(folder))
    assert caught.value.exit_code == 9
    assert "weights_only=True" in str(caught.value.diagnostic)


def test_a_folder_without_weights_and_one_without_config_are_told_apart(tmp_path):
    with pytest.raises(ModelError, match="no safetensors"):
        locate(str(folder_with(tmp_path, "config.json")))
    (tmp_path / "model" / "config.json").unlink()
    save_file({"a": np.zeros(2, np.float32)}, str(tmp_path / "model" / "model.safetensors"))
    with pytest.raises(ModelError, match=r"no config.json"):
        locate(str(tmp_path / "model"))


def test_a_folder_without_weights_names_what_to_give_instead(tmp_path):
    folder = folder_with(tmp_path, "notes.txt", "small.gguf")
    with pytest.raises(ModelError, match="holds no safetensors weights") as caught:
        locate(str(folder))
    assert [fix.set for fix in caught.value.diagnostic.fixes] == [
        {"model.path": str(folder / "small.gguf")},
        {},
        {"model.path": "starter"},
    ]


def test_a_pickle_file_is_unsafe_and_any_other_file_no_model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(Unsafe):
        locate(str(path))
    path.write_bytes(b"hello, I am a text file")
    with pytest.raises(ModelError, match="not GGUF"):
        locate(str(path))


def test_a_damaged_gguf_is_refused_before_any_library_reads_it(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(ModelError, match="E082"):
        locate(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "owner/../name",
        "../owner/name",
        "/etc/passwd-not-there",
        "/abs/olute",
        "owner/na me",
        " owner/name",
        "-owner/name",
        "owner/-x",
        "owner/" + "n" * 300,
        "owner/name/extra",
        "owner",
        "",
        "owner/name\n",
        "owner--x/name",
        "https://host/owner/name",
        "owner/name\x00",
    ],
)
def test_f16_names_that_are_no_hub_id_are_refused(name):
    with pytest.raises(ModelError) as caught:
        locate(name)
    assert caught.value.diagnostic.code == "E086"


@pytest.mark.parametrize("revision", ["../main", "-x", "a b", "r" * 300, ""])
def test_f16_revisions_are_checked_as_well(revision):
    with pytest.raises(ModelError, match="E086"):
        locate("owner/name", revision)


def test_f17_an_unreachable_hub_is_a_machine_error_with_offline_advice(tmp_path):
    code = (
        "from tunesmith.models.locate import locate\n"
        "from tunesmith.errors import TunesmithError\n"
        "try:\n    locate('owner/name')\n"
        "except TunesmithError as error:\n    print(error.exit_code, error.diagnostic.code, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_canary_secret"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{MachineError.exit_code} E087")
    assert "model.path=FOLDER" in done.stdout
    assert "hf_canary_secret" not in done.stdout + done.stderr


def run_with(tmp_path, *folders):
    run = tmp_path / "runs" / "x"
    for folder, settings in folders:
        (run / folder).mkdir(parents=True)
        (run / folder / settings).write_text('{"base_model_name_or_path": "starter"}')
        save_file({"a": np.zeros(2, np.float32)}, str(run / folder / "model.safetensors"))
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text("{}")
    (run / "status.json").write_text("{}")
    return run


@pytest.mark.parametrize(("folder", "settings"), [("adapter", "adapter_config.json"), ("model", "config.json")])
def test_a_run_is_its_final_weights(tmp_path, folder, settings):
    run = run_with(tmp_path, (folder, settings))
    assert locate(str(run)) == run / folder


def test_a_run_without_final_weights_says_so(tmp_path):
    run = run_with(tmp_path)
    with pytest.raises(ModelError, match="no final weights yet") as caught:
        locate(str(run))
    assert "runs resume" in str(caught.value.diagnostic)


def test_an_adapter_as_a_whole_model_names_its_base(tmp_path):
    run = run_with(tmp_path, ("adapter", "adapter_config.json"))
    with pytest.raises(ModelError, match="is an adapter") as caught:
        read_config(locate(str(run)))
    assert caught.value.diagnostic.fixes[0].set == {
        "model.path": "starter", "model.adapter_path": str(run / "adapter"),
    }  # fmt: skip


def test_the_name_of_a_run_is_told_from_a_model(tmp_path, monkeypatch):
    run_with(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        locate("x")
    assert caught.value.diagnostic.fixes[0].set == {"model.path": "runs/x"}
