"""ONNX: the graph answers as the model, all at once, token by token, and for rows of a batch."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model_folder
from tests.unit.export.shapes import SHAPES, loaded, shape_folder
from transformers import AutoConfig

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError, UsageError
from tunesmith.export import exporting, graph
from tunesmith.export.exporting import Order, Wish, export, turning_warning
from tunesmith.export.graph import FILE, NEEDED, Graph, Step, write_graph
from tunesmith.export.opening import find_model
from tunesmith.export.verifying import logits_of

ROW = list(range(20, 60))
HAS_ONNX = all(find_spec(name) is not None for name in NEEDED)
NEEDS_ONNX = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3-long"])
def test_steps_through_a_cache_of_tensors(tmp_path, name) -> None:
    """The second row of the batch begins with ten tokens that are masked."""
    model = loaded(shape_folder(tmp_path / "model", name))
    wanted = logits_of(model, [ROW])
    ids, mask = torch.tensor([ROW, [2] * 10 + ROW[:30]]), torch.ones(2, 40, dtype=torch.long)
    mask[1, :10] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    step, past, found = Step(model), (), []
    for begin, end in ((0, 12), (12, 13), (13, 40)):
        logits, past = step(ids[:, begin:end], mask[:, :end], places[:, begin:end], past)
        found.append(logits)
    both = torch.cat(found, 1)
    assert torch.allclose(both[0], wanted, atol=1e-4)
    assert torch.allclose(both[1, 10:], wanted[:30], atol=1e-4)
    assert all(each.shape[2] == 40 for pair in past for each in pair), "windows too keep all"


@NEEDS_ONNX
@pytest.mark.timeout(900)
def test_export_in_both_types(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "model", tie_word_embeddings=True, initializer_range=0.1)
    report = export(str(folder), tmp_path / "out", Wish("onnx"))
    whole, by_token = report.checks
    assert whole.passed
    assert by_token.passed
    assert max(whole.logit, by_token.logit) < 1e-3
    assert whole.prompts == 20
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {FILE, f"{FILE}.data", "config.json", "tokenizer.json", "generation_config.json", "README.md"} <= names
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for part in ("written as ONNX", 'InferenceSession("out/model.onnx")', "library_name: onnx", "token by token"):
        assert part in card
    graph_of = Graph.of(tmp_path / "out")
    inputs = [each.name for each in graph_of.session.get_inputs()]
    assert inputs[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    assert graph_of.session.get_outputs()[0].name == "logits"
    rows = two_rows(graph_of)
    wanted = logits_of(loaded(folder), [ROW])
    assert torch.allclose(rows[0], wanted, atol=1e-4)
    assert torch.allclose(rows[1, 10:], wanted[:30], atol=1e-4)
    half = export(str(folder), tmp_path / "half", Wish("onnx", dtype="float16"))
    assert 1e-5 < half.checks[0].logit < 2e-2
    assert load_tokenizer(tmp_path / "half").eos_ids == (2,)


def two_rows(found: Graph) -> torch.Tensor:
    mask = np.ones((2, 40), np.int64)
    mask[1, :10] = 0
    empty = [np.repeat(each, 2, 0) for each in found.empty()]
    names = [each.name for each in found.session.get_inputs()][3:]
    feed = {
        "input_ids": np.array([ROW, [2] * 10 + ROW[:30]]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clip(0),
        **dict(zip(names, empty, strict=True)),
    }
    return torch.from_numpy(found.session.run(["logits"], feed)[0])


@NEEDS_ONNX
@pytest.mark.nightly
@pytest.mark.parametrize("name", SHAPES)
def test_every_family(tmp_path, name) -> None:
    model = loaded(shape_folder(tmp_path / "model", name))
    write_graph(model, tmp_path)
    found, wanted = Graph.of(tmp_path), logits_of(model, [ROW])
    assert torch.allclose(found.logits([ROW]), wanted, atol=1e-4)
    assert torch.allclose(found.logits_by_token([ROW]), wanted, atol=1e-4)


def test_missing_packages_are_told(tmp_path, monkeypatch) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name != "onnx" else "here")
    monkeypatch.setattr(exporting, "load_source", lambda *_: pytest.fail("a weight was loaded"))
    with pytest.raises(UsageError, match=r"(?s)E439.*: onnxscript, onnxruntime.*pip install 'tunesmith\[onnx\]'"):
        export(str(folder), tmp_path / "out", Wish("onnx"))
    assert not (tmp_path / "out").exists()


def test_what_torch_cannot_follow_is_told(tmp_path, monkeypatch) -> None:
    model = loaded(tiny_model_folder(tmp_path / "model"))

    def fail(*given, **named):
        raise RuntimeError("data-dependent branch\n\nat line 7")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"E441.*'llama'") as caught:
        write_graph(model, tmp_path)
    assert caught.value.diagnostic.evidence == ("data-dependent branch", "at line 7")


def test_turning_that_changes_with_length_is_told(tmp_path) -> None:
    def warned(name: str) -> list[str]:
        folder = shape_folder(tmp_path / name, name)
        order = Order(find_model(str(folder)), tmp_path / "out", Wish("onnx"), AutoConfig.from_pretrained(folder))
        return [f"{warning.code} {warning.message}" for warning in turning_warning(order)]

    assert warned("phi3-long")[0].startswith("W433 beyond 4,096 tokens")
    assert warned("yarn") == []
