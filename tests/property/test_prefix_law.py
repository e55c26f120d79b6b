"""For any conversation: the trained tokens are the answers and their stop tokens, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiny import CHATML, tiny_tokenizer, with_template
from tests.unit.data.test_chat import SYSTEM_INSERTING, THINKING

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.template import Template
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import DataError, TunesmithError
from tunesmith.types import Conversation, Message

END = "<|im_end|>"
TRIMMING = CHATML.replace("message['content']", "(message['content'] | trim)")
TEMPLATES = {"chatml": CHATML, "system": SYSTEM_INSERTING, "trim": TRIMMING, "thinking": THINKING}
COMMON = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

WORDS = ["a", "The fox", " ", "\n", "\n\n", "é", "😀", "漢", "<", "|", "<think>", "im_end"]
pieces = st.sampled_from([*WORDS, END, "<|im_start|>", "<|im_start|>system\n"])
texts = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw, content=texts, in_a_row=2):
    messages = [Message("system", draw(content))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(content)))
        for _ in range(draw(st.integers(1, in_a_row))):
            messages.append(Message("assistant", draw(content)))
    return Conversation(tuple(messages), "made.jsonl", 1)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    base = load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))
    return {"base": base, **{name: with_template(base, text) for name, text in TEMPLATES.items()}}


def trained_runs(example) -> list[list[int]]:
    runs: list[list[int]] = []
    inside = False
    for id, weight in zip(example.tokens.tolist(), example.weights.tolist(), strict=True):
        if weight and not inside:
            runs.append([])
        if weight:
            runs[-1].append(id)
        inside = bool(weight) and id != 2
    return runs


@pytest.mark.parametrize("name", TEMPLATES)
@COMMON
@given(data=st.data())
def test_trained_tokens_are_the_answers_and_their_stop_tokens(name, tokenizers, data):
    tokenizer = tokenizers[name]
    chat = data.draw(conversations(in_a_row=1 if name == "thinking" else 2))
    outcome = encode_record(chat, tokenizer, DataConfig())
    answers = [message.content for message in chat.messages if message.role == "assistant"]
    said = [tokenizer.decode(run) for example in outcome.examples for run in trained_runs(example)]
    assert len(said) == len(answers)
    wanted = {"".join((answer + END).split()) for answer in answers}
    for text in said:
        shown = "".join(text.replace("<think>\n\n</think>", "").split())
        assert any(answer.endswith(shown) for answer in wanted)
    if not outcome.notes["straddled"] and name != "thinking":
        assert {"".join(text.split()) for text in said} == wanted


@pytest.mark.parametrize("name", ["chatml", "system", "trim"])
@COMMON
@given(chat=conversations())
def test_control_tokens_are_those_of_the_turns(name, tokenizers, chat):
    tokenizer = tokenizers[name]
    inserted = name == "system" and chat.messages[0].role != "system"
    (example,) = encode_record(chat, tokenizer, DataConfig()).examples
    assert (example.tokens == 1).sum() == len(chat.messages) + inserted
    assert (example.tokens == 2).sum() == len(chat.messages) + inserted
    assert example.weights[0] == 0
    stops = example.weights[example.tokens == 2]
    assert stops.tolist()[int(inserted) :] == [float(message.role == "assistant") for message in chat.messages]


@COMMON
@given(chat=conversations(texts.filter(lambda text: "<|im_" not in text)))
def test_ids_are_those_of_the_whole_text(tokenizers, chat):
    tokenizer = tokenizers["chatml"]
    (example,) = encode_record(chat, tokenizer, DataConfig()).examples
    text = tokenizer.render(chat.messages, add_generation_prompt=False)
    assert example.tokens.tolist() == tokenizer.encode(text, specials=True)


@COMMON
@given(chat=conversations(), limit=st.integers(24, 120), policy=st.sampled_from(["cut_turns", "split"]))
def test_shortened_conversations_fit_and_train_whole_turns(tokenizers, chat, limit, policy):
    tokenizer = tokenizers["chatml"]
    outcome = encode_record(chat, tokenizer, DataConfig(max_length=limit, overlong=policy))
    for example in outcome.examples:
        assert len(example) <= limit
        assert example.tokens[0] == 1
        assert all(run[-1] == 2 for run in trained_runs(example))
        assert (example.tokens == 1).sum() == (example.tokens == 2).sum()


TEMPLATE_FILES = sorted((Path(__file__).parents[3] / "shared/data/tokenizers/templates").glob("*.jinja"))
REAL = Path(__file__).parents[3] / "shared/data/tokenizers/qwen2"


@dataclass(frozen=True)
class Case:
    messages: tuple[Message, ...]

    @property
    def answers(self) -> list[str]:
        return [message.content for message in self.messages if message.role == "assistant"]


SINGLE = (Message("user", "Which colour is the sky?"), Message("assistant", "It is blue."))
CASES = {
    "single": Case(SINGLE),
    "system": Case((Message("system", "Answer briefly."), *SINGLE)),
    "rounds": Case((*SINGLE, Message("user", "And grass?"), Message("assistant", "It is green."))),
}
REFUSED = {("mistralai-Mistral-Nemo-Instruct-2407", "system")}  # it writes the system message only before a last user


@pytest.fixture(scope="module")
def real_tokenizer():
    if not REAL.exists():
        pytest.skip("no real tokenizer beside the repository")
    return load_tokenizer(REAL)


@pytest.mark.skipif(not TEMPLATE_FILES, reason="no chat templates of real models beside the repository")
@pytest.mark.parametrize("path", TEMPLATE_FILES, ids=lambda path: path.stem)
def test_templates_of_real_models_are_proven_or_refused(path, real_tokenizer):
    tokenizer = with_template(real_tokenizer, path.read_text(encoding="utf-8"))
    for name, case in CASES.items():
        chat = Conversation(case.messages, "made.jsonl", 1)
        if (path.stem, name) in REFUSED:
            with pytest.raises(DataError, match="E069"):
                encode_record(chat, tokenizer, DataConfig())
            continue
        outcome = encode_record(chat, tokenizer, DataConfig())
        said = [tokenizer.decode(run) for example in outcome.examples for run in _plain_runs(example)]
        assert len(said) == len(case.answers)
        for text, answer in zip(said, case.answers, strict=True):
            before, found, after = text.partition(answer)
            assert found
            assert all(message.content not in before + after for message in case.messages)
            assert len(before) <= 32  # an empty thought or a channel
            assert len(after) <= 40  # the stop token, one more closing token, line breaks


def _plain_runs(example) -> list[list[int]]:
    runs: list[list[int]] = []
    previous = 0.0
    for id, weight in zip(example.tokens.tolist(), example.weights.tolist(), strict=True):
        if weight and not previous:
            runs.append([])
        if weight:
            runs[-1].append(id)
        previous = weight
    return runs


PARTS = ["{{ m.content }}", "{{ m.role }}", "{{ loop.index }}", "x", "\n", END]


@COMMON
@given(
    middle=st.lists(
        st.sampled_from(["{{ m.content }}", "{{ m.role }}", "{{ loop.index }}", "x", "\n", END]), max_size=6
    ),
    tail=st.sampled_from(["", "{{ messages | length }}", "bye", END]),
    prompt=st.sampled_from(["", "<|im_start|>", "assistant: "]),
)
def test_any_template_is_proven_or_refused_by_a_diagnostic(tokenizers, middle, tail, prompt):
    text = (
        "{% for m in messages %}" + "".join(middle) + "{% endfor %}" + tail
        + "{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )  # fmt: skip
    tokenizer = with_template(tokenizers["base"], text)
    try:
        outcome = encode_record(Conversation(CASES["rounds"].messages, "f", 1), tokenizer, DataConfig())
    except DataError:
        return
    said = [tokenizer.decode(run) for example in outcome.examples for run in _plain_runs(example)]
    joined = "".join(said)
    assert "It is blue." in joined
    assert "It is green." in joined
    assert "grass" not in joined


def test_template_is_bounded_in_the_tokenizer_too(tokenizers):
    with pytest.raises(TunesmithError, match="E060"):
        Template("x" * 300_000, {}, "t.jinja")
