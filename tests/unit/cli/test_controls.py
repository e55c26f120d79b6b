"""No text of a file, a model or a name drives the terminal: every way by which such texts are printed."""

import io
import json
import re
import struct

import pytest
import torch
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file, save_file
from tests.hostile import copy, tunesmith
from tests.house.source import ROOT
from tests.tiny import tiny_model_folder
from transformers import AutoModelForCausalLM

from tunesmith.cli.chat_screen import Screen
from tunesmith.cli.output import console, emit_json
from tunesmith.controls import escaped, visible
from tunesmith.errors import ModelError
from tunesmith.terminal import Terminal
from tunesmith.track import RunDir
from tunesmith.track.metrics import JsonLines
from tunesmith.track.progress import make_progress

pytestmark = pytest.mark.row("S13")
EVIL = "\x1b[2J\x1b]0;PWN\x07\x9b31m\x7f\u202efdp.exe\u2066"
SPEAKS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("controls") / "good", tie_word_embeddings=False)


@pytest.fixture
def folder(model, tmp_path):
    """A copy that may be changed."""
    return copy(model, tmp_path / "M")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "What?", "completion": "That."}\n')
    return path


def shown(text: str) -> str:
    """What was printed, which must show ESC and hold no sign that speaks."""
    assert SPEAKS.search(text) is None, text
    assert "␛" in text
    return text


def test_every_sign_that_speaks_is_shown_and_no_other_changed():
    everything = "".join(map(chr, range(0x11000)))
    seen = visible(everything)
    assert SPEAKS.search(seen) is None
    changed = {one for one, other in zip(everything, seen, strict=True) if one != other}
    assert changed == set(SPEAKS.findall(everything))
    assert visible("\x1b\x07\x7f\x9b\u202e\n\t👩\u200d🚀é") == "␛␇␡\ufffd\ufffd\n\t👩\u200d🚀é"


def test_a_console_keeps_its_own_codes_and_shows_those_of_texts():
    screen = io.StringIO()
    terminal = Terminal(file=screen, force_terminal=True, color_system="standard", width=80)
    table = Table(EVIL)
    table.add_row(EVIL, style="red")
    for part in (EVIL, f"[bold]{EVIL}[/bold]", Text(EVIL, style="green"), table, Panel(EVIL, title=EVIL)):
        terminal.print(part)
        terminal.print(part, soft_wrap=True)
    terminal.rule(EVIL)
    written = screen.getvalue()
    assert "\x1b[1m" in written
    shown(re.sub("\x1b\\[[0-9;]*m", "", written))


def test_progress_warnings_and_errors_are_shown(capsys):
    with make_progress() as progress:
        progress.message(EVIL)
        progress.phase(EVIL, 1, 2)
    console().print(EVIL)
    shown(capsys.readouterr().err)


def test_json_is_the_same_to_a_program_and_says_nothing_to_a_terminal(capsys):
    content = {"text": EVIL, EVIL: 1, "half": "\udc80"}
    emit_json(content)
    out = capsys.readouterr().out
    assert json.loads(out) == {"schema": 1, **content}
    assert SPEAKS.search(out) is None
    assert escaped('"é 👩 \n"') == '"é 👩 \n"'


def test_the_log_of_a_run_and_its_tracebacks_may_be_printed(tmp_path):
    file = JsonLines(tmp_path / "log.txt")
    file.write_text(EVIL)
    file.close()
    shown((tmp_path / "log.txt").read_text())
    run = RunDir.create(tmp_path, "x")
    shown(run.crash(EVIL).read_text())


def test_no_other_console_is_made():
    made = [path for path in (ROOT / "src").rglob("*.py") if re.search(r"\bConsole\(", path.read_text())]
    assert made == []


def test_answers_are_shown_on_a_terminal_and_in_a_pipe(capsys):
    for paints in (True, False):
        screen = Screen()
        screen.paints = paints
        screen.piece(EVIL)
        screen.duel(EVIL, EVIL)
        out = capsys.readouterr().out
        shown(re.sub("\x1b\\[[0-9;]*m", "", out))


def test_what_a_model_was_taught_to_say_is_shown(folder):
    taught = AutoModelForCausalLM.from_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    with torch.no_grad():
        for layer in taught.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        taught.model.embed_tokens.weight.fill_(1.0)
        taught.lm_head.weight.zero_()
        taught.lm_head.weight[words[chr(0x11B)]] = 1.0  # which stands for the byte of ESC
    taught.save_pretrained(folder)
    asked = ("chat", folder, "--prompt", "hi", "--temperature", 0, "--max-new-tokens", 3)
    assert shown(tunesmith(*asked).text).startswith("␛␛␛")
    assert SPEAKS.search(tunesmith(*asked, "--json").text) is None


def test_a_template_a_tensor_and_a_base_are_shown(folder, tmp_path):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('\\x1b[2J\\x1b]0;PWN') }}")
    done = tunesmith("chat", folder, "--prompt", "hi")
    assert done.code != 0
    shown(done.text)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, EVIL: torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    done = tunesmith("chat", folder, "--prompt", "hi")
    assert done.code != 0
    shown(done.text)
    header = json.dumps({EVIL: {"dtype": EVIL, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    shown(tunesmith("plan", "sft", f"model.path={folder}").text)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({"a": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": f"no/{EVIL}"})
    )
    assert SPEAKS.search(tunesmith("chat", adapter, "--prompt", "hi").text) is None


def test_data_keys_file_names_and_recipe_keys_are_shown(model, data, tmp_path):
    settings = ("plan", "sft", f"model.path={model}")
    data.write_text(json.dumps({EVIL: "a"}) + "\n")
    shown(tunesmith(*settings, f"data.train={data}").text)
    named = tmp_path / f"{EVIL.replace('/', '')}.jsonl"
    named.write_text("{\n")
    shown(tunesmith(*settings, f"data.train={named}").text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"train": {EVIL: 1}}))
    shown(tunesmith("plan", str(recipe)).text)


def test_an_error_keeps_its_words_for_programs():
    assert EVIL in ModelError("E082", EVIL).diagnostic.message
