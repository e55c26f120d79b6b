"""Named tasks of lm-evaluation-harness: its own `hf` backend finds the same, and what is refused is told."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_model_folder
from transformers import AutoModelForCausalLM

from common.named_tasks import write_tasks

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from tests.command import call  # noqa: E402

from tunesmith.data.tokenizer import load_tokenizer  # noqa: E402
from tunesmith.errors import BadInput, MachineError, UsageError  # noqa: E402
from tunesmith.evaluate.lm_harness import backend  # noqa: E402
from tunesmith.evaluate.lm_harness.backend import Asked, load, run  # noqa: E402
from tunesmith.evaluate.lm_harness.respondent import Respondent  # noqa: E402
from tunesmith.models.cache import is_intact  # noqa: E402
from tunesmith.models.config import ModelConfig  # noqa: E402
from tunesmith.models.load import load_base  # noqa: E402
from tunesmith.models.starter import starter_folder  # noqa: E402

NAMES = ("arc_easy", "hellaswag", "piqa", "boolq", "winogrande", "mmlu_anatomy", "gsm8k", "wikitext")
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.2, "max_position_embeddings": 1024}
OWN = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: own.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), "qwen3", head_dim=16, **LIVELY)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    place = write_tasks(tmp_path_factory.mktemp("tasks"), 6)
    (place / "own.yaml").write_text(OWN)
    row = {"question": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}
    (place / "own.jsonl").write_text(json.dumps(row) + "\n")
    programs = {
        "task_id": "T/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "test": "def check(f):\n    assert f() is None or True\n",
    }
    (place / "humaneval.jsonl").write_text(json.dumps(programs) + "\n")
    return place


def asked(place: Path) -> Respondent:
    return Respondent(load_base(place, ModelConfig(path=str(place))).eval(), load_tokenizer(place), 4)


@pytest.mark.parametrize("chat", [False, True])
def test_every_figure_and_answer_is_that_of_the_hf_backend(folder, data, chat) -> None:
    loaded = load(Asked(NAMES, data, chat=chat, max_new_tokens=12))
    ours = run(loaded, asked(folder))
    for task in loaded.tasks.values():
        task.set_fewshot_seed(backend.SHOT_SEED)
    theirs = evaluate(
        lm=HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4),
        task_dict={"tasks": loaded.tasks},
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    assert theirs is not None
    for name in NAMES:
        figures = {key: value for key, value in theirs["results"][name].items() if not isinstance(value, str)}
        for metric, value in figures.items():
            found = ours["results"][name][metric]
            assert found == (pytest.approx(value, rel=2e-5) if name == "wikitext" else value), (name, metric)
        for mine, yours in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert mine["arguments"] == yours["arguments"]
            if name == "gsm8k":
                assert mine["resps"] == yours["resps"]
                continue
            for (one,), (other,) in zip(mine["resps"], yours["resps"], strict=True):
                if name == "wikitext":
                    assert one == pytest.approx(other, rel=2e-5)
                else:
                    assert one[0] == pytest.approx(other[0], rel=2e-5, abs=1e-4)
                    assert one[1] == other[1]


def printed(found: Mapping[str, Any], name: str) -> dict[str, str]:
    """The task's figures as the harness's own table prints them."""
    return {key: f"{value:.4f}" for key, value in found["results"][name].items() if isinstance(value, float)}


def both(folder: Path, data: Path, names: tuple[str, ...], limit: int | None = None) -> Iterator[dict[str, Any]]:
    """What the harness tells of the same files through Tunesmith, then through its own backend, in fp32."""
    loaded = load(Asked(names, data, limit=limit))
    kept = ModelConfig(path=str(folder), dtype="float32")
    yield run(loaded, Respondent(load_base(folder, kept).eval(), load_tokenizer(folder), 4))
    for task in loaded.tasks.values():
        task.set_fewshot_seed(backend.SHOT_SEED)
    lm = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    theirs = evaluate(lm=lm, task_dict={"tasks": loaded.tasks}, limit=limit, bootstrap_iters=0)
    assert theirs is not None
    yield theirs


@pytest.fixture(scope="module")
def learned(folder, data, tmp_path_factory) -> Path:
    """The model after it has read the texts, so that its perplexities are those of a language model."""
    place = tmp_path_factory.mktemp("learned")
    shutil.copytree(folder, place, dirs_exist_ok=True)
    tokenizer, model = load_tokenizer(place), AutoModelForCausalLM.from_pretrained(place)
    texts = [json.loads(line)["page"] for line in (data / "wikitext" / "test.jsonl").read_text().splitlines()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for text in texts * 15:
        ids = torch.tensor([tokenizer.encode(text, specials=True)])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)
    return place


def test_every_printed_digit_is_that_of_the_hf_backend(learned, data) -> None:
    names = tuple(name for name in NAMES if name != "gsm8k")
    ours, theirs = both(learned, data, names)
    told = {name: printed(theirs, name) for name in names}
    assert {name: printed(ours, name) for name in names} == told
    assert set(told["wikitext"]) == {f"{one},none" for one in ("word_perplexity", "byte_perplexity", "bits_per_byte")}
    assert float(told["wikitext"]["word_perplexity,none"]) < 100


@pytest.mark.nightly
def test_every_printed_digit_of_the_starter_is_that_of_the_hf_backend(tmp_path) -> None:
    if not is_intact(starter_folder()):
        pytest.skip("the starter model is not fetched here")
    names = ("arc_easy", "hellaswag", "piqa", "mmlu_anatomy", "wikitext")
    ours, theirs = both(starter_folder(), write_tasks(tmp_path, 32), names, limit=8)
    assert {name: printed(ours, name) for name in names} == {name: printed(theirs, name) for name in names}


def test_names_are_found_without_reading_every_task(data) -> None:
    index = backend.indexed(Asked(("ai2_arc", "own", "mmlu"), data))
    assert [one["task"] for one in backend.members(index, "ai2_arc", {})] == ["arc_challenge", "arc_easy"]
    assert len(list(backend.members(index, "mmlu", {}))) == 57
    assert backend.is_weighted(index.task_index["mmlu"].cfg)
    assert not backend.is_weighted(index.task_index["ai2_arc"].cfg)


def test_models_are_compared_at_named_tasks(folder, data, tmp_path, capsys) -> None:
    other = tiny_model_folder(tmp_path / "other", "llama", seed=1, **LIVELY)
    out = tmp_path / "out"
    words = ("eval", str(folder), str(other), "--suite", "harness:own,arc_easy,wikitext", "--tasks-from", str(data))
    words = (*words, "--dtype", "float32")
    assert call(*words, "--limit", "4", "--out", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["task"] for one in told["scores"]} == {"own", "arc_easy", "wikitext"}
    assert {one["n"] for one in told["differences"] if one["task"] == "arc_easy"} == {4}
    own = json.loads(sorted(out.glob("harness-1-*.json"))[0].read_text())["results"]
    score = {(one["task"], one["measure"], one["model"]): one["score"]["value"] for one in told["scores"]}
    assert score["arc_easy", "acc_norm", folder.name] == own["arc_easy"]["acc_norm,none"]
    assert score["wikitext", "word_perplexity", folder.name] == pytest.approx(own["wikitext"]["word_perplexity,none"])
    rows = [json.loads(line) for line in sorted(out.glob("results-*.jsonl"))[0].read_text().splitlines()]
    assert len(rows[1]["detail"]["logprobs"]) == 4


def test_programs_run_only_when_allowed_and_then_in_the_sandbox(folder, data, capsys) -> None:
    words = ("eval", str(folder), "--suite", "harness:humaneval", "--tasks-from", str(data), "--max-new-tokens", "4")
    assert call(*words) == 2
    assert "--run-code" in capsys.readouterr().err
    assert call(*words, "--run-code", "--json") == 0
    [score] = json.loads(capsys.readouterr().out)["scores"]
    assert (score["measure"], score["score"]["n"]) == ("pass@1", 1)


def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(data, tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="did you mean arc_easy"):
        load(Asked(("arc_esay",)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def unreachable(name: str):
        raise ConnectionError(f"cannot reach {name}")

    monkeypatch.setattr(backend.datasets, "load_dataset", lambda path, **_: unreachable(path))
    with pytest.raises(MachineError) as caught:
        load(Asked(("arc_easy",), tmp_path))
    assert caught.value.diagnostic.code == "E467"
    assert "FOLDER/arc_easy.jsonl" in caught.value.diagnostic.fixes[0].label


def test_a_task_that_cannot_be_built_is_told(tmp_path) -> None:
    (tmp_path / "broken.yaml").write_text(OWN.replace("output_type: multiple_choice", "output_type: essay"))
    with pytest.raises((UsageError, BadInput)) as caught:
        load(Asked(("own",), tmp_path))
    assert caught.value.diagnostic.code == "E469"
    assert "essay" in caught.value.diagnostic.evidence[0]
