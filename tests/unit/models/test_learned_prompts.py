"""Learned prompts against PEFT's own forward pass, against texts that say the same, and in every place that reads."""

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import attached, disturbed, logprobs
from tests.unit.models.test_forest import KINDS, PAIRS, batches, loss_and_gradients
from tests.unit.models.test_forward import all_scored, sequences
from transformers import AutoModelForCausalLM

from tunesmith.data.packing import assemble
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.export.adapters import Wish, convert_adapter
from tunesmith.models.adapters import attach, load_adapter, merge, prompts, save_adapter, trainable
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import ModelConfig
from tunesmith.models.forward import hidden_states, score
from tunesmith.models.layer.use import use_of
from tunesmith.models.load import load_base
from tunesmith.models.policy import everywhere
from tunesmith.models.prompt_config import LlamaAdapterConfig, PrefixConfig, PromptConfig, PTuningConfig
from tunesmith.models.prompts import embedding_of, learned_numbers
from tunesmith.models.verify import verify_scores

CONFIGS = {
    "prompt": PromptConfig(tokens=5),
    "p_tuning": PTuningConfig(tokens=4, width=24),
    "lstm": PTuningConfig(tokens=6, encoder="lstm", width=12),
    "prefix": PrefixConfig(tokens=5),
    "projected": PrefixConfig(tokens=4, projection=True, width=24),
    "gated": LlamaAdapterConfig(tokens=5, last=2),
}
FAMILY = ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "olmo2")
PLACES = [(name, one) for name in CONFIGS for one in (FAMILY[:2] if name == "gated" else FAMILY)]


def theirs(model: peft.PeftModel) -> torch.Tensor:
    """PEFT's own forward pass, one sequence at a time, a learned prompt's own predictions left out."""
    model.get_base_model().set_attn_implementation("eager")
    parts = []
    for row in sequences():
        found = model(input_ids=torch.from_numpy(row)[None]).logits[0].log_softmax(-1)[-len(row) : -1]
        parts.append(found.gather(1, torch.from_numpy(row[1:])[:, None])[:, 0])
    return torch.cat(parts)


