"""For any chat and template: an answer after the shared prompt is the conversation as rendered alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.property.test_prefix_law import COMMON, END, REAL, TEMPLATE_FILES, TEMPLATES, texts
from tests.tiny import tiny_tokenizer, with_template
from tests.unit.data.test_chat import TOOLS

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.packing import batch_of
from tunesmith.data.template import Ask
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import DataError
from tunesmith.types import Example, Feedback, Message, Pair, Ranking, Task

ALL = {**TEMPLATES, "tools": TOOLS}


@st.composite
def prompts(draw, content=texts):
    messages = [Message("system", draw(content))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [Message("user", draw(content)), Message("assistant", draw(content))]
    return (*messages, Message("user", draw(content)))


@st.composite
def answers(draw, content=texts, turns=2):
    said = [Message("assistant", draw(content))]
    for _ in range(draw(st.integers(0, turns - 1))):
        said += [Message(draw(st.sampled_from(["user", "tool"])), draw(content)), Message("assistant", draw(content))]
    return tuple(said)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    base = load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))
    return {name: with_template(base, text) for name, text in ALL.items()}


def sequences(example: Example) -> list[np.ndarray]:
    """Each answer after the prompt, or after the steps before it."""
    ends = (*example.cuts[1:], len(example))
    prompt = example.tokens[: example.cuts[0]]
    spans = zip(example.cuts, ends, strict=True)
    if example.chained:
        return [example.tokens[:end] for _, end in spans]
    return [np.concatenate([prompt, example.tokens[start:end]]) for start, end in spans]


def alone(tokenizer: Tokenizer, prompt, answer) -> list[int]:
    """The ids of the whole conversation, rendered by itself."""
    shielded = tokenizer.shield((*prompt, *answer))
    (text,) = tokenizer.render_prefixes(shielded, [Ask(len(prompt) + len(answer), False)])
    return tokenizer.encode_rendered(text).ids


def check(entry, given_answers, tokenizer, task: Task) -> Example:
    (example,) = encode_record(entry, tokenizer, DataConfig(), task).examples
    for found, answer in zip(sequences(example), given_answers, strict=True):
        assert found.tolist() == alone(tokenizer, entry.prompt, answer)
    assert not example.weights[: example.cuts[0]].any()
    assert all(example.weights[start:end].any() for start, end in spans(example))
    return example


def spans(example: Example) -> list[tuple[int, int]]:
    return list(zip(example.cuts, (*example.cuts[1:], len(example)), strict=True))


@pytest.mark.parametrize("name", ALL)
@COMMON
@given(data=st.data())
def test_answers_after_the_shared_prompt_are_the_whole_conversation(name, tokenizers, data):
    tokenizer = tokenizers[name]
    turns = 1 if name == "thinking" else 2
    prompt = data.draw(prompts())
    several = tuple(data.draw(answers(turns=turns)) for _ in range(data.draw(st.integers(1, 4))))
    reads = data.draw(st.sampled_from(["logprobs", "values"]))
    if len(several) == 1:
        check(Feedback(prompt, several[0], True, "f", 1), several, tokenizer, Task("feedback", reads))
        return
    if len(several) == 2:
        example = check(Pair(prompt, *several, "f", 1), several, tokenizer, Task("pair", reads))
    else:
        example = check(Ranking(prompt, several, "f", 1), several, tokenizer, Task("ranking", reads))
    first = [int(np.flatnonzero(example.weights[start:end])[0]) for start, end in spans(example)]
    if reads == "logprobs":  # no shared token is left that no answer trains
        heads = {tuple(example.tokens[start : start + min(first) + 1].tolist()) for start, _ in spans(example)}
        assert min(first) == 0 or len(heads) > 1
    if reads == "values":
        assert [start + at for (start, _), at in zip(spans(example), first, strict=True)] == [
            end - 1 for _, end in spans(example)
        ]


@COMMON
@given(data=st.data())
def test_what_is_trained_of_a_pair_is_what_is_trained_of_each_answer_alone(tokenizers, data):
    tokenizer = tokenizers["chatml"]
    prompt, chosen, rejected = data.draw(prompts()), data.draw(answers()), data.draw(answers())
    (both,) = encode_record(Pair(prompt, chosen, rejected, "f", 1), tokenizer, DataConfig(), Task("pair")).examples
    batch = batch_of([both])
    for index, answer in enumerate((chosen, rejected)):
        feedback = Feedback(prompt, answer, True, "f", 1)
        (single,) = encode_record(feedback, tokenizer, DataConfig(), Task("feedback")).examples
        own = batch_of([single])
        mine = batch.sequence == index
        assert batch.target[mine].tolist() == own.target.tolist()
        assert batch.positions[batch.query[mine]].tolist() == own.positions[own.query].tolist()


@COMMON
@given(data=st.data(), limit=st.integers(24, 120))
def test_shortened_pairs_fit_and_keep_whole_answers(tokenizers, data, limit):
    tokenizer = tokenizers["chatml"]
    prompt, chosen, rejected = data.draw(prompts()), data.draw(answers(turns=1)), data.draw(answers(turns=1))
    settings = DataConfig(max_length=limit, overlong="cut_turns")
    outcome = encode_record(Pair(prompt, chosen, rejected, "f", 1), tokenizer, settings, Task("pair"))
    assert len(outcome.examples) == (outcome.dropped is None)
    for example in outcome.examples:
        for tokens, answer in zip(sequences(example), (chosen, rejected), strict=True):
            assert len(tokens) <= limit
            kept = [tail for tail in range(len(prompt)) if alone(tokenizer, prompt[tail:], answer) == tokens.tolist()]
            system = prompt[:1] if prompt[0].role == "system" else ()
            kept += [
                tail for tail in range(len(prompt))
                if system and alone(tokenizer, (*system, *prompt[tail:]), answer) == tokens.tolist()
            ]  # fmt: skip
            assert kept


ASKED = (Message("user", "Which colour is the sky?"),)
EARLIER = (Message("user", "Hello"), Message("assistant", "Hi there."))
ANSWERS = ((Message("assistant", "It is blue."),), (Message("assistant", "No idea"),))


@pytest.fixture(scope="module")
def real_tokenizer():
    if not REAL.exists():
        pytest.skip("no real tokenizer beside the repository")
    return load_tokenizer(REAL)


@pytest.mark.skipif(not TEMPLATE_FILES, reason="no chat templates of real models beside the repository")
@pytest.mark.parametrize("path", TEMPLATE_FILES, ids=lambda path: path.stem)
def test_templates_of_real_models_share_their_prompt(path: Path, real_tokenizer):
    tokenizer = with_template(real_tokenizer, path.read_text(encoding="utf-8"))
    for prompt in (ASKED, (*EARLIER, *ASKED)):
        example = check(Pair(prompt, *ANSWERS, "f", 1), ANSWERS, tokenizer, Task("pair"))
        shown = tokenizer.decode(example.tokens[: example.cuts[0]])
        assert "Which colour is the sky?" in shown
        assert "It is" not in shown
        assert END not in tokenizer.decode(example.tokens[example.cuts[0] : example.cuts[0] + 1])


def test_texts_are_refused_never_misread(tokenizers):
    with pytest.raises(DataError, match="E219"):
        check(
            Pair(ASKED, (*ANSWERS[0], *ANSWERS[1]), ANSWERS[1], "f", 1),
            ((*ANSWERS[0], *ANSWERS[1]), ANSWERS[1]),
            tokenizers["thinking"],
            Task("pair"),
        )
