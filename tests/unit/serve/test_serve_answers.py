"""The openai package against a real server: what it answers is what the model gives."""

import json
import sys

import openai
import pytest
import torch
from tests.unit.serve.running import HELLO, eventually

from tunesmith.export.opening import open_model
from tunesmith.rollout.engine.engine import Engine
from tunesmith.rollout.generator import Sampling, generate


def wanted(folder, sampling: Sampling, count: int = 1) -> list[str]:
    opened = open_model(str(folder))
    prompt = opened.tokenizer.prompt_ids(messages())
    return [each.text for each in generate(opened.model, opened.tokenizer, [prompt] * count, sampling)]


def messages():
    from tunesmith.types import Message

    return [Message("user", "Hello")]


def test_models_are_listed_by_name(server):
    listed = list(server.client.models.list())
    assert [model.id for model in listed] == ["tiny", "gemma"]
    assert server.client.models.retrieve("tiny").context == 512


@pytest.mark.parametrize("name", ["tiny", "gemma"])
def test_a_greedy_chat_is_what_the_generator_answers(server, tiny, gemma, name):
    (text,) = wanted({"tiny": tiny, "gemma": gemma}[name], Sampling(24))
    answer = server.client.chat.completions.create(model=name, messages=HELLO, max_tokens=24, temperature=0)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 24)


@pytest.mark.parametrize("name", ["tiny", "gemma"])
def test_a_stream_has_the_text_of_the_whole_answer(server, name):
    settings = {"model": name, "messages": HELLO, "max_completion_tokens": 40, "seed": 5, "n": 2}
    whole = server.client.chat.completions.create(**settings)
    options = {"include_usage": True}
    chunks = list(server.client.chat.completions.create(**settings, stream=True, stream_options=options))
    for choice in whole.choices:
        own = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert own[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage == whole.usage
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_answers_of_a_seed_are_those_of_the_generator_with_that_seed(server, tiny):
    sampling = Sampling(16, temperature=0.9, top_p=0.8, seed=11, top_k=40, min_p=0.01, presence=0.5, repetition=1.2)
    settings = {"temperature": 0.9, "top_p": 0.8, "seed": 11, "presence_penalty": 0.5}
    more = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}
    made = [
        server.client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=16, n=3, **settings, extra_body=more
        )
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in each.choices] for each in made]
    assert texts[0] == texts[1] == wanted(tiny, sampling, 3)
    free = [server.client.completions.create(model="tiny", prompt="Hi", max_tokens=16) for _ in range(2)]
    assert free[0].choices[0].text != free[1].choices[0].text  # without a seed each has its own


