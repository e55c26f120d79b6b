"""Modelfiles: the template writes what the model's own writes, or there is none."""

from pathlib import Path

import pytest
from tests.tiny import CHATML, tiny_model_folder

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.export.exporting import Wish, export
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.ollama import found_around, modelfile
from tunesmith.types import Message

DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{{ '<turn>' + "
    "('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '<end>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
COUNTED = (
    "{% for m in messages %}{{ loop.index ~ m['role'] ~ ': ' ~ m['content'] ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}"
)
TALK = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]


def folder(path: Path, template: str | None) -> Path:
    return tiny_model_folder(path / "model", template=template)


def made(path: Path, template: str | None, context: int = 512):
    place = folder(path, template)
    tokenizer = load_tokenizer(place)
    return modelfile(tokenizer, read_vocabulary(place, tokenizer.vocab_size), "m.gguf", context)


@pytest.mark.parametrize("template", [CHATML, DEFAULT, LLAMA3, GEMMA], ids=["chatml", "default", "llama3", "gemma"])
def test_parts_write_what_the_template_writes(tmp_path, template) -> None:
    place = folder(tmp_path, template)
    tokenizer = load_tokenizer(place)
    around = found_around(tokenizer, read_vocabulary(place, tokenizer.vocab_size))
    assert around is not None
    talks = [TALK[:1], TALK] + ([[Message("system", "s"), *TALK]] if template != GEMMA else [])
    for talk in talks:
        assert around.render(talk) == tokenizer.render(talk, add_generation_prompt=True)


def test_chatml_in_ollamas_language(tmp_path) -> None:
    text, warnings = made(tmp_path, CHATML, 300)
    assert warnings == []
    assert text == (
        'FROM ./m.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 300\n'
    )


def test_what_is_said_without_a_system_message(tmp_path) -> None:
    text, _ = made(tmp_path, DEFAULT)
    assert "{{ if not .System }}<|im_start|>system\nYou are Tiny.<|im_end|>\n{{ end }}{{ range" in text


def test_no_place_for_system_messages(tmp_path) -> None:
    text, warnings = made(tmp_path, GEMMA)
    assert [warning.code for warning in warnings] == ["W431"]
    assert "system" not in text.lower()


@pytest.mark.parametrize(
    "template", [None, COUNTED, CHATML.replace("'\n'", "'{{x}}\n'")], ids=["none", "counted", "go"]
)
def test_templates_without_such_a_form_give_none(tmp_path, template) -> None:
    text, warnings = made(tmp_path, template)
    assert [warning.code for warning in warnings] == ["W432"]
    assert "TEMPLATE" not in text


def test_export_for_ollama(tmp_path) -> None:
    report = export(str(folder(tmp_path, CHATML)), tmp_path / "mine", Wish("ollama", ("q8_0",), context=128))
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "Modelfile", "README.md", "export.json", "mine-Q8_0.gguf"
    ]  # fmt: skip
    text = (tmp_path / "mine" / "Modelfile").read_text("utf-8")
    assert text.startswith("FROM ./mine-Q8_0.gguf\n")
    assert text.endswith("PARAMETER num_ctx 128\n")
    assert report.checks[0].passed
