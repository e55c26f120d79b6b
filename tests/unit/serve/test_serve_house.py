"""Models of every kind by name: adapters on one base, reward models, classifiers, encoders, and calls of tools."""

import base64
import json
import shutil
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import torch
from tests.tiny import tiny_model_folder, tiny_tokenizer
from tests.unit.evaluate.test_scoring import reward_model
from tests.unit.export.test_averaging import saved
from tests.unit.serve.conftest import LIVELY
from tests.unit.serve.running import HELLO, eventually, serving
from transformers import AutoModel, BertConfig, BertForMaskedLM

from tunesmith.errors import UsageError
from tunesmith.evaluate.scoring import Scorer
from tunesmith.export import shelf as shelves
from tunesmith.export.opening import open_model
from tunesmith.models.config import LoraConfig
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.rollout.scheduler import BatchScheduler, EngineScheduler
from tunesmith.serve.house import name_models
from tunesmith.types import Message


def greedy(name: str) -> str:
    opened = open_model(name)
    prompt = opened.tokenizer.prompt_ids([Message("user", "Hello")])
    return generate(opened.model, opened.tokenizer, [prompt], Sampling(20))[0].text


@pytest.mark.parametrize(("architecture", "kind"), [("llama", EngineScheduler), ("gemma2", BatchScheduler)])
def test_adapters_of_one_base_answer_by_name_side_by_side(tmp_path, monkeypatch, architecture, kind):
    more = {"sliding_window": 8, "head_dim": 16} if architecture == "gemma2" else {}
    base = tiny_model_folder(tmp_path / "base", architecture, **LIVELY, **more)
    strong = LoraConfig(rank=8, alpha=64)
    named = {name: str(saved(base, tmp_path / name, strong, seed)) for name, seed in (("a", 2), ("b", 5))}
    named["plain"] = str(base)
    wanted = {name: greedy(model) for name, model in named.items()}
    assert len(set(wanted.values())) == 3
    loads = []
    load = shelves.load_base
    monkeypatch.setattr(
        shelves, "load_base", lambda *given, packing: loads.append(given) or load(*given, packing=packing)
    )
    with serving(named) as server:
        assert len(loads) == 1
        assert all(isinstance(each, kind) for each in server.house.schedulers.values())
        made: dict[str, list[str]] = {name: [] for name in named}

        def ask(name: str) -> None:
            for _ in range(3):
                answer = server.client.chat.completions.create(model=name, messages=HELLO, max_tokens=20, temperature=0)
                made[name].append(answer.choices[0].message.content)

        threads = [threading.Thread(target=ask, args=(name,)) for name in named for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert made == {name: [text] * 6 for name, text in wanted.items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tiny_tokenizer(tmp_path_factory.mktemp("serve") / "encoder", None)
    torch.manual_seed(1)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=400, max_position_embeddings=64, **size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, encoder, tiny):
    rewards = reward_model(tmp_path_factory.mktemp("rewards"))
    classes = reward_model(tmp_path_factory.mktemp("classes"), 3, "label")
    with serving({"reward": rewards, "classes": classes, "encoder": encoder, "tiny": tiny}) as running:
        running.rewards = str(rewards)
        yield running


def test_embeddings_are_the_mean_of_the_last_states_at_length_one(mixed, encoder):
    texts = ["Paris", "The quick brown fox jumps over the lazy dog.", "sea"]
    found = mixed.client.embeddings.create(model="encoder", input=texts)
    plain = mixed.client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    model = AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    tokenizer = mixed.house.encoders["encoder"].tokenizer
    for text, each, other in zip(texts, found.data, plain.data, strict=True):
        ids = torch.tensor([[*tokenizer.start_ids, *tokenizer.encode(text, specials=False), *tokenizer.end_ids]])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(each.embedding, (mean / mean.norm()).numpy(), atol=1e-6)
        np.testing.assert_allclose(other.embedding, each.embedding, atol=1e-6)
    raw = httpx.post(
        f"{mixed.address}/v1/embeddings", json={"model": "encoder", "input": "sea", "encoding_format": "base64"}
    ).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), found.data[2].embedding, atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="64"):
        mixed.client.embeddings.create(model="encoder", input="sea " * 100)


def test_the_first_state_is_read_where_the_folder_says_so(encoder, tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    for path in encoder.iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with serving({"encoder": folder}) as running:
        found = running.client.embeddings.create(model="encoder", input="sea")
        ids = running.house.encoders["encoder"].encode("sea")
    with torch.no_grad():
        first = (
            AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()(torch.tensor([ids])).last_hidden_state[0, 0]
        )
    np.testing.assert_allclose(found.data[0].embedding, (first / first.norm()).numpy(), atol=1e-6)


def score(server, model: str, entries: list) -> httpx.Response:
    return httpx.post(f"{server.address}/v1/score", json={"model": model, "input": entries})


def test_rewards_are_those_of_the_scorer(mixed):
    chat = [*HELLO, {"role": "assistant", "content": "Paris."}]
    answer = score(
        mixed, "reward", [{"prompt": "City?", "answer": "Paris."}, {"prompt": HELLO, "answer": "Paris."}, chat]
    )
    told = [row["score"] for row in answer.json()["data"]]
    turns = (Message("user", "Hello"),)
    wanted = Scorer.open(mixed.rewards).score([("City?", "Paris."), (turns, "Paris.")])
    assert told == pytest.approx([*wanted, wanted[1]], abs=1e-5)
    refused = score(mixed, "reward", ["a text alone"])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input.0")


def test_classes_have_chances(mixed):
    answer = score(mixed, "classes", ["A text.", HELLO])
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]
    for row in rows:
        assert row["probabilities"].keys() == {"a", "b", "c"}
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
    assert score(mixed, "classes", ["word " * 900]).json()["error"]["code"] == "E414"
    assert score(mixed, "classes", [{"prompt": "a", "answer": "b"}]).json()["error"]["code"] == "E411"


def test_scores_are_given_while_answers_are_made(mixed):
    long = {"model": "tiny", "messages": HELLO, "max_tokens": 480, "extra_body": {"ignore_eos": True}}
    stream = mixed.client.chat.completions.create(**long, stream=True)
    next(iter(stream))
    assert score(mixed, "reward", [{"prompt": "City?", "answer": "Paris."}]).status_code == 200
    assert mixed.metric("answers_live") == 1
    stream.close()
    eventually(lambda: mixed.pages == 0)


def test_models_are_named_once():
    assert name_models(["a=runs/x", "runs/y=z", "org/name"]) == {
        "a": "runs/x",
        "runs/y=z": "runs/y=z",
        "org/name": "org/name",
    }
    with pytest.raises(UsageError, match="E020"):
        name_models(["a=x", "a=y"])


def test_the_server_ends_with_what_it_was_doing(tiny):
    with serving({"tiny": tiny}) as running:
        stream = running.client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=490, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        began = time.monotonic()
        running.house.worker.close()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert time.monotonic() - began < 5
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            running.client.completions.create(model="tiny", prompt="Hi")
