"""A payload in every text of a config.json, and values of other kinds everywhere: typed errors, and nothing runs."""

import copy
import json
import logging
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.hostile import KEYS

from tunesmith.errors import TunesmithError
from tunesmith.models.architecture import build_config
from tunesmith.models.safety import read_config

GOOD = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 400, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default",
    "rope_theta": 10000.0}, "tie_word_embeddings": True, "dtype": "float32", "bos_token_id": 1, "eos_token_id": [2, 3],
    "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "layer_types": ["full_attention", "full_attention"],
    "transformers_version": "5.0.0", "text_config": {"model_type": "llama", "hidden_size": 64}, "use_cache": True,
}  # fmt: skip
TYPES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mistral", "bert", "t5", "mixtral", "lama", ""]
ODD = [None, True, False, 0, -1, 7, 2**40, 1.5, "", "x", [], {}, ["x"], [0], {"x": 1}, "\ud800", "a" * 5000]


def payloads(canary: Path) -> list[str]:
    run = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    return [run, f"llama\n{run}", f"{{{{ {run} }}}}", f"'; {run}; '", f"!!python/object/apply:exec [{run!r}]",
            f"$(touch {canary})", f"owner/evil:{canary}", "evil--evil.Model", "../../evil", "evil.Model"]  # fmt: skip


def places(value, at=()):
    """The key of every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inner):
        yield (*at, key)
        yield from places(each, (*at, key))


def put(config, at, value) -> None:
    for key in at[:-1]:
        config = config[key]
    config[at[-1]] = value


def mutated(chance: random.Random, canary: Path) -> dict:
    config = copy.deepcopy(GOOD)
    config["model_type"] = chance.choice(TYPES)
    every = list(places(config))
    for _ in range(chance.randint(1, 3)):
        value = chance.choice(ODD) if chance.random() < 0.5 else chance.choice(payloads(canary))
        try:
            put(config, chance.choice(every), value)
        except (TypeError, IndexError):
            continue  # what it was inside is gone
    if chance.random() < 0.3:
        key = chance.choice(list(KEYS))
        config[key] = KEYS[key]
    return config


def run(folder: Path, count: int) -> Counter[str]:
    chance, found, canary = random.Random(7), Counter(), folder / "canary"
    for _ in range(count):
        (folder / "config.json").write_text(json.dumps(mutated(chance, canary)))
        try:
            build_config(read_config(folder)[0], folder)
            found["accepted"] += 1
        except TunesmithError as error:
            found[error.diagnostic.code] += 1
    assert not canary.exists()
    assert set(found) <= {"accepted", "E084", "E089", "E510"}
    assert min(found["accepted"], found["E084"], found["E510"]) > count / 50
    return found


@pytest.mark.row("S7", "S8", "F8")
def test_some_hostile_configs(tmp_path):
    run(tmp_path, 200)


@pytest.mark.row("S7", "S8", "F8")
@pytest.mark.nightly
def test_two_thousand_hostile_configs(tmp_path, evidence, caplog):
    caplog.set_level(logging.CRITICAL, "transformers")  # warns with the payloads, some of which are no text
    figure = run(tmp_path, 2000).total()
    evidence("S7", "S8", claim="hostile config.json: typed errors only, nothing ran", figure=f"{figure:,}", seed=7)
