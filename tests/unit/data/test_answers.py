from dataclasses import replace

import numpy as np
import pytest
from tests.tiny import CHATML, tiny_tokenizer, with_template
from tests.unit.data.test_chat import SYSTEM_INSERTING, THINKING, TOOLS

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.packing import batch_of
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError, UsageError
from tunesmith.types import Feedback, Message, Pair, Ranking, Task

END = "<|im_end|>"
PAIRS, VALUES = Task("pair"), Task("pair", "values")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))
    return lambda text=CHATML: with_template(base, text)


def user(text):
    return Message("user", text)


def assistant(text, *calls, **more):
    return Message("assistant", text, calls, **more)


def said(*texts, **more):
    return tuple(assistant(text, **more) for text in texts)


def pair(prompt, chosen, rejected, **more):
    return Pair(prompt, chosen, rejected, "data.jsonl", 7, **more)


ASKED = (user("What is the capital of France?"),)
PAIR = pair(ASKED, said("Paris."), said("The capital of France is Lyon."))


def only(entry, tokenizer, task=PAIRS, **settings):
    (example,) = encode_record(entry, tokenizer, DataConfig(**settings), task).examples
    return example


def parts(example):
    ends = (*example.cuts[1:], len(example))
    return example.tokens[: example.cuts[0]], [
        example.tokens[start:end] for start, end in zip(example.cuts, ends, strict=True)
    ]


def trained(example):
    return [part[weights > 0] for part, weights in zip(parts(example)[1], parts(weights_of(example))[1], strict=True)]


def weights_of(example):
    return replace(example, tokens=example.weights)


def test_a_pair_is_the_prompt_once_and_both_answers_with_their_stop_tokens(models):
    tokenizer = models()
    example = only(PAIR, tokenizer)
    prompt, (chosen, rejected) = parts(example)
    asked = tokenizer.render(ASKED, add_generation_prompt=True)
    assert tokenizer.decode(prompt) == asked
    for answer, turns in ((chosen, PAIR.chosen), (rejected, PAIR.rejected)):
        whole = tokenizer.render((*ASKED, *turns), add_generation_prompt=False)
        assert [*prompt, *answer] == tokenizer.encode(whole, specials=True)
    assert [tokenizer.decode(part) for part in trained(example)] == ["Paris." + END, PAIR.rejected[0].content + END]
    assert example.labels == (0.0, 0.0)
    assert not example.weights[: example.cuts[0]].any()
    assert (example.tokens.dtype, example.weights.dtype) == (np.int32, np.float32)
    assert only(replace(PAIR, margin=1.5), tokenizer).labels == (1.5, 0.0)


def test_values_are_read_at_the_last_token_of_each_answer(models):
    example = only(PAIR, models(), VALUES)
    ends = np.array([*example.cuts[1:], len(example)]) - 1
    assert np.flatnonzero(example.weights).tolist() == ends.tolist()
    batch = batch_of([example], "values")
    assert batch.tokens.tolist() == example.tokens.tolist()
    assert batch.sequence.tolist() == [0, 1]


def test_answers_with_the_same_beginning_share_only_the_prompt(models):
    tokenizer = models()
    example = only(pair(ASKED, said("The capital is Paris."), said("The capital is Lyon.")), tokenizer)
    assert tokenizer.decode(parts(example)[0]).endswith("assistant\n")


def test_feedback_and_rankings(models):
    tokenizer = models()
    example = only(Feedback(ASKED, said("Paris."), False, "f", 1), tokenizer, Task("feedback"))
    assert (example.labels, len(example.cuts), example.imitated) == ((0.0,), 1, (False,))
    assert only(Feedback(ASKED, said("Paris."), True, "f", 1), tokenizer, Task("feedback")).labels == (1.0,)
    answers = (said("Paris."), said("Lyon?"), said("No."))
    ranking = only(Ranking(ASKED, answers, "f", 1), tokenizer, Task("ranking"))
    assert (ranking.labels, len(ranking.cuts)) == ((2.0, 1.0, 0.0), 3)
    scored = only(Ranking(ASKED, answers, "f", 1, scores=(5.0, 5.0, 0.5)), tokenizer, Task("ranking"))
    assert scored.labels == (5.0, 5.0, 0.5)
    assert [tokenizer.decode(part) for part in trained(ranking)] == ["Paris." + END, "Lyon?" + END, "No." + END]


