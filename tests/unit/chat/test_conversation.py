"""What is kept of a conversation, what of it is read, and how it is drawn."""

from contextlib import ExitStack

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.chat.conversation import Conversation
from tunesmith.chat.settings import ChatSettings
from tunesmith.chat.voice import Voices
from tunesmith.errors import ModelError, UsageError
from tunesmith.export.shelf import Shelf
from tunesmith.rollout.choosing import Sampling
from tunesmith.rollout.config import SamplingConfig
from tunesmith.serve.wire import CompletionAsked

SHORT = ChatSettings(max_new_tokens=8)


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    folder = tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=128)
    with ExitStack() as stack:
        yield Voices(Shelf.of([str(folder)]), stack).open(str(folder))


def said(talk: Conversation, voice, text: str, answer: str = "Yes.") -> None:
    turn, _ = talk.ask(text, [voice])
    talk.keep(turn, answer)


def test_turns_are_kept_taken_back_and_forgotten(voice) -> None:
    talk = Conversation(SHORT, "Be short.")
    said(talk, voice, "Hello")
    said(talk, voice, "And now?", "Now.")
    assert [message.role for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert talk.undo() == "And now?"
    assert talk.messages[-1].content == "Yes."
    talk.set_system("Be long.")
    assert (talk.system, len(talk.turns)) == ("Be long.", 2)
    talk.clear()
    assert (talk.system, talk.turns, talk.undo()) == ("Be long.", (), None)
    talk.set_system(None)
    assert talk.messages == ()


def test_what_is_asked_anew_is_drawn_anew(voice) -> None:
    talk = Conversation(SHORT)
    names = []
    for _ in range(3):
        turn, _ = talk.ask("Hello", [voice])
        names.append(turn.name)
        talk.keep(turn, "Yes.")
        talk.undo()
    assert names == [(1, 1), (1, 2), (1, 3)]
    talk.clear()
    assert talk.ask("Hello", [voice])[0].name == (1, 1)


def test_the_oldest_turns_are_left_out_of_what_is_read_and_that_is_said(voice) -> None:
    talk = Conversation(SHORT, "Be short.")
    told = []
    for at in range(8):
        turn, warnings = talk.ask(f"What is the capital of France {at}?", [voice])
        told += [(at, one.code) for one in warnings]
        assert turn.seen[0].content == "Be short."
        assert turn.seen[1].role == "user"
        assert len(voice.tokenizer.prompt_ids(turn.seen)) + 8 <= voice.context
        talk.keep(turn, "The capital of France is Paris.")
    assert told
    assert all(code == "W460" for _, code in told)
    assert told[0][0] > 1
    assert len(talk.messages) == 17  # all of it is still there to be saved
    assert len(turn.seen) < len(turn.asked)
    before = talk.left_out
    talk.undo()
    assert (before > 0, talk.left_out) == (True, 0)


def test_a_message_that_cannot_fit_is_refused_and_forgotten(voice) -> None:
    talk = Conversation(SHORT)
    with pytest.raises(ModelError) as caught:
        talk.ask("12 " * 200, [voice])
    assert caught.value.diagnostic.code == "E150"
    assert "128" in str(caught.value)
    assert talk.messages == ()
    said(talk, voice, "Hello")
    with pytest.raises(ModelError):
        talk.ask("12 " * 200, [voice])
    assert len(talk.ask("Hello", [voice])[0].seen) == 3


def test_every_setting_of_sampling_can_be_changed() -> None:
    settings = ChatSettings()
    assert settings.sampling() == Sampling(512, 0.7, 0.95)
    changes = ("temperature=0", "top-k=5", " min_p = 0.1", "bias={12: -5}", "repetition=1.2", "seed=7")
    for change in changes:
        settings = settings.changed(change)
    sampling = settings.sampling()
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0, 5, 0.1, 7)
    assert (sampling.bias, sampling.repetition) == (((12, -5.0),), 1.2)
    assert {name for name, _, _ in settings.listed()} == set(Sampling.__dataclass_fields__) - {"until"}


def test_a_temperature_that_is_too_small_to_draw_with_is_0_everywhere() -> None:
    for given, wanted in ((1e-300, 0), (9e-5, 0), (1e-4, 1e-4), (0.5, 0.5)):
        assert ChatSettings().changed(f"temperature={given}").temperature == wanted
        assert SamplingConfig(temperature=given).temperature == wanted
        assert CompletionAsked(model="m", prompt="x", temperature=given).temperature == wanted


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("temprature=1", "E481", "did you mean temperature?"),
        ("presence_penalty=1", "E481", "did you mean presence?"),
        ("temprature=0.2", "E481", "/set temperature=0.2, or --set temperature=0.2"),
        ("temperature", "E481", "temperature=VALUE"),
        ("temperature", "E481", "/set temperature=0.7"),
        ("products=int8", "E481", "/set alone lists every setting"),
        ("", "E481", "/set alone lists every setting"),
        ("temperature=11", "E482", "less than or equal to 10"),
        ("temperature=warm", "E482", "valid number"),
        ("bias=[", "E482", "bias cannot be"),
        ("top_p=0", "E482", "top_p=0.95 is what it begins as"),
        ("top_p=1e-300", "E482", "greater than or equal to"),
        ("repetition=1e-300", "E482", "greater than or equal to 0.01"),
    ],
)
def test_wrong_settings_are_told(change: str, code: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ChatSettings().changed(change)
    assert caught.value.diagnostic.code == code
    assert words in str(caught.value)