def test_logprobs_are_those_of_the_engine(server, tiny):
    opened = open_model(str(tiny))
    prompt = opened.tokenizer.prompt_ids(messages())
    answer = server.client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0.7, seed=3, logprobs=True, top_logprobs=3
    )
    (made,) = generate(opened.model, opened.tokenizer, [prompt], Sampling(12, temperature=0.7, seed=3))
    engine = Engine(opened.model)
    rows, logits = engine.read([prompt])
    told = answer.choices[0].logprobs.content
    assert len(told) == len(made.tokens) == 12
    for token, each in zip(made.tokens, told, strict=True):
        logprobs = logits[0].float().log_softmax(-1)
        assert each.token == opened.tokenizer.token_text(token)
        assert each.logprob == pytest.approx(float(logprobs[token]), abs=1e-6)
        best = logprobs.topk(3)
        assert [top.logprob for top in each.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert [top.token for top in each.top_logprobs] == [opened.tokenizer.token_text(t) for t in best.indices]
        logits = engine.step(rows, torch.tensor([token]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it_though_tokens_split_it(server, tiny, stream):
    (text,) = wanted(tiny, Sampling(40))
    at = next(n for n in range(4, len(text) - 3) if "\ufffd" not in text[n : n + 3] and text.find(text[n : n + 3]) == n)
    stop = text[at : at + 3]
    settings = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "temperature": 0, "stop": ["never", stop]}
    made = server.client.chat.completions.create(**settings, stream=stream, logprobs=True)
    if stream:
        parts = [chunk.choices[0] for chunk in made]
        said, reason = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
    else:
        said, reason = made.choices[0].message.content, made.choices[0].finish_reason
        assert len(said) >= sum(
            len(bytes(each.bytes).decode()) for each in made.choices[0].logprobs.content if each.bytes
        )
    assert (said, reason) == (text[:at], "stop")


def test_completions_take_texts_ids_and_lists_of_both(server, tiny):
    tokenizer = open_model(str(tiny)).tokenizer
    ids = [[*tokenizer.start_ids, *tokenizer.encode(text, specials=True)] for text in ("The sea", "Paris")]
    settings = {"model": "tiny", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    both = server.client.completions.create(prompt=["The sea", "Paris"], n=2, **settings)
    again = server.client.completions.create(prompt=ids, n=2, **settings)
    assert [each.index for each in both.choices] == [0, 1, 2, 3]
    assert [each.text for each in both.choices] == [each.text for each in again.choices]
    assert both.choices[0].text == both.choices[1].text
    alone = server.client.completions.create(prompt=ids[1], **settings)
    assert alone.choices[0].text == both.choices[2].text
    told = alone.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 6
    assert told.token_logprobs[0] == max(told.top_logprobs[0].values())
    assert told.text_offset[1] == len(told.tokens[0])


def test_the_end_of_a_turn_ends_the_answer_and_is_not_shown(server, tiny):
    biased = {"model": "tiny", "messages": HELLO, "temperature": 0, "logit_bias": {"2": 100}}
    answer = server.client.chat.completions.create(**biased, max_tokens=9)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 1
    on = server.client.chat.completions.create(**biased, max_tokens=9, extra_body={"ignore_eos": True})
    assert (on.usage.completion_tokens, on.choices[0].finish_reason) == (9, "length")


def test_an_answer_without_a_limit_has_the_room_that_the_server_gives(server):
    answer = server.client.chat.completions.create(
        model="tiny", messages=HELLO, seed=1, extra_body={"ignore_eos": True}
    )
    assert answer.usage.total_tokens == 512  # the context, which is less


@pytest.mark.parametrize("name", ["tiny", "gemma"])
def test_a_client_that_leaves_gives_its_place_back(server, name):
    before = server.metric("requests_cancelled_total")
    stream = server.client.chat.completions.create(
        model=name, messages=HELLO, stream=True, max_tokens=490, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    eventually(lambda: server.metric("answers_live") == 0 and server.pages == 0)
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.05).chat.completions.create(
            model=name, messages=HELLO, max_tokens=490, extra_body={"ignore_eos": True}, n=8
        )
    eventually(lambda: server.metric("answers_live") == 0 and server.pages == 0)
    eventually(lambda: server.metric("requests_cancelled_total") == before + 2)
    assert server.client.completions.create(model=name, prompt="Hi", max_tokens=2).usage.completion_tokens == 2


def test_metrics_count_what_was_done(server):
    before = {name: server.metric(name) for name in ("tokens_generated_total", "prompt_tokens_total")}
    server.client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=4, extra_body={"ignore_eos": True})
    assert server.metric("tokens_generated_total") == before["tokens_generated_total"] + 4
    assert server.metric("prompt_tokens_total") == before["prompt_tokens_total"] + 3
    assert server.metric("time_to_first_token_seconds_count") >= 1


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["age", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ["tiny", "gemma"])
def test_an_answer_keeps_its_schema(server, name):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        answer = server.client.chat.completions.create(
            model=name, messages=HELLO, seed=seed, max_tokens=200, response_format=form
        )
        found = json.loads(answer.choices[0].message.content)
        assert found.keys() == {"age", "ok"}
        assert 0 <= found["age"] <= 99
        assert answer.choices[0].finish_reason == "stop"
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError, match="objekt") as caught:
        server.client.chat.completions.create(model=name, messages=HELLO, response_format=wrong)
    assert caught.value.code == "E418"


def test_without_the_library_a_schema_is_refused_with_the_command(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError, match=r"pip install 'tunesmith\[serve\]'"):
        server.client.chat.completions.create(model="tiny", messages=HELLO, response_format={"type": "json_object"})
