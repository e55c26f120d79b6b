"""Models by name: adapters of one base share it, and each answers as if it were alone."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from tests.command import call
from tests.unit.export.test_averaging import base, saved  # noqa: F401
from tests.unit.export.test_huggingface import ROWS, make_run, trained

from tunesmith.errors import UsageError
from tunesmith.export import shelf as shelves
from tunesmith.export.opening import open_model
from tunesmith.export.proof import predictions
from tunesmith.export.shelf import Shelf
from tunesmith.models.config import Ia3Config, LoraConfig
from tunesmith.models.save import save_weights


@pytest.fixture
def names(base, tmp_path) -> list[str]:  # noqa: F811
    """An adapter folder, a run, and the base."""
    run = make_run(tmp_path, base)
    save_weights(trained(base, seed=2), run.path, base)
    return [str(saved(base, tmp_path / "a")), str(run.path), str(base)]


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """Every base that the shelf loads."""
    seen = []

    def counted(folder, settings, packing=None):
        seen.append(folder)
        return shelves_load(folder, settings, packing=packing)

    shelves_load = shelves.load_base
    monkeypatch.setattr(shelves, "load_base", counted)
    return seen


def test_adapters_of_one_base_share_it(names, loads):
    shelf = Shelf.of(names)
    for name in (*names, *names[::-1]):
        want = predictions(open_model(name).model, ROWS)
        assert torch.equal(predictions(shelf.open(name).model, ROWS), want)
    assert len(loads) == 1
    assert shelf.open(names[0]).model is shelf.open(names[1]).model
    with pytest.raises(UsageError, match="E368"):
        shelf.open("other")


def test_kinds_that_cannot_share_are_loaded_each(names, base, tmp_path, loads):  # noqa: F811
    other = str(saved(base, tmp_path / "ia3", Ia3Config()))
    shelf = Shelf.of([names[0], other])
    for name in (names[0], other):
        assert torch.equal(predictions(shelf.open(name).model, ROWS), predictions(open_model(name).model, ROWS))
    assert loads == []  # nothing was tried in vain


def test_an_adapter_alone_is_loaded_as_ever(names, loads):
    Shelf.of([names[0]]).open(names[0])
    assert loads == []


def test_the_base_by_itself_is_that_of_its_adapter(names, loads):
    shelf = Shelf.of([names[0], names[2]])
    for name in (names[2], names[0], names[2]):
        want = predictions(open_model(name).model, ROWS)
        assert torch.equal(predictions(shelf.open(name).model, ROWS), want)
    assert len(loads) == 1


def test_an_adapter_that_changes_its_base_has_one_of_its_own(names, base, tmp_path, loads):  # noqa: F811
    config = Path(names[0]) / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "bias": "all"}))
    shelf = Shelf.of([names[0], names[2]])
    assert shelf.several(shelf.sources[names[0]]) is None
    assert torch.equal(predictions(shelf.open(names[2]).model, ROWS), predictions(open_model(names[2]).model, ROWS))
    assert loads == []


def test_chat_goes_from_one_to_another(names, base, tmp_path, capsys, monkeypatch):  # noqa: F811
    strong = str(saved(base, tmp_path / "strong", LoraConfig(rank=8, alpha=64), 5))
    words = ["--temperature", "0", "--max-new-tokens", "6"]
    said = {}
    for name in (names[0], strong):
        call("chat", name, "--prompt", "Hello", *words)
        said[name] = capsys.readouterr().out
    assert call("chat", names[0], strong, "--prompt", "Hello", *words) == 0
    assert capsys.readouterr().out == "".join(f"{name}: {text}" for name, text in said.items())
    assert said[names[0]] != said[strong]
    typed = f"Hello\n/clear\n/use {strong}\nHello\n/clear\n/use {names[0]}\nHello\n/bye\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert call("chat", names[0], *words) == 0
    assert capsys.readouterr().out == said[names[0]] + said[strong] + said[names[0]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("/use nobody\n"))
    assert call("chat", names[0], *words) == 4
    assert "E086" in capsys.readouterr().err


def test_a_duel_loads_the_base_once(names, tmp_path, loads, capsys):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": text, "completion": "Paris."}) + "\n" for text in ("City?", "Sea?")))
    words = ["--data", str(data), "--rule", "shorter", "--max-new-tokens", "4", "--json"]
    assert call("eval", names[0], "--against", names[1], *words) == 0
    assert json.loads(capsys.readouterr().out)["against"] == names[1]
    assert len(loads) == 1


def test_bases_that_are_held_otherwise_are_not_shared(names, base, tmp_path, loads):  # noqa: F811
    packed = saved(base, tmp_path / "packed")
    keep = {"name": "nf4", "double_quantization": True}
    (packed / "quantized_base.json").write_text(json.dumps(keep))
    listed = [names[0], str(packed)]
    shelf = Shelf.of(listed)
    for name in listed:
        assert torch.equal(predictions(shelf.open(name).model, ROWS), predictions(open_model(name).model, ROWS))
    assert loads == []