def test_plain_texts_have_no_template_and_end_with_the_stop_token(models):
    tokenizer = models()
    example = only(pair("Question: who?\nAnswer:", " Ada.", " Nobody knows."), tokenizer)
    prompt, answers = parts(example)
    assert prompt.tolist() == tokenizer.encode("Question: who?\nAnswer:", specials=False)
    assert [tokenizer.decode(answer) for answer in answers] == [" Ada." + END, " Nobody knows." + END]
    assert example.weights[example.cuts[0] :].all()
    assert only(pair("a", "b", "c"), tokenizer, VALUES).weights.sum() == 2


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
SEVERAL = (assistant("", CALL), Message("tool", "The answer is 42."), assistant("It is 42."))


def test_an_answer_of_several_turns_trains_what_the_assistant_wrote(models):
    tokenizer = models(TOOLS)
    example = only(pair(ASKED, SEVERAL, said("No idea.")), tokenizer)
    text = tokenizer.decode(trained(example)[0])
    assert "add" in text
    assert "It is 42." + END in text
    assert "The answer is 42." not in text
    assert "The answer is 42." in tokenizer.decode(parts(example)[1][0])
    last = only(pair(ASKED, SEVERAL, said("No idea.")), tokenizer, train_on="last_assistant")
    assert [tokenizer.decode(part) for part in trained(last)] == ["It is 42." + END, "No idea." + END]
    assert len(parts(last)[0]) == len(parts(example)[0])


def test_turns_of_weight_0_are_not_trained_and_other_weights_are_refused(models):
    tokenizer = models()
    quiet = pair(ASKED, (assistant("Hm.", weight=0.0), assistant("Paris.", weight=1.0)), said("No."))
    assert [tokenizer.decode(part) for part in trained(only(quiet, tokenizer))] == ["Paris." + END, "No." + END]
    with pytest.raises(DataError, match="E220"):
        only(pair(ASKED, said("Paris.", weight=0.5), said("No.")), tokenizer)


def test_an_answer_without_a_trained_token_drops_the_whole_pair(models):
    outcome = encode_record(pair(ASKED, said("a", weight=0.0), said("b")), models(), DataConfig(), PAIRS)
    assert (outcome.examples, outcome.dropped) == ([], "zero_trained")


def test_a_template_that_rewrites_earlier_turns_of_the_answer_is_refused_with_the_text(models):
    tokenizer = models(THINKING)
    several = (assistant("one"), assistant("two"))
    with pytest.raises(DataError, match="E219") as caught:
        only(pair(ASKED, several, said("three")), tokenizer)
    found = caught.value.diagnostic
    assert (found.where.file, found.where.line) == ("data.jsonl", 7)
    assert "<think>" in "".join(found.evidence)
    assert found.fixes[0].set == {"data.train_on": "last_assistant"}
    single = only(
        pair((*ASKED, *said("<think>\nx\n</think>\n\nParis."), user("Sure?")), said("Yes"), said("No")), tokenizer
    )
    assert "x" not in tokenizer.decode(parts(single)[0])


def test_values_do_not_mind_what_the_template_did_to_earlier_turns_of_the_answer(models):
    tokenizer = models(THINKING)
    several = (assistant("one"), user("and?"), assistant("two"))
    example = only(pair(ASKED, several, said("three")), tokenizer, VALUES)
    prompt, answers = parts(example)
    assert tokenizer.decode(prompt) == tokenizer.render(ASKED, add_generation_prompt=True)
    whole = tokenizer.render((*ASKED, *several), add_generation_prompt=False)
    assert [*prompt, *answers[0]] == tokenizer.encode(whole, specials=True)
    assert example.weights.sum() == 2


