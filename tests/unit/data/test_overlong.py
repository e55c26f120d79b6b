import numpy as np
import pytest
from tests.tiny import tiny_tokenizer, with_template
from tests.unit.data.test_chat import END, THINKING, assistant, conversation, spans, user

from tunesmith.data.chat import encode, encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.overlong import split_ids
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.types import Completion, Document, Message


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))


ROUNDS = [message for index in range(6) for message in (user(f"question {index}"), assistant(f"answer {index}"))]
LONG = conversation(Message("system", "Be kind."), *ROUNDS)


def test_d25_drop_counts_and_keeps_nothing(tokenizer):
    outcome = encode_record(LONG, tokenizer, DataConfig(max_length=60))
    assert outcome.examples == []
    assert outcome.dropped == "overlong"
    assert outcome.length > 60
    assert encode_record(LONG, tokenizer, DataConfig(max_length=outcome.length)).dropped is None


def test_d25_error_names_the_record_and_the_length(tokenizer):
    with pytest.raises(DataError, match="E070") as caught:
        encode(LONG, tokenizer, DataConfig(max_length=60, overlong="error"))
    assert caught.value.diagnostic.where.line == 7
    needed = caught.value.diagnostic.fixes[0].set["data.max_length"]
    assert encode(LONG, tokenizer, DataConfig(max_length=needed, overlong="error"))


@pytest.mark.parametrize("limit", [52, 60, 90, 130])
def test_cut_turns_keeps_the_system_message_and_as_many_late_turns_as_fit(tokenizer, limit):
    outcome = encode_record(LONG, tokenizer, DataConfig(max_length=limit, overlong="cut_turns"))
    text = tokenizer.decode(outcome.examples[0].tokens)
    kept = [index for index in range(6) if f"question {index}" in text]
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nquestion")
    assert kept == list(range(kept[0], 6))
    assert spans(outcome.examples[0], tokenizer) == [f"answer {index}{END}" for index in kept]
    assert len(outcome.examples[0]) <= limit
    fuller = conversation(LONG.messages[0], *ROUNDS[2 * (kept[0] - 1) :])
    assert encode_record(fuller, tokenizer, DataConfig()).length > limit
    assert outcome.notes["turns_lost"] == kept[0]
    assert outcome.notes["cut"] == 1


def test_cut_turns_drops_what_cannot_be_cut(tokenizer):
    outcome = encode_record(
        conversation(user("word " * 80), assistant("yes")), tokenizer, DataConfig(max_length=40, overlong="cut_turns")
    )
    assert outcome.dropped == "overlong"


def test_cut_turns_never_keeps_only_untrained_turns(tokenizer):
    chat = conversation(*ROUNDS[:4], user("and?"), assistant("nothing", weight=0.0))
    outcome = encode_record(chat, tokenizer, DataConfig(max_length=30, overlong="cut_turns"))
    assert outcome.examples == []


def test_split_trains_every_answer_once_after_the_system_message(tokenizer):
    outcome = encode_record(LONG, tokenizer, DataConfig(max_length=80, overlong="split"))
    assert len(outcome.examples) > 1
    said = []
    for example in outcome.examples:
        assert len(example) <= 80
        assert tokenizer.decode(example.tokens).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
        said += spans(example, tokenizer)
    assert said == [f"answer {index}{END}" for index in range(6)]
    assert outcome.notes["split"] == 1
    assert not outcome.notes["turns_lost"]


def test_split_loses_only_the_exchange_that_is_too_long_and_says_so(tokenizer):
    chat = conversation(*ROUNDS[:2], user("word " * 80), assistant("lost"), *ROUNDS[2:4])
    outcome = encode_record(chat, tokenizer, DataConfig(max_length=60, overlong="split"))
    said = [text for example in outcome.examples for text in spans(example, tokenizer)]
    assert said == ["answer 0" + END, "answer 1" + END]
    assert outcome.notes["turns_lost"] == 1


def test_policies_hold_when_every_token_is_trained(tokenizer):
    for policy in ("cut_turns", "split"):
        examples = encode(LONG, tokenizer, DataConfig(max_length=80, overlong=policy, train_on="all"))
        assert examples
        for example in examples:
            assert len(example) <= 80
            assert (example.weights[1:] == 1).all()


def test_policies_hold_for_a_template_that_rewrites_answers(tokenizer):
    thinking = with_template(tokenizer, THINKING)
    for policy in ("cut_turns", "split"):
        outcome = encode_record(LONG, thinking, DataConfig(max_length=110, overlong=policy))
        said = [text for example in outcome.examples for text in spans(example, thinking)]
        assert said == [f"<think>\n\n</think>\n\nanswer {index}{END}" for index in range(6)]


def test_a_long_document_is_split_without_losing_a_token(tokenizer):
    text = "The quick brown fox jumps over the lazy dog. " * 20
    whole = encode(Document(text, "f", 1), tokenizer, DataConfig())[0]
    parts = encode(Document(text, "f", 1), tokenizer, DataConfig(max_length=32, overlong="split"))
    assert all(len(part) <= 32 for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert parts[-1].tokens[-1] == 2
    assert all(part.weights[0] == 0 and (part.weights[1:] == 1).all() for part in parts)
    for policy in ("drop", "cut_turns"):
        assert encode_record(Document(text, "f", 1), tokenizer, DataConfig(max_length=32, overlong=policy)).dropped


def test_a_completion_is_never_cut(tokenizer):
    entry = Completion("word " * 60, "yes", "f", 1)
    for policy in ("drop", "cut_turns", "split"):
        assert encode_record(entry, tokenizer, DataConfig(max_length=32, overlong=policy)).dropped == "overlong"


def test_split_ids_leads_every_piece():
    assert split_ids([5, 6, 7, 8, 9], (1,), 3) == [[1, 5, 6], [1, 7, 8], [1, 9]]
