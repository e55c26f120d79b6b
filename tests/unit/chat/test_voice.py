"""A voice: the answers of `generate`, read only as far as they are new, and none the worse for an interruption."""

import shutil
import weakref
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.chat.voice import Voice, Voices, common
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.export.opening import open_model
from tunesmith.export.shelf import Shelf
from tunesmith.models.adapters import attach, trainable
from tunesmith.models.adapters.files import save_adapter
from tunesmith.models.config import LoraConfig, ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.types import Message

QUESTIONS = ("Hello, how are you?", "Add the numbers 12 and 30", "What is the capital of France?")
GREEDY = Sampling(12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory) -> list[str]:
    """Two LoRA adapters of one base."""
    made: list[str] = []
    for seed in (1, 2):
        model = attach(load_base(folder, ModelConfig(path=str(folder))), LoraConfig(rank=4))
        torch.manual_seed(seed)
        for parameter in trainable(model).values():
            parameter.data += 0.1 * torch.randn_like(parameter)
        out = tmp_path_factory.mktemp("adapter")
        save_adapter(model, out, str(folder))
        made.append(str(out))
    return made


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def open_voice(stack: ExitStack, *names: str) -> list[Voice]:
    voices = Voices(Shelf.of(names), stack)
    return [voices.open(name) for name in names]


def converse(voice: Voice, questions=QUESTIONS) -> list[tuple[list[int], str]]:
    """The prompt and the answer of each turn."""
    messages: list[Message] = []
    turns: list[tuple[list[int], str]] = []
    for question in questions:
        messages.append(Message("user", question))
        prompt = voice.tokenizer.prompt_ids(messages)
        turns.append((prompt, "".join(voice.answer(prompt, GREEDY, (0,)))))
        messages.append(Message("assistant", turns[-1][1]))
    return turns


def expected(name: str, turns: list[tuple[list[int], str]]) -> list[str]:
    opened = open_model(name)
    return [generate(opened.model, opened.tokenizer, [prompt], GREEDY)[0].text for prompt, _ in turns]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_answers_are_those_of_generate_and_only_what_is_new_is_read(architecture, stack, tmp_path) -> None:
    settings = {"num_key_value_heads": 2} if architecture == "llama" else {"num_key_value_heads": 4}
    name = str(tiny_model_folder(tmp_path, architecture, tie_word_embeddings=False, initializer_range=0.2, **settings))
    (voice,) = open_voice(stack, name)
    turns = converse(voice)
    assert [said for _, said in turns] == expected(name, turns)
    spoken, prompt = voice.spoken, turns[-1][0]
    assert spoken.read + spoken.kept == len(prompt)
    if voice.engine is None:
        assert spoken.kept == 0
    else:
        assert spoken.kept >= len(turns[1][0])
        assert voice.engine.pages.used == len(voice.row.pages)
    assert architecture != "llama" or voice.engine is not None
    assert 0 < spoken.first_token_s <= spoken.seconds
    assert (spoken.made, spoken.reason) == (12, "length")


def test_draws_are_those_of_the_name_and_the_seed(folder, stack) -> None:
    (voice,) = open_voice(stack, str(folder))
    prompt = voice.tokenizer.prompt_ids([Message("user", "Hello")])
    drawn = Sampling(20, temperature=1.0, seed=3)
    opened = open_model(str(folder))
    plain = generate(opened.model, opened.tokenizer, [prompt], drawn)[0].text
    assert "".join(voice.answer(prompt, drawn, (0,))) == plain
    assert "".join(voice.answer(prompt, drawn, (1, 2))) != plain
    assert "".join(voice.answer(prompt, drawn, (0,))) == plain


def test_an_interruption_costs_time_and_nothing_else(folder, stack) -> None:
    (voice,) = open_voice(stack, str(folder))
    turns = converse(voice, QUESTIONS[:1])
    assert voice.engine is not None
    prompt, real, calls = turns[0][0], voice.engine.step_layer, []

    def interrupted(number, *rest):
        calls.append(number)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(number, *rest)

    voice.engine.step_layer = interrupted  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        list(voice.answer(prompt, GREEDY, (0,)))
    assert voice.held == []
    assert voice.spoken.reason == "interrupted"
    assert "".join(voice.answer(prompt, GREEDY, (0,))) == turns[0][1]
    pieces = voice.answer(prompt, GREEDY, (0,))
    next(pieces)
    pieces.close()  # who stops listening leaves a row that is whole
    assert voice.held[: len(prompt)] == prompt
    assert "".join(voice.answer(prompt, GREEDY, (0,))) == turns[0][1]
    assert voice.engine.pages.used == len(voice.row.pages)


def test_adapters_share_their_base_and_answer_as_alone(adapters, stack) -> None:
    one, other = open_voice(stack, *adapters)
    assert one.engine is not None
    assert other.engine is not None
    assert one.engine.base is other.engine.base
    first, second = converse(one), converse(other)
    again = converse(one)
    assert first == again != second
    assert [said for _, said in first] == expected(adapters[0], first)
    assert [said for _, said in second] == expected(adapters[1], second)


def test_another_model_joins_and_the_first_is_still_itself(adapters, stack) -> None:
    voices = Voices(Shelf.of(adapters[:1]), stack)
    before = converse(voices.open(adapters[0]))
    assert converse(voices.another(adapters[1])) != before
    assert converse(voices.another(adapters[0])) == before
    assert len(voices.shared) == 1


def test_another_model_is_loaded_when_the_one_before_is_gone(folder, adapters, stack, tmp_path, monkeypatch) -> None:
    other = str(tiny_model_folder(tmp_path, seed=1))
    voices = Voices(Shelf.of([str(folder)]), stack)
    opened, living = Voices.open, list[weakref.ref]()

    def open_alone(self, name: str) -> Voice:
        assert [seen() for seen in living if seen() is not None and name not in self.ready] == []
        voice = opened(self, name)
        living.append(weakref.ref(voice.activate()))
        return voice

    monkeypatch.setattr(Voices, "open", open_alone)
    first = converse(voices.another(str(folder)))
    for name in (other, adapters[0], other, str(folder)):
        again = converse(voices.another(name))
    assert again == first
    assert len(living) == 5


def test_a_model_without_a_template_cannot_talk(stack, tmp_path) -> None:
    name = str(tiny_model_folder(tmp_path, template=None))
    (tmp_path / "model.safetensors").write_bytes(b"")  # nothing is loaded before this is said
    with pytest.raises(ModelError) as caught:
        open_voice(stack, name)
    assert caught.value.diagnostic.code == "E065"
    assert "chat_template.jinja" in str(caught.value)


@pytest.mark.parametrize("harm", ["no template", "damaged weights"])
def test_a_model_that_cannot_join_leaves_nothing_behind(adapters, stack, tmp_path, harm) -> None:
    voices = Voices(Shelf.of(adapters[:1]), stack)
    turns = converse(voices.open(adapters[0]))
    if harm == "no template":
        bad = tiny_model_folder(tmp_path / "plain", template=None)
    else:
        bad = tmp_path / "adapter"
        shutil.copytree(adapters[1], bad)
        (bad / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TunesmithError):
        voices.another(str(bad))
    assert list(voices.shelf.sources) == adapters[:1]
    assert converse(voices.open(adapters[0])) == turns
    (view,) = {voice.activate() for voice in voices.ready.values()}
    assert not view.training


def test_what_two_texts_begin_with_in_common() -> None:
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([], [1]) == 0
