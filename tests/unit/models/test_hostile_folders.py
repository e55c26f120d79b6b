"""A model folder is data: pickles are refused by what they are, and code in it never runs, whatever the command."""

import json
import os
import pickle
import re
import sys

import pytest
from tests.hostile import Done, Touch, arm, copy, disguises, evil_pickle, tunesmith
from tests.tiny import tiny_model_folder
from transformers import AutoConfig, dynamic_module_utils

from tunesmith.errors import Unsafe
from tunesmith.models.locate import locate
from tunesmith.models.safety import read_config, refuse_pickle
from tunesmith.serve.server import Server

NAMES = (
    "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin", "training_args.bin", "model.pt",
    "model.pth", "model.ckpt", "model.pkl", "model.pickle", "model.mdl", "optimizer.pt", "scheduler.pt", "scaler.pt",
    "rng_state.pth", "rng_state_0.pth", "random_states_0.pkl", "value_head.bin", "v_head.bin", "reward.bin",
    "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "consolidated.00.pth", "params.joblib",
    "embeddings.npy", "vectors.npz", "model.h5", "model.keras", "model.tar", "model.tar.gz", "model.zip", "model.7z",
    "model.dill", "model.onnx", "flax_model.msgpack", "tf_model.h5", "weights", "README.md", "merges.txt",
    "chat_template.jinja", "added_tokens.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("hostile") / "good")


@pytest.fixture
def canary(tmp_path):
    """A file that only hostile code makes; the test fails when it is there in the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "hostile code ran"


@pytest.fixture
def data(tmp_path):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    path.with_name("prompts.jsonl").write_text('{"prompt": "What?"}\n')
    return path


@pytest.fixture(autouse=True)
def unserved(monkeypatch):
    monkeypatch.setattr(Server, "serve_on", lambda *given, **named: None)


def commands(model, data, out) -> dict[str, list[object]]:
    """Every command that opens a model."""
    prompts = data.with_name("prompts.jsonl")
    settings = [f"model.path={model}", f"data.train={data}", "train.steps=1"]
    return {
        "plan": ["plan", "sft", *settings],
        "train": ["train", "sft", *settings, "run.name=x"],
        "lr-find": ["lr-find", "sft", *settings[:2], "--steps", "20"],
        "data preview": ["data", "preview", "sft", *settings[:2]],
        "data check": ["data", "check", "sft", *settings[:2]],
        "chat": ["chat", model, "--prompt", "hi", "--max-new-tokens", "2"],
        "eval": ["eval", model, "--data", data, "--max-new-tokens", "2"],
        "sample": ["sample", model, "--prompts", prompts, "-n", "1", "-o", out / "s.jsonl", "--max-new-tokens", "2"],
        "score": ["score", model, "--data", data],
        "serve": ["serve", f"m={model}", "--port", "0"],
        "export": ["export", model, out / "exported"],
        "export gguf": ["export", model, out / "gguf", "--to", "gguf"],
        "merge": ["merge", model, out / "merged"],
        "average": ["average", model, model, out / "averaged"],
        "adapters ls": ["adapters", "ls", model],
        "adapters merge": ["adapters", "merge", model, model, out / "both"],
        "adapters convert": ["adapters", "convert", model, out / "converted", "--to", "lora"],
    }


def test_the_canary_bites(good, tmp_path, monkeypatch):
    """Without this, a harness that injects nothing would pass."""
    canary = tmp_path / "bitten"
    pickle.loads(evil_pickle(canary))
    assert canary.exists()
    canary.unlink()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = arm(copy(good, tmp_path / "armed"), canary)
    for path in folder.glob("*.bin"):
        path.unlink()
    with pytest.raises((AttributeError, ValueError)):
        AutoConfig.from_pretrained(str(folder), trust_remote_code=True, local_files_only=True)
    assert canary.exists()


def test_f01_s09_every_disguise_is_known_by_its_content(tmp_path, canary):
    found = disguises(canary)
    assert len(found) == 18
    for kind, content in found.items():
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(Unsafe) as caught:
            refuse_pickle(path)
        assert caught.value.exit_code == 9, kind


@pytest.mark.row("F1", "S3", "S9", "S12")
def test_forty_names_of_pickles_are_refused_with_exit_9(good, tmp_path, canary, evidence):
    refused = 0
    assert len(set(NAMES)) == 40
    for index, name in enumerate(NAMES):
        folder = tmp_path / f"m{index}"
        folder.mkdir()
        (folder / "config.json").write_text((good / "config.json").read_text())
        (folder / name).write_bytes(evil_pickle(canary, index % 6))
        with pytest.raises(Unsafe, match=f"E085.*{re.escape(name)}") as caught:
            locate(str(folder))
        refused += caught.value.exit_code == 9
    assert refused == 40
    evidence("F1", "S3", claim="pickles refused under 40 names, exit 9, canary untouched", figure=f"{refused} of 40")


@pytest.mark.row("F1", "S9", "S10")
def test_every_command_refuses_a_pickle_in_the_place_of_weights(good, tmp_path, canary, data, monkeypatch, evidence):
    monkeypatch.chdir(tmp_path)
    folder = copy(good, tmp_path / "pickled")
    (folder / "model.safetensors").write_bytes(disguises(canary)["torch"])
    ended: dict[str, Done] = {name: tunesmith(*words) for name, words in commands(folder, data, tmp_path).items()}
    free = {"data preview", "data check"}  # which read no weights
    assert {name: done.code for name, done in ended.items() if done.code != 9 and name not in free} == {
        "score": 4, "adapters ls": 4, "adapters merge": 4, "adapters convert": 4, "merge": 2,
    }, "\n".join(done.text[:300] for done in ended.values() if done.code not in (0, 9))  # fmt: skip
    assert not [name for name, done in ended.items() if "E029" in done.text]
    evidence("F1", claim="commands that refuse a pickled model", figure=sum(done.code == 9 for done in ended.values()))


@pytest.mark.row("F1", "S3")
def test_an_adapter_that_is_a_pickle_is_refused(good, tmp_path, canary):
    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(good), "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        (folder / name).write_bytes(evil_pickle(canary))
        for words in (
            ["chat", folder, "--prompt", "hi"],
            ["merge", folder, tmp_path / "out"],
            ["adapters", "ls", folder],
            ["adapters", "convert", folder, tmp_path / "out", "--to", "lora"],
        ):
            done = tunesmith(*words)
            assert done.code == 9, done


@pytest.mark.row("S5", "S8", "F8")
def test_the_canary_repository_goes_through_every_command(good, tmp_path, canary, data, monkeypatch, evidence):
    folder = arm(copy(good, tmp_path / "armed"), canary)
    monkeypatch.chdir(folder)  # where a stray import would find its code
    ended = {name: tunesmith(*words) for name, words in commands(folder, data, tmp_path).items()}
    worked = sorted(name for name, done in ended.items() if done.code == 0)
    assert {"plan", "train", "chat", "eval", "sample", "serve", "export", "data preview", "data check"} <= set(worked)
    assert {name: done.code for name, done in ended.items() if name not in worked} == {
        "score": 4, "merge": 2, "adapters ls": 4, "adapters merge": 4, "adapters convert": 4,
    }, "\n".join(done.text[-300:] for done in ended.values() if done.code)  # fmt: skip
    assert "W080" in ended["plan"].text
    assert not canary.exists()
    out = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert not set(out) & {"auto_map", "trust_remote_code", "model_file", "custom_pipelines"}
    assert not list((tmp_path / "exported").glob("*.py"))
    evidence("S5", "S8", claim="commands a canary repository went through without its code running", figure=len(ended))


@pytest.mark.row("F8", "S8")
def test_every_hostile_key_is_listed(good, tmp_path, canary):
    clean, stripped = read_config(arm(copy(good, tmp_path / "armed"), canary))
    from tests.hostile import KEYS

    assert set(stripped) == {f"{place}{key}" for place in ("", "vision_config.", "parts.0.") for key in KEYS}
    assert not set(clean) & set(KEYS)


@pytest.mark.row("S9", "S10")
def test_a_pickle_is_opened_once_and_never_unpickled(good, tmp_path, canary):
    """No second try: unpickling would be seen, by Python's own audit of what a pickle looks up."""
    seen: list[str] = []
    live = [True]

    def watch(event: str, given: tuple) -> None:
        if live[0] and event == "pickle.find_class":
            seen.append(str(given))

    sys.addaudithook(watch)
    pickle.loads(pickle.dumps(Touch))
    assert seen, "the audit sees what is unpickled"
    seen.clear()
    folder = copy(good, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(evil_pickle(canary, 4) + b"\0")
    assert tunesmith("chat", folder, "--prompt", "hi").code == 9
    live[0] = False
    assert not seen


@pytest.mark.row("F8")
def test_a_folder_with_an_adapters_settings_never_loads_the_base_they_name(good, tmp_path, canary):
    folder = copy(good, tmp_path / "both")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(arm(copy(good, tmp_path / "armed"), canary))}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    done = tunesmith("chat", folder, "--prompt", "hi")
    assert (done.code, "E512" in done.text) == (4, True)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "E512" not in tunesmith("chat", folder, "--prompt", "hi").text


@pytest.mark.row("D31")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_pipe_in_a_model_folder_does_not_hang(good, tmp_path, name):
    folder = copy(good, tmp_path / "piped")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    done = tunesmith("chat", folder, "--prompt", "hi")
    assert (done.code, "E541" in done.text) == (9, True), done
    assert name in done.text