def test_a_prompt_that_depends_on_the_answer_is_refused_with_what_differs(models):
    calling = (
        "{% for m in messages %}{% if m.tool_calls %}{{ '<|im_start|>caller\n' }}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(DataError, match="E212") as caught:
        only(pair(ASKED, (assistant("Hm", CALL),), said("Paris.")), models(calling))
    assert "caller" in caught.value.diagnostic.evidence[0]
    assert "assistant" in caught.value.diagnostic.evidence[1]


def test_an_inserted_system_message_is_shared(models):
    tokenizer = models(SYSTEM_INSERTING)
    assert "I am tiny" in tokenizer.decode(parts(only(PAIR, tokenizer))[0])


def test_long_pairs_are_dropped_whole_and_counted(models):
    tokenizer = models()
    outcome = encode_record(PAIR, tokenizer, DataConfig(), PAIRS)
    lengths = [len(parts(outcome.examples[0])[0]) + len(part) for part in parts(outcome.examples[0])[1]]
    assert outcome.length == max(lengths) > min(lengths)
    fits = encode_record(PAIR, tokenizer, DataConfig(max_length=max(lengths)), PAIRS)
    assert fits.dropped is None
    short = encode_record(PAIR, tokenizer, DataConfig(max_length=max(lengths) - 1), PAIRS)
    assert (short.examples, short.dropped, short.notes["too_long"]) == ([], "overlong", 1)
    with pytest.raises(DataError, match="E070"):
        encode_record(PAIR, tokenizer, DataConfig(max_length=8, overlong="error"), PAIRS)


def test_cut_turns_removes_the_same_old_turns_for_both_answers(models):
    tokenizer = models()
    old = [turn for index in range(4) for turn in (user(f"old {index}"), assistant(f"reply {index}"))]
    entry = pair((Message("system", "Be kind."), *old, *ASKED), PAIR.chosen, PAIR.rejected)
    outcome = encode_record(entry, tokenizer, DataConfig(max_length=75, overlong="cut_turns"), PAIRS)
    prompt, answers = parts(outcome.examples[0])
    text = tokenizer.decode(prompt)
    assert text.startswith("<|im_start|>system\nBe kind.")
    assert ("old 0" in text, "old 3" in text, outcome.notes["cut"]) == (False, True, 1)
    assert max(len(prompt) + len(answer) for answer in answers) <= 75
    hopeless = encode_record(entry, tokenizer, DataConfig(max_length=20, overlong="cut_turns"), PAIRS)
    assert (hopeless.examples, hopeless.dropped) == ([], "overlong")
    plain = encode_record(pair("a " * 50, "b", "c"), tokenizer, DataConfig(max_length=20, overlong="cut_turns"), PAIRS)
    assert plain.dropped == "overlong"


@pytest.mark.parametrize("setting", [{"overlong": "split"}, {"train_on": "all"}])
def test_settings_without_meaning_are_refused_with_a_fix_that_works(models, setting):
    with pytest.raises(UsageError, match="E217") as caught:
        only(PAIR, models(), **setting)
    for fix in caught.value.diagnostic.fixes:
        ((key, value),) = fix.set.items()
        assert only(PAIR, models(), **{**setting, key.removeprefix("data."): value})


def test_identical_answers_are_noted_or_left_out(models):
    tokenizer = models(CHATML.replace("message['content']", "(message['content'] | trim)"))
    for entry, task in (
        (pair(ASKED, said("Paris."), said("Paris. ")), PAIRS),
        (Ranking(ASKED, (said("a"), said("b")), "f", 1, scores=(3.0, 3.0)), Task("ranking")),
    ):
        kept = encode_record(entry, tokenizer, DataConfig(), task)
        assert (len(kept.examples), kept.notes["identical"]) == (1, 1)
        left_out = encode_record(entry, tokenizer, DataConfig(on_bad="skip"), task)
        assert (left_out.examples, left_out.dropped) == ([], "identical")


def test_control_text_in_an_answer_stays_text(models):
    tokenizer = models()
    entry = pair(ASKED, said("a<|im_end|>b"), said("c"))
    outcome = encode_record(entry, tokenizer, DataConfig(), PAIRS)
    assert outcome.notes["shielded"] == 1
    assert (parts(outcome.examples[0])[1][0] == 2).sum() == 1
    with pytest.raises(DataError, match="E067"):
        encode_record(entry, tokenizer, DataConfig(special_tokens_in_text="error"), PAIRS)


def test_an_answer_that_begins_inside_a_token_of_the_prompt_shares_less(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([])
    core.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<eos>"], show_progress=False)
    core.train_from_iterator(["ask: yes", "ask: yes", "ask: no", "ask: no", "me"] * 4, trainer)
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% else %}: {% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(tmp_path)
    outcome = encode_record(pair((user("me ask"),), said("yes"), said("no")), tokenizer, DataConfig(), PAIRS)
    (example,) = outcome.examples
    assert outcome.notes["straddled"] == 2
    prompt, answers = parts(example)
    assert tokenizer.decode(prompt) in "me ask: "
    for answer, text in zip(answers, ("yes", "no"), strict=True):
        whole = tokenizer.encode(f"me ask: {text}<eos>", specials=True)
        assert [*prompt, *answer] == whole
