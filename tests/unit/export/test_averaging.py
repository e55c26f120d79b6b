"""Means of weights and parts of the way: each weight against the formula, and the predictions."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.command import call
from tests.tiny import tiny_model_folder
from tests.unit.export.test_huggingface import ROWS, make_run, trained

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import CheckpointError, ModelError, UsageError
from tunesmith.export import averaging
from tunesmith.export.averaging import average, find_averaged, merge_share
from tunesmith.export.huggingface import merge_chain, merge_run
from tunesmith.export.opening import ModelSource, find_model
from tunesmith.export.proof import predictions
from tunesmith.models.adapters import load_adapter, merge, save_adapter, trainable
from tunesmith.models.adapters.merging import scale
from tunesmith.models.config import DoraConfig, FullConfig, LoraConfig, ModelConfig, OftConfig
from tunesmith.models.content import content_hash
from tunesmith.models.load import load_base, load_model
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.quantization_config import Nf4
from tunesmith.models.save import save_weights
from tunesmith.models.stack import Below, write_stack
from tunesmith.train.checkpoint import CheckpointStore


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "base", tie_word_embeddings=False, initializer_range=0.2)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def plain(folder: Path):
    return load_base(folder, ModelConfig(path=str(folder)))


WAYS = {
    "lora": LoraConfig(rank=4, alpha=8),
    "dora": DoraConfig(rank=4, alpha=8),
    "oft": OftConfig(block=16),
    "a head beside it": LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",)),
    "full": FullConfig(),
}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_share_lies_between_base_and_tuned(settings, base, tmp_path):
    run = make_run(tmp_path, base, {"method": settings.word})
    save_weights(trained(base, settings), run.path, base)
    whole = merge_run(run.path, tmp_path / "whole")
    report = merge_share(run.path, tmp_path / "half", 0.25)
    assert (report.share, whole.share) == (0.25, 1.0)
    assert report.difference <= report.limit
    before, after, found = (tensors(folder) for folder in (base, tmp_path / "whole", tmp_path / "half"))
    moved = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, before[name] + 0.25 * (after[name] - before[name]), atol=1e-6, rtol=1e-5)
        still = torch.equal(after[name], before[name])
        assert not still or torch.equal(tensor, before[name])
        moved += not still
    assert moved > 0
    card = (tmp_path / "half" / "README.md").read_text()
    assert "base + 0.25 (tuned - base)" in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "base"


def test_a_share_of_a_sum_predicts_what_the_adapter_predicts_at_a_smaller_scale(base, tmp_path):
    save_adapter(trained(base), tmp_path / "adapter", str(base))
    merge_share(tmp_path / "adapter", tmp_path / "half", 0.5)
    model = load_adapter(plain(base), tmp_path / "adapter")
    assert scale(model, 0.5)
    torch.testing.assert_close(
        predictions(plain(tmp_path / "half"), ROWS), predictions(model.eval(), ROWS), atol=1e-4, rtol=1e-4
    )
    assert not scale(load_adapter(plain(base), saved(base, tmp_path / "dora", DoraConfig(rank=2))), 0.5)


def saved(base: Path, folder: Path, settings=None, seed: int = 1) -> Path:
    save_adapter(trained(base, settings, seed), folder, str(base))
    return folder


def test_a_share_that_went_wrong_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "approach", lambda total, other, share, told: None)
    with pytest.raises(ModelError, match="E156"):
        merge_share(saved(base, tmp_path / "adapter"), tmp_path / "half", 0.5)
    assert not (tmp_path / "half").exists()


def test_a_head_that_has_parted_from_a_shared_one_goes_back_towards_it(tmp_path):
    base = tiny_model_folder(tmp_path / "base", tie_word_embeddings=True)
    settings = LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("lm_head",))
    merge_run(saved(base, tmp_path / "adapter", settings), tmp_path / "whole")
    merge_share(tmp_path / "adapter", tmp_path / "half", 0.5)
    shared = tensors(base)["model.embed_tokens.weight"]
    head = tensors(tmp_path / "half")["lm_head.weight"]
    torch.testing.assert_close(head, (shared + tensors(tmp_path / "whole")["lm_head.weight"]) / 2)
    assert torch.equal(tensors(tmp_path / "half")["model.embed_tokens.weight"], shared)
    with pytest.raises(ModelError, match=r"E365[\s\S]*first"):
        average([find_model(str(base)), find_model(str(tmp_path / "whole"))], tmp_path / "mean")
    average([find_model(str(tmp_path / "whole")), find_model(str(base))], tmp_path / "mean")
    torch.testing.assert_close(tensors(tmp_path / "mean")["lm_head.weight"], head)


@pytest.mark.parametrize(
    ("share", "words"), [(0.0, "above 0"), (1.5, "at most 1"), (-1.0, "above 0"), (float("nan"), "above 0")]
)
def test_shares_that_are_none(share, words, base, tmp_path):
    with pytest.raises(UsageError, match=words):
        merge_share(saved(base, tmp_path / "adapter"), tmp_path / "half", share)


def test_where_there_is_no_way_back(base, tmp_path):
    with pytest.raises(UsageError, match=r"E366[\s\S]*tunesmith average"):
        merge_share(base, tmp_path / "half", 0.5)
    classifier = make_run(tmp_path, base)
    model = load_base(base, ModelConfig(path=str(base)), outputs=1)
    save_weights(model, classifier.path, base)
    with pytest.raises(UsageError, match=r"E366[\s\S]*head"):
        merge_share(classifier.path, tmp_path / "half", 0.5)


def test_a_mean_is_that_of_the_merged_weights(base, tmp_path):
    settings = {"a": LoraConfig(rank=4), "b": DoraConfig(rank=2), "c": FullConfig()}
    for seed, (name, one) in enumerate(settings.items()):
        model = trained(base, one, seed)
        if name == "c":
            model.save_pretrained(tmp_path / "c")
            for extra in ("tokenizer.json", "tokenizer_config.json"):
                (tmp_path / "c" / extra).write_bytes((base / extra).read_bytes())
        else:
            save_adapter(model, tmp_path / name, str(base))
            merge_run(tmp_path / name, tmp_path / f"{name}-whole")
    sources = [find_model(str(tmp_path / name)) for name in settings]
    report = average(sources, tmp_path / "mean", (2.0, 1.0, 1.0))
    assert report.averaged == ("0.5 x a", "0.25 x b", "0.25 x c")
    parts = [tensors(tmp_path / name) for name in ("a-whole", "b-whole", "c")]
    for name, tensor in tensors(tmp_path / "mean").items():
        wanted = 0.5 * parts[0][name] + 0.25 * parts[1][name] + 0.25 * parts[2][name]
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
    assert "The weights are a mean: 0.5 x a, 0.25 x b, 0.25 x c." in (tmp_path / "mean" / "README.md").read_text()
    assert load_tokenizer(tmp_path / "mean").eos_ids == (2,)


def test_checkpoints_of_one_run(base, tmp_path):
    run = make_run(tmp_path, base)
    store = CheckpointStore(run.checkpoints, 3)
    models = {step: trained(base, seed=step) for step in (2, 4, 6)}
    for step, model in models.items():
        weights = {name: one.detach() for name, one in trainable(model).items()}
        store.save(step, {"weights": weights}, {})
    sources = find_averaged([str(run.path)], "auto", 2)
    assert [source.checkpoint.step for source in sources] == [6, 4]
    average(sources, tmp_path / "mean")
    whole = [dict(merge(models[step]).named_parameters()) for step in (4, 6)]
    for name, tensor in tensors(tmp_path / "mean").items():
        torch.testing.assert_close(tensor, (whole[0][name] + whole[1][name]) / 2, atol=1e-6, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"E155[\s\S]*keeps 3"):
        find_averaged([str(run.path)], "auto", 5)
    with pytest.raises(UsageError, match="E360"):
        find_averaged([str(run.path), str(base)], "auto", 2)
    with pytest.raises(UsageError, match="no run"):
        find_averaged([str(base)], "auto", 2)


def test_what_has_no_mean(base, tmp_path):
    here = find_model(str(base))
    wide = tiny_model_folder(tmp_path / "wide", intermediate_size=96, tie_word_embeddings=False)
    with pytest.raises(ModelError, match="E365"):
        average([here, find_model(str(wide))], tmp_path / "mean")
    for weights, words in [((1.0,), "1 weights for 2"), ((1.0, 0.0), "above 0"), ((1.0, float("inf")), "above 0")]:
        with pytest.raises(UsageError, match=words):
            average([here, here], tmp_path / "mean", weights)
    with pytest.raises(UsageError, match="only one"):
        average([here], tmp_path / "mean")
    other = tiny_model_folder(tmp_path / "other", tie_word_embeddings=False)
    text = (other / "tokenizer.json").read_text().replace('"<|im_start|>"', '"<|begin|>"')
    (other / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="vocabularies"):
        average([here, find_model(str(other))], tmp_path / "mean")


def test_adapters_are_merged_one_after_another(base, tmp_path):
    names = [str(saved(base, tmp_path / "a")), str(saved(base, tmp_path / "b", DoraConfig(rank=2), 2))]
    report = merge_chain(names, str(base), tmp_path / "both")
    assert report.difference <= report.limit
    wanted = merge(load_adapter(merge(load_adapter(plain(base), Path(names[0]))), Path(names[1])))
    torch.testing.assert_close(predictions(plain(tmp_path / "both"), ROWS), predictions(wanted.eval(), ROWS))
    assert "`a` merged into it first" in (tmp_path / "both" / "README.md").read_text()
    with pytest.raises(UsageError, match="E157"):
        merge_chain(names[:1], names[1], tmp_path / "other")


def test_an_adapter_that_was_trained_above_another_is_merged_only_there(base, tmp_path):
    names = [str(saved(base, tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    source = find_model(names[0])
    assert isinstance(source, ModelSource)
    write_stack(tmp_path / "b", str(base), (Below(names[0], content_hash(Path(names[0]))),))
    with pytest.raises(ModelError, match="E364"):
        merge_chain(names[1:], str(base), tmp_path / "other")
    merge_chain(names, str(base), tmp_path / "both")
    merge_run(names[1], tmp_path / "alone")  # its note says what belongs below
    assert all(torch.equal(one, tensors(tmp_path / "alone")[name]) for name, one in tensors(tmp_path / "both").items())


def test_the_commands(base, tmp_path, capsys):
    names = [str(saved(base, tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    assert call("merge", names[0], str(tmp_path / "half"), "--share", "0.5") == 0
    assert "share of 0.5" in capsys.readouterr().out
    assert call("merge", names[0], str(tmp_path / "more"), "--share", "2", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E366"
    assert call("average", *names, str(tmp_path / "mean"), "--shares", "0.9,0.1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["averaged"] == ["0.9 x a", "0.1 x b"]
    assert call("average", names[0]) == 2
    assert "tunesmith average A B OUT" in capsys.readouterr().err
    assert call("adapters", "merge", *names, str(base), str(tmp_path / "chain")) == 0
    assert "merged" in capsys.readouterr().out
    assert call("adapters", "merge", *names) == 2
    assert "adapters merge A B MODEL OUT" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_share_above_a_base_in_few_bits(base, tmp_path, rounds):
    adapter = LoftqConfig(rank=4, rounds=rounds, alpha=8)
    settings = ModelConfig(path=str(base), quantization=Nf4(), adapter=adapter)
    save_adapter(load_model(base, settings), tmp_path / "adapter", str(base))
    if rounds > 1:  # whose base is quantised less what the adapter begins with
        with pytest.raises(UsageError, match="E366"):
            merge_share(tmp_path / "adapter", tmp_path / "half", 0.5)
        return
    assert merge_share(tmp_path / "adapter", tmp_path / "half", 0.5).difference < 1e-5
    merge_run(tmp_path / "adapter", tmp_path / "whole")
    name = "model.layers.0.mlp.up_proj.weight"
    packed = load_base(base, settings).get_submodule(name.removesuffix(".weight")).weight
    middle = (packed + tensors(tmp_path / "whole")[name]) / 2
    torch.testing.assert_close(tensors(tmp_path / "half")[name], middle, atol=1e-6, rtol=1e-5)
