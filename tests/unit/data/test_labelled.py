import json

import numpy as np
import pytest
from tests.tiny import CHATML, tiny_tokenizer, with_template

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.labelled import find_classes
from tunesmith.data.steps import joined
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.types import Labelled, Message, Process, Task

CLASSES = Task("label", "values", ("bad", "good"))
NUMBER = Task("label", "values")
STEPS = Task("process", "values")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))


def only(entry, tokenizer, task, **settings):
    (example,) = encode_record(entry, tokenizer, DataConfig(**settings), task).examples
    return example


def test_a_text_is_read_at_its_last_token(tokenizer):
    example = only(Labelled("The fox jumps.", "good", "f", 3), tokenizer, CLASSES)
    assert tokenizer.decode(example.tokens) == "The fox jumps."
    assert np.flatnonzero(example.weights).tolist() == [len(example) - 1]
    assert (example.labels, example.cuts) == ((1.0,), ())
    assert only(Labelled("a", 2.5, "f", 3), tokenizer, NUMBER).labels == (2.5,)
    assert only(Labelled("a", "2.5", "f", 3), tokenizer, NUMBER).labels == (2.5,)


def test_a_chat_is_read_after_its_last_turn(tokenizer):
    turns = (Message("user", "Hello"),)
    example = only(Labelled(turns, "bad", "f", 3), tokenizer, CLASSES)
    assert tokenizer.decode(example.tokens) == tokenizer.render(turns, add_generation_prompt=False)
    assert np.flatnonzero(example.weights).tolist() == [len(example) - 1]
    long = (Message("user", "old " * 30), Message("assistant", "x"), *turns)
    outcome = encode_record(Labelled(long, "bad", "f", 3), tokenizer, DataConfig(max_length=30), CLASSES)
    assert outcome.dropped == "overlong"
    cut = only(Labelled(long, "bad", "f", 3), tokenizer, CLASSES, max_length=30, overlong="cut_turns")
    assert cut.tokens.tolist() == example.tokens.tolist()


def test_a_tokenizer_that_closes_texts_by_itself_is_followed(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["[CLS]", "[SEP]"])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.start_ids, tokenizer.end_ids) == ((0,), (1,))
    assert only(Labelled("a b", 1.0, "f", 1), tokenizer, NUMBER).tokens.tolist() == [0, 3, 4, 1]


@pytest.mark.parametrize(
    ("label", "task", "code", "words"),
    [("fine", CLASSES, "E218", "the class 'fine' is not among"), ("fine", NUMBER, "E213", "label is 'fine'"),
     ("nan", NUMBER, "E213", "label is 'nan'"), (3.0, CLASSES, "E218", "the class '3'")],
)  # fmt: skip
def test_labels_that_do_not_fit_name_the_record(tokenizer, label, task, code, words):
    with pytest.raises(DataError, match=code) as caught:
        encode_record(Labelled("a", label, "f", 3), tokenizer, DataConfig(), task)
    assert words in caught.value.diagnostic.message
    assert caught.value.diagnostic.where.line == 3
    if code == "E213":
        assert caught.value.diagnostic.fixes[0].set == {"objective": "classify"}


def test_classes_are_found_in_the_data(tmp_path):
    path = tmp_path / "a.jsonl"

    def classes(*labels):
        path.write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in labels))
        return find_classes((SourceConfig(path=str(path)),), DataConfig())

    assert classes("b", "a", "b") == ("a", "b")
    assert classes(1, 0, True) == ("0", "1", "true")
    for labels in (["a", "a"], range(10_001)):
        with pytest.raises(DataError, match="E218") as caught:
            classes(*labels)
        assert caught.value.diagnostic.where.file == str(path)


def spans(example):
    ends = (*example.cuts[1:], len(example))
    return [example.tokens[start:end] for start, end in zip((0, *example.cuts), (example.cuts[0], *ends), strict=True)]


def test_steps_are_a_chain_read_at_the_token_that_ends_each(tokenizer):
    entry = Process("Add 12 and 30.\n", ("First 12.", "Then 30.", "It is 42."), (1.0, 1.0, 0.0), "f", 1)
    example = only(entry, tokenizer, STEPS)
    assert example.chained
    assert example.labels == (1.0, 1.0, 0.0)
    prompt, *steps = (tokenizer.decode(span) for span in spans(example))
    assert prompt == "Add 12 and 30.\n"
    assert [step.strip().removesuffix("<|im_end|>") for step in steps] == list(entry.steps)
    read = np.flatnonzero(example.weights)
    texts = [tokenizer.decode(example.tokens[: at + 1]) for at in read]
    assert [text.rstrip()[-3:] for text in texts] == ["12.", "30.", "42."]
    said = only(entry, tokenizer, Task("process", "logprobs"))
    assert said.weights.tolist() == [0.0] * said.cuts[0] + [1.0] * (len(said) - said.cuts[0])
    assert said.imitated == (True, True, True)


def test_steps_of_a_chat_follow_the_template(tokenizer):
    entry = Process((Message("user", "Add 12 and 30."),), ("First 12.", "It is 42."), (1.0, 0.0), "f", 1)
    example = only(entry, tokenizer, STEPS)
    whole = (*entry.prompt, Message("assistant", "First 12.\nIt is 42."))
    assert tokenizer.decode(example.tokens) == tokenizer.render(whole, add_generation_prompt=False)
    assert tokenizer.decode(spans(example)[0]) == tokenizer.render(entry.prompt, add_generation_prompt=True)
    assert [tokenizer.decode(example.tokens[: at + 1])[-3:] for at in np.flatnonzero(example.weights)] == ["12.", "42."]
    short = encode_record(entry, tokenizer, DataConfig(max_length=10), STEPS)
    assert short.dropped == "overlong"


def test_steps_join_by_one_line_break():
    assert joined(["a", "b\n", "c", "\nd"]) == "a\nb\nc\nd"


def test_steps_that_cannot_be_told_apart_are_refused(tmp_path, tokenizer):
    swallowing = CHATML.replace("message['content']", "(message['content'] | replace('b\n', 'b '))")
    entry = Process((Message("user", "x"),), ("a b", "b\n\nc", "d"), (1.0, 0.0, 1.0), "f", 9)
    with pytest.raises(DataError, match="E223") as caught:
        encode_record(entry, with_template(tokenizer, swallowing), DataConfig(), STEPS)
    assert caught.value.diagnostic.where.line == 9
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({"<eos>": 0, "q": 1, "a\nb": 2}, unk_token="q"))
    core.add_special_tokens(["<eos>"])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    with pytest.raises(DataError, match="E223") as caught:
        encode_record(Process("q", ("a", "b"), (1.0, 0.0), "f", 9), load_tokenizer(tmp_path), DataConfig(), STEPS)
    assert caught.value.diagnostic.where.field.startswith("steps[")
