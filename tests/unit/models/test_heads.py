"""Heads: how they begin, what is trained, and that PEFT and transformers read what is written."""

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.models.values import classifier, pairs
from transformers import AutoConfig, AutoModelForSequenceClassification

from tunesmith.data.packing import batch_of
from tunesmith.errors import ModelError
from tunesmith.models.adapters import attach, load_adapter, merge, save_adapter, trainable
from tunesmith.models.config import FreezeConfig, FullConfig, LoraConfig, ModelConfig
from tunesmith.models.forward import base_model, read_only
from tunesmith.models.heads import prepare_config, stored_outputs
from tunesmith.models.load import load_base, load_model
from tunesmith.models.padding import free_pad
from tunesmith.types import Task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.2)


def loaded(folder: Path, outputs: int = 1, **settings):
    return load_model(folder, ModelConfig(path=str(folder), **settings), outputs=outputs)


def values(model) -> torch.Tensor:
    return read_only(model, batch_of(pairs(), "values"), "values").values


def moved(model):
    """The model with its trainable tensors changed, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_tasks_say_how_many_values_they_read() -> None:
    assert Task("pair", "logprobs").outputs == 0
    assert Task("pair", "values").outputs == Task("label", "values").outputs == 1
    assert Task("label", "values", ("no", "yes", "maybe")).outputs == 3


def test_a_new_head_is_the_same_in_every_run_and_of_the_published_size(folder: Path) -> None:
    torch.manual_seed(1)
    one = load_base(folder, ModelConfig(path=str(folder)), outputs=100).score.weight
    torch.manual_seed(2)
    two = load_base(folder, ModelConfig(path=str(folder)), outputs=100).score.weight
    assert torch.equal(one, two)
    assert one.dtype == torch.float32
    assert one.std().item() == pytest.approx(1 / math.sqrt(64 + 1), rel=0.02)
    assert one.mean().item() == pytest.approx(0, abs=0.01)


def test_the_head_stays_fp32_above_a_bf16_model_and_no_vocabulary_head_is_kept(folder: Path) -> None:
    model = load_base(folder, ModelConfig(path=str(folder), dtype="bfloat16"), outputs=1)
    assert model.score.weight.dtype == torch.float32
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert values(model).dtype == torch.float32
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    assert model.get_output_embeddings() is None


def test_a_stored_head_is_read_back_to_the_last_bit_into_a_bf16_model(folder: Path, tmp_path: Path) -> None:
    model = moved(loaded(folder, adapter=FullConfig()))
    model.save_pretrained(tmp_path / "saved")
    again = load_base(tmp_path / "saved", ModelConfig(path="saved", dtype="bfloat16"), outputs=1)
    assert torch.equal(again.score.weight, model.score.weight)


@pytest.mark.parametrize("architecture", ["llama", "bert", "distilbert", "modernbert"])
def test_lora_trains_the_head_in_full_and_peft_reads_both(architecture: str, tmp_path: Path) -> None:
    base = classifier(architecture, tmp_path / "base", 1)
    model = moved(attach(base.requires_grad_(False), LoraConfig(rank=4)))
    names = trainable(model)
    assert any("lora_A" in name for name in names)
    full = {name for name in names if "lora" not in name}
    assert full
    assert all("modules_to_save" in name for name in full)
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert about["task_type"] == "SEQ_CLS"
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    row = torch.from_numpy(pairs()[0].tokens.astype("int64"))[None]
    with torch.no_grad():
        model.get_base_model().set_attn_implementation("eager")
        wanted = model(input_ids=row).logits
        assert torch.allclose(theirs(input_ids=row).logits, wanted, atol=1e-5)
    ours = load_adapter(load_base(tmp_path / "base", ModelConfig(path="base"), outputs=1), tmp_path / "adapter")
    model = base_model(model)
    model.set_attn_implementation(base_model(ours).config._attn_implementation)
    assert torch.equal(values(ours), values(model))


def test_merged_equals_adapter(folder: Path) -> None:
    model = moved(loaded(folder, adapter=LoraConfig(rank=4)))
    wanted = values(model)
    merged = merge(model)
    torch.testing.assert_close(values(merged.eval()), wanted, atol=1e-5, rtol=1e-5)
    assert type(merged).__name__ == "LlamaForSequenceClassification"


def test_freeze_trains_the_head_too_and_finds_the_layers_of_encoders(folder: Path, tmp_path: Path) -> None:
    names = trainable(loaded(folder, adapter=FreezeConfig(last=1)))
    assert "score.weight" in names
    assert all(name.startswith("model.layers.1.") for name in names if name != "score.weight")
    assert set(trainable(loaded(folder, adapter=FreezeConfig()))) == {"score.weight"}
    base = classifier("bert", tmp_path / "bert", 2)
    names = trainable(attach(base, FreezeConfig(last=1)))
    assert {name.rpartition(".layer.")[2][:1] for name in names if ".layer." in name} == {"2"}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(names)


def test_a_language_models_adapter_gets_the_new_head(folder: Path, tmp_path: Path) -> None:
    settings = LoraConfig(rank=4, modules_to_save=("lm_head",))
    language = moved(attach(load_base(folder, ModelConfig(path=str(folder))), settings))
    save_adapter(language, tmp_path / "sft", str(folder))
    model = loaded(folder, adapter_path=str(tmp_path / "sft"))
    stored = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    found = {name.replace(".default", ""): tensor for name, tensor in trainable(model).items() if "lora" in name}
    assert found
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())
    assert [name for name in trainable(model) if "lora" not in name] == [
        "base_model.model.score.modules_to_save.default.weight"
    ]
    save_adapter(moved(model), tmp_path / "reward", str(folder))
    assert torch.equal(values(loaded(folder, adapter_path=str(tmp_path / "reward"))), values(model))


def test_a_classifier_goes_on_with_its_own_head(folder: Path, tmp_path: Path) -> None:
    model = moved(loaded(folder, outputs=3, adapter=FullConfig()))
    model.save_pretrained(tmp_path / "saved")
    assert stored_outputs(json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))) == 3
    again = loaded(tmp_path / "saved", outputs=3, adapter=FullConfig())
    assert torch.equal(values(again), values(model))
    with pytest.raises(ModelError, match="E241"):
        loaded(tmp_path / "saved", outputs=2)
    with pytest.raises(ModelError, match="E242"):
        loaded(tmp_path / "saved", outputs=0)


def test_what_cannot_carry_a_head_or_speak_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "granite", "granite")
    with pytest.raises(ModelError, match="E240") as caught:
        loaded(folder)
    assert "llama" in caught.value.diagnostic.evidence[0]
    for other in ("xlnet", "t5"):
        with pytest.raises(ModelError, match="E240"):
            prepare_config(AutoConfig.for_model(other), tmp_path, 1)
    classifier("bert", tmp_path / "bert", 1)
    with pytest.raises(ModelError, match="E243"):
        loaded(tmp_path / "bert", outputs=0)


def test_layers_that_the_config_does_not_know_are_still_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "num_hidden_layers": 1}), "utf-8")
    with pytest.raises(ModelError, match="E081"):
        loaded(folder)


def test_padding_is_a_token_that_no_text_holds(folder: Path, tmp_path: Path) -> None:
    assert loaded(folder).config.pad_token_id == 0  # not <|im_end|>, which ends every turn
    assert free_pad(folder) == (0, "<|endoftext|>")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text("utf-8") + "{{ '<|endoftext|>' }}", "utf-8")
    assert free_pad(folder) is None
    assert loaded(folder).config.pad_token_id is None
    path = folder / "tokenizer.json"
    about = json.loads(path.read_text("utf-8"))
    spare = [(90, "<|fim|>"), (91, "<|reserved_3|>"), (92, "<pad>")]
    for id, text in spare:
        about["added_tokens"].append({"id": id, "content": text, "special": True})
        path.write_text(json.dumps(about), "utf-8")
        assert free_pad(folder) == (id, text)
