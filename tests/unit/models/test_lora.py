"""The fast LoRA linear equals PEFT's, and its files are PEFT's files."""

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.models.architectures import build
from tests.unit.models.test_forward import all_scored, gradients, sequences

from tunesmith.data.packing import assemble
from tunesmith.errors import ModelError
from tunesmith.models.adapters import attach, load_adapter, merge, save_adapter, trainable
from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig
from tunesmith.models.forward import base_model, score
from tunesmith.models.lora import FastLoraLinear


def adapted(settings=None, architecture="llama"):
    """A model whose adapters are no longer zero."""
    model = attach(build(architecture), settings or LoraConfig(rank=4, alpha=8))
    torch.manual_seed(1)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def logprobs(model):
    return score(model, assemble([all_scored(row) for row in sequences()])).logprobs


@pytest.mark.parametrize("rslora", [False, True])
def test_fast_linear_equals_pefts_own_forward_and_backward(rslora, monkeypatch):
    model = adapted(LoraConfig(rank=4, alpha=8, rslora=rslora))
    fast = logprobs(model)
    fast.sum().backward()
    ours = gradients(model)
    monkeypatch.setattr(FastLoraLinear, "is_fast", lambda self, adapters: False)
    slow = logprobs(model)
    slow.sum().backward()
    theirs = gradients(model)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)


def test_step_zero_equals_the_base():
    base = logprobs(build("llama"))
    model = attach(build("llama"), LoraConfig(rank=4))
    torch.testing.assert_close(logprobs(model), base, atol=0, rtol=0)


def test_all_means_every_linear_layer_but_the_head():
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(adapted())}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_dropout_touches_only_training():
    model = adapted(LoraConfig(rank=4, dropout=0.5))
    calm = logprobs(model.eval())
    torch.manual_seed(0)
    noisy = logprobs(model.train())
    torch.testing.assert_close(logprobs(model.eval()), calm, atol=0, rtol=0)
    assert (noisy - calm).abs().max() > 1e-4


def test_folder_is_read_by_peft_and_back(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path, "base/model")
    theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path)
    ours = load_adapter(build("llama"), tmp_path)
    want = logprobs(model)
    torch.testing.assert_close(logprobs(theirs), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs(ours), want, atol=0, rtol=0)
    assert trainable(ours).keys() == trainable(model).keys()


def test_folder_written_by_peft_is_read(tmp_path):
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(build("llama"), config)
    theirs.save_pretrained(tmp_path)
    want = logprobs(theirs)
    torch.testing.assert_close(logprobs(load_adapter(build("llama"), tmp_path)), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("targets", [("all",), ("o_proj", "down_proj")])
def test_adapters_of_the_last_layers_are_read_by_peft_and_back(architecture, targets, tmp_path):
    model = adapted(LoraConfig(rank=4, targets=targets, last=1), architecture)
    learned = [name for name in trainable(model) if "lora_" in name]
    assert learned
    assert all(".layers.2." in name for name in learned)
    save_adapter(model, tmp_path, "base")
    theirs = peft.PeftModel.from_pretrained(build(architecture), str(tmp_path))
    assert torch.allclose(logprobs(theirs), logprobs(model), atol=1e-5)
    assert torch.equal(logprobs(load_adapter(build(architecture), tmp_path)), logprobs(model))


def test_missing_and_unknown_tensors_are_named(tmp_path):
    save_adapter(adapted(), tmp_path, "base")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = next(iter(tensors))
    tensors["base_model.model.stranger"] = tensors.pop(gone)
    save_file(tensors, path)
    with pytest.raises(ModelError) as caught:
        load_adapter(build("llama"), tmp_path)
    assert caught.value.diagnostic.code == "E092"
    assert gone in str(caught.value)
    assert "stranger" in str(caught.value)


@pytest.mark.parametrize("save", [(), ("lm_head",)])
def test_merged_equals_adapter(save):
    model = adapted(LoraConfig(rank=4, modules_to_save=save))
    if save:
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                if "modules_to_save" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    want = logprobs(model)
    merged = merge(model)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logprobs(merged), want, atol=1e-5, rtol=1e-5)


def test_merge_refuses_values_that_are_not_finite():
    model = adapted()
    with torch.no_grad():
        next(p for n, p in trainable(model).items() if "lora_A" in n)[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        merge(model)


def test_unknown_target_names_the_nearest():
    with pytest.raises(ModelError, match="q_proj") as caught:
        attach(build("llama"), LoraConfig(targets=("q_prj",)))
    assert caught.value.diagnostic.fixes[0].set == {"model.adapter.targets": ["q_proj"]}


def test_freeze_trains_what_it_names():
    names = set(trainable(attach(build("llama"), FreezeConfig(last=1, names=("lm_head",)))))
    assert {name for name in names if "layers" in name} == {
        name for name, _ in build("llama").named_parameters() if "layers.2." in name
    }
    assert names - {name for name in names if "layers.2." in name} == {"lm_head.weight"}
    with pytest.raises(ModelError, match="nothing to train"):
        attach(build("llama"), FreezeConfig())


def test_full_trains_everything():
    model = build("llama").requires_grad_(False)
    assert len(trainable(attach(model, FullConfig()))) == len(list(model.parameters()))


def test_backward_stops_below_the_lowest_trainable_layer():
    model = attach(build("llama").requires_grad_(False), FreezeConfig(last=1))
    seen = []
    for index, layer in enumerate(base_model(model).model.layers):
        layer.register_full_backward_hook(lambda *_, index=index: seen.append(index))
    logprobs(model).sum().backward()
    assert seen == [2]