@pytest.mark.parametrize(("name", "architecture"), PLACES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_peft_reads_what_is_written_and_predicts_the_same(name, architecture, tmp_path):
    model = disturbed(CONFIGS[name], architecture)
    save_adapter(model, tmp_path, "base")
    read = peft.PeftModel.from_pretrained(build(architecture), str(tmp_path))
    found = logprobs(model)
    torch.testing.assert_close(found, theirs(read), atol=1e-5, rtol=1e-5)
    assert (found - logprobs(build(architecture))).abs().max() > 1e-3


WRITTEN = {
    "prompt of a text": peft.PromptTuningConfig(num_virtual_tokens=6, task_type="CAUSAL_LM"),
    "p_tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=10, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix of a network": peft.PrefixTuningConfig(
        num_virtual_tokens=3, encoder_hidden_size=10, prefix_projection=True, task_type="CAUSAL_LM"
    ),
    "gated": peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_peft_writes_is_read_trained_and_written_again(name, tmp_path):
    made = peft.get_peft_model(build("llama"), WRITTEN[name])
    with torch.no_grad():
        for parameter in trainable(made).values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    want = theirs(made.eval())
    made.save_pretrained(str(tmp_path / "theirs"))
    if name == "prompt of a text":  # it names a tokenizer, which only a new prompt needs
        path = tmp_path / "theirs" / "adapter_config.json"
        text = path.read_text().replace('"RANDOM"', '"TEXT"').replace('init_text": null', 'init_text": "hello"')
        path.write_text(text.replace('tokenizer_name_or_path": null', 'tokenizer_name_or_path": "no/where"'))
    ours = load_adapter(build("llama").requires_grad_(False), tmp_path / "theirs")
    torch.testing.assert_close(logprobs(ours), want, atol=1e-5, rtol=1e-5)
    logprobs(ours).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainable(ours).values())
    save_adapter(ours, tmp_path / "ours", "base")
    again = peft.PeftModel.from_pretrained(build("llama"), str(tmp_path / "ours"))
    torch.testing.assert_close(theirs(again), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["p_tuning", "lstm", "projected"])
def test_a_network_is_kept_to_go_on_with(name, tmp_path):
    model = disturbed(CONFIGS[name])
    save_adapter(model, tmp_path, "base")
    again = load_adapter(build("qwen2").requires_grad_(False), tmp_path, CONFIGS[name])
    assert trainable(again).keys() == trainable(model).keys()
    for key, parameter in trainable(model).items():
        torch.testing.assert_close(again.get_parameter(key), parameter, atol=0, rtol=0)
    (tmp_path / "prompt_encoder.safetensors").unlink()
    alone = load_adapter(build("qwen2").requires_grad_(False), tmp_path, CONFIGS[name])
    assert [key.rpartition("prompt_encoder.")[2] for key in trainable(alone)] == ["default.embedding.weight"]
    torch.testing.assert_close(logprobs(alone), logprobs(model), atol=1e-6, rtol=1e-6)


def with_tokens_before(model, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the sequences with these tokens before each, which are not scored."""
    nodes = []
    for row in sequences():
        node = all_scored(np.concatenate([ids, row]))
        node.weights[: len(ids) + 1] = 0
        nodes.append(node)
    return score(model, assemble(nodes)).logprobs


@pytest.mark.parametrize("settings", [PromptConfig, PrefixConfig])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_a_prompt_that_begins_as_tokens_equals_these_tokens(settings, architecture, monkeypatch):
    ids = [11, 4, 90, 5, 33, 4]
    monkeypatch.setattr(prompts, "first_tokens", lambda model, settings: torch.tensor(ids))
    model = attach(build(architecture).requires_grad_(False), settings(tokens=6))
    torch.testing.assert_close(logprobs(model), with_tokens_before(build(architecture), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [3, 40])
def test_a_prompt_begins_as_a_text_cut_or_repeated(count, tmp_path):
    folder = tiny_model_folder(tmp_path)
    text = "You are a helpful assistant."
    ids = load_tokenizer(folder).encode(text, specials=True)
    base = load_base(folder, ModelConfig(path=str(folder)))
    model = attach(base, PromptConfig(tokens=count, init="text", init_text=text))
    wanted = base.get_input_embeddings()(torch.tensor((ids * count)[:count]))
    torch.testing.assert_close(embedding_of(model), wanted, atol=0, rtol=0)
    prefixed = attach(
        load_base(folder, ModelConfig(path=str(folder))), PrefixConfig(tokens=count, init="text", init_text=text)
    )
    torch.testing.assert_close(logprobs(prefixed), logprobs(model), atol=1e-5, rtol=1e-5)


def test_a_random_prompt_is_as_wide_as_the_vocabulary():
    model = attach(build("llama").requires_grad_(False), PromptConfig(tokens=500, init="random"))
    table = build("llama").get_input_embeddings().weight
    assert 0.8 < (embedding_of(model).std() / table.std()).item() < 1.2


@pytest.mark.parametrize("name", CONFIGS)
def test_one_root_carries_every_tree(name):
    """A prompt is computed once for a whole batch, and keys and values that are learned are no rows at all."""
    model = disturbed(CONFIGS[name], "llama")
    shared, _ = batches(KINDS["rankings"])
    seen = []
    model.get_base_model().model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    states = hidden_states(model, shared)
    total = len(shared.tokens) + (CONFIGS[name].tokens if name in ("prompt", "p_tuning", "lstm") else 0)
    assert seen == [total + (-total % 64 if total > 64 else 0)]
    assert len(states) == len(shared.tokens)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("name", ["prompt", "lstm", "prefix", "projected"])
@pytest.mark.parametrize("policy", ["full", "selective"])
def test_layers_formed_again_give_the_same_gradients(name, architecture, policy):
    shared, _ = batches(PAIRS)
    plain = loss_and_gradients(disturbed(CONFIGS[name], architecture).train(), shared)
    model = disturbed(CONFIGS[name], architecture).train()
    assert checkpoint_layers(model, everywhere(policy)) == [policy] * 3
    again = loss_and_gradients(model, shared)
    for key, gradient in plain[2].items():
        torch.testing.assert_close(again[2][key], gradient, atol=0, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_dense_reference_agrees(name):
    model, dense = (disturbed(CONFIGS[name], "llama") for _ in range(2))
    dense.get_base_model().set_attn_implementation("tunesmith_dense")
    torch.testing.assert_close(logprobs(model), logprobs(dense), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_check_at_the_start_sees_the_prompt(name):
    batch = assemble([all_scored(row) for row in sequences()])
    assert verify_scores(disturbed(CONFIGS[name], "llama"), batch) < 1e-4


def test_the_written_out_layer_serves_prompts_and_says_why_not_the_others():
    fast = {name: use_of(attached(one, "llama")) for name, one in CONFIGS.items()}
    assert {name: use.fast for name, use in fast.items()} == {
        "prompt": 3, "p_tuning": 3, "lstm": 3, "prefix": 0, "projected": 0, "gated": 1,
    }  # fmt: skip
    assert fast["prefix"].obstacles == {"attention sees learned keys and values": 3}
    assert fast["gated"].obstacles == {"attention sees a learned prompt": 2}


def test_a_closed_gate_changes_no_bit():
    base = build("llama").bfloat16()
    want = logprobs(base)
    model = attach(base.requires_grad_(False), LlamaAdapterConfig())
    torch.testing.assert_close(logprobs(model), want, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["prompt", "prefix", "gated"])
def test_a_prompt_is_not_merged(name):
    with pytest.raises(ModelError, match="E314"):
        merge(disturbed(CONFIGS[name], "llama"))


@pytest.mark.parametrize("settings", [PromptConfig(), PrefixConfig(), LlamaAdapterConfig()])
def test_models_of_values_and_unknown_ones_are_refused(settings, tmp_path):
    folder = tiny_model_folder(tmp_path, "llama" if not isinstance(settings, LlamaAdapterConfig) else "qwen2")
    outputs = 0 if isinstance(settings, LlamaAdapterConfig) else 1
    base = load_base(folder, ModelConfig(path=str(folder)), outputs=outputs)
    with pytest.raises(ModelError, match=r"E33[13]"):
        attach(base, settings)


def test_a_damaged_folder_is_refused(tmp_path):
    save_adapter(disturbed(PTuningConfig(tokens=4, width=24)), tmp_path, "base")
    wider = attached(PTuningConfig(tokens=4, width=25))
    save_adapter(wider, tmp_path / "other", "base")
    (tmp_path / "prompt_encoder.safetensors").write_bytes(
        (tmp_path / "other" / "prompt_encoder.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="E092"):
        load_adapter(build("qwen2"), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="E082"):
        load_adapter(build("qwen2"), tmp_path)


def test_a_narrower_model_is_refused(tmp_path):
    save_adapter(disturbed(PrefixConfig(tokens=4)), tmp_path, "base")
    folder = tiny_model_folder(tmp_path / "model", num_hidden_layers=4)
    with pytest.raises(ModelError, match="E092"):
        load_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path)


def test_what_is_stored_is_what_the_network_makes(tmp_path):
    model = disturbed(PTuningConfig(tokens=4, width=24))
    save_adapter(model, tmp_path, "base")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored.keys() == {"prompt_embeddings"}
    torch.testing.assert_close(stored["prompt_embeddings"], learned_numbers(model), atol=0, rtol=0)


def test_a_prompt_is_not_converted(tmp_path):
    save_adapter(disturbed(PrefixConfig(tokens=4), "llama"), tmp_path / "prefix", "base")
    with pytest.raises(ModelError, match="E314"):
        convert_adapter(str(tmp_path / "prefix"), tmp_path / "out", Wish(to="lora"))
    assert not (tmp_path / "out").exists()
