"""`eval --against` as a user meets it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.cli.winrate import Duellists, view
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.evaluate.win_rate import Duel, summarise
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.types import Message

LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    folders = [tiny_model_folder(tmp_path_factory.mktemp("m"), seed=seed, **LIVELY) for seed in (0, 1)]
    return str(folders[0]), str(folders[1])


@pytest.fixture
def prompts(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"Question {at}\n" for at in range(6)), "utf-8")
    return path


def answers(folder: str) -> list[str]:
    model, tokenizer = load_base(Path(folder), ModelConfig(path=folder)).eval(), load_tokenizer(Path(folder))
    tokens = [tokenizer.prompt_ids([Message("user", f"Question {at}")]) for at in range(6)]
    return [made.text for made in generate(model, tokenizer, tokens, Sampling(8))]


def test_the_win_rate_is_that_of_the_greedy_answers(models, prompts, capsys):
    words = ["--data", str(prompts), "--rule", "shorter", "--max-new-tokens", "8", "--answers", "duels.jsonl"]
    assert call("eval", models[0], "--against", models[1], *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    lengths = [(len(one), len(other)) for one, other in zip(*map(answers, models), strict=True)]
    wins = sum(one < other for one, other in lengths)
    ties = sum(one == other for one, other in lengths)
    assert (told["wins"], told["ties"], told["losses"]) == (wins, ties, 6 - wins - ties)
    assert told["rate"]["value"] == pytest.approx((wins + ties / 2) / 6)
    assert len(Path("duels.jsonl").read_text("utf-8").splitlines()) == 6
    assert call("eval", models[0], "--against", models[0], *words) == 0
    assert "wins 50.0% of 6 prompts" in " ".join(capsys.readouterr().out.split())


def test_two_models_and_one_decider_are_needed(models, prompts, capsys):
    assert call("eval", models[0], "--data", str(prompts), "--rule", "shorter") == 2
    assert "--against" in capsys.readouterr().err
    assert call("eval", models[0], "--against", models[1], "--data", str(prompts)) == 2
    assert "E270" in capsys.readouterr().err


def test_duels_stand_on_one_line_each_decided_ones_first():
    def duel(hit: float, answer: str) -> Duel:
        return Duel("f:1", "Say more. " * 50, answer, "no\x1b[31m", hit)

    duels = [duel(0.5, "tie"), duel(1.0, "first line\n\nand a very long second one " * 20), duel(0.0, "b\nc")]
    found = summarise(duels, 0)
    out = io.StringIO()
    terminal = Console(file=out, width=80)
    for part in view(found, Duellists("one", "two", "auto"), 0, 2):
        terminal.print(part)
    lines = out.getvalue().splitlines()
    table = [line for line in lines if line.startswith(("│", "┃"))]
    assert len(table) == 3, out.getvalue()
    assert "tie" not in "".join(table)
    assert "b ⏎ c" in table[2]
    cells = [len(cell) for cell in table[1].strip("│").split("│")]
    assert abs(cells[1] - cells[2]) <= 1
    assert cells[2] > cells[0] > 10
    assert "\x1b" not in out.getvalue()
