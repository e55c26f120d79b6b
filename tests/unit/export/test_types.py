"""Types of GGUF files: what they lose, what is allowed for it, and which matrices of a mixture are finer."""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, quants
from tests.tiny import tiny_model_folder
from tests.unit.export.shapes import SIZE, shape_folder, written

from tunesmith.export.gguf.kquants import K_TYPES, quantize_k
from tunesmith.export.gguf.mixtures import Layout
from tunesmith.export.gguf.types import FILE_TYPES, LOSSES, MOST, SENSITIVITY, converted, stored_type

SMALL = {**SIZE, "intermediate_size": 256}


def lost(weights: np.ndarray, back: np.ndarray) -> float:
    return float(np.square(back - weights).sum() / np.square(weights).sum())


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.name)
def test_what_a_type_loses_is_what_its_limit_is_made_of(kind) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)
    found = lost(weights, quants.dequantize(converted(weights, kind), kind))
    assert found == pytest.approx(LOSSES[kind], rel=0.05)


def test_limits_follow_from_one_number() -> None:
    quantised = [kind for kind in FILE_TYPES.values() if kind.name[0] == "Q"]
    for kind in quantised:
        assert kind.limit == pytest.approx(min(SENSITIVITY * LOSSES[kind.usual], MOST), rel=0.05)
    limits = [kind.limit for kind in quantised]
    assert limits == sorted(limits), "from the finest to the coarsest"
    assert [FILE_TYPES[name].limit for name in ("F32", "F16", "BF16")] == [1e-5, 1e-3, 3e-2]


@pytest.mark.parametrize("kind", K_TYPES, ids=lambda kind: kind.name)
def test_k_quants_bear_every_scale(kind) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((64, 512)) * np.exp(rng.standard_normal((64, 1)))).astype(np.float32)
    weights[0] = 0
    weights[1, :256] = 3.5
    weights[2] *= 1e-4
    weights[3, ::7] = -20
    back = quants.dequantize(quantize_k(weights, kind), kind)
    each = np.square(back - weights).sum(1) / np.square(weights).sum(1).clip(1e-30)
    assert each[4:].mean() < 1.2 * LOSSES[kind]
    assert max(each[1], each[2]) < 1.5 * LOSSES[kind]
    assert np.all(back[0] == 0)


@pytest.mark.parametrize("kind", K_TYPES, ids=lambda kind: kind.name)
def test_numbers_on_the_grid_come_back(kind) -> None:
    """What a type can hold exactly it holds exactly: a wrong place of a bit shows."""
    rng = np.random.default_rng(1)
    once = quants.dequantize(quantize_k(rng.standard_normal((16, 256)).astype(np.float32), kind), kind)
    again = quants.dequantize(quantize_k(once, kind), kind)
    assert lost(once, again) < 0.02 * LOSSES[kind]


def types_in(path: Path) -> dict[str, str]:
    return {each.name: each.tensor_type.name for each in GGUFReader(path).tensors}


def test_types_of_a_mixture(tmp_path) -> None:
    stored = types_in(written(shape_folder(tmp_path / "model", "qwen2"), "Q4_K_M", tmp_path / "a"))
    assert stored["token_embd.weight"] == "Q6_K", "the embedding is the head"
    assert [stored[f"blk.{at}.attn_v.weight"] for at in range(3)] == ["Q4_K", "Q4_K", "Q6_K"]
    assert stored["blk.0.attn_q.weight"] == "Q4_K"
    assert stored["blk.0.attn_q.bias"] == stored["output_norm.weight"] == "F32"
    narrow = tiny_model_folder(tmp_path / "narrow", hidden_size=96, num_attention_heads=4, intermediate_size=80)
    for kind, row in (("Q4_K_M", "Q5_0"), ("Q3_K_S", "Q4_0"), ("Q2_K", "Q4_0")):
        stored = types_in(written(narrow, kind, tmp_path / "b"))
        assert stored["blk.0.attn_q.weight"] == row
        assert stored["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize(
    ("kind", "part", "wanted"),
    [
        ("Q2_K", "attn_v", [Type.Q3_K] * 16),
        ("Q2_K", "attn_q", [Type.Q2_K] * 16),
        ("Q3_K_S", "ffn_down", [Type.Q3_K] * 16),
        ("Q3_K_M", "attn_qkv", [Type.Q5_K] * 2 + [Type.Q4_K] * 14),
        ("Q3_K_M", "ffn_down", [Type.Q5_K] + [Type.Q4_K] * 15),
        ("Q3_K_L", "attn_output", [Type.Q5_K] * 16),
        ("Q4_K_S", "attn_v", [Type.Q5_K] * 4 + [Type.Q4_K] * 12),
        ("Q4_K_S", "ffn_down", [Type.Q5_K] * 2 + [Type.Q4_K] * 14),
        ("Q5_K_S", "attn_v", [Type.Q5_K] * 16),
    ],
)
def test_rules_by_layer(kind, part, wanted) -> None:
    layout = Layout(16, 2, tied=False)
    found = [stored_type(f"blk.{at}.{part}.weight", (256, 256), FILE_TYPES[kind], layout) for at in range(16)]
    assert found == wanted


def test_values_that_many_heads_share_are_finer() -> None:
    def value(kind: str, layout: Layout) -> Type:
        return stored_type("blk.9.attn_v.weight", (256, 256), FILE_TYPES[kind], layout)

    assert value("Q2_K", Layout(16, 4, tied=True)) == Type.Q4_K
    assert value("Q3_K_S", Layout(80, 8, tied=False)) == Type.Q5_K
    assert value("Q3_K_S", Layout(80, 1, tied=False)) == Type.Q3_K


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {**SMALL, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 2}),
        ("phi3", {**SMALL, "num_hidden_layers": 9, "tie_word_embeddings": False}),
        ("llama", {**SMALL, "hidden_size": 288, "num_attention_heads": 6, "num_key_value_heads": 3}),
        ("llama", {**SMALL, "num_hidden_layers": 4, "tie_word_embeddings": False}),
    ],
    ids=["shared", "phi3", "narrow", "untied"],
)
@pytest.mark.nightly
def test_llama_cpp_rounds_the_same_matrices_to_the_same_types_and_no_better(tmp_path, architecture, settings) -> None:
    import llama_cpp  # pyright: ignore[reportMissingImports]

    folder = tiny_model_folder(tmp_path / "model", architecture, **settings)
    whole = written(folder, "F32", tmp_path / "whole.gguf")
    exact = {each.name: each for each in GGUFReader(whole).tensors}
    for kind in FILE_TYPES.values():
        if kind.name[0] != "Q":
            continue
        how = llama_cpp.llama_model_quantize_default_params()
        how.ftype, how.nthread = int(kind.mark), 1
        theirs = tmp_path / "theirs.gguf"
        assert llama_cpp.llama_model_quantize(str(whole).encode(), str(theirs).encode(), ctypes.byref(how)) == 0
        ours = written(folder, kind.name, tmp_path / "ours.gguf")
        assert types_in(ours) == types_in(theirs)
        for own, other in zip(*(sorted(GGUFReader(path).tensors, key=by_name) for path in (ours, theirs)), strict=True):
            weights = quants.dequantize(exact[own.name].data, exact[own.name].tensor_type)
            errors = [lost(weights, quants.dequantize(each.data, each.tensor_type)) for each in (own, other)]
            assert errors[0] <= 1.05 * errors[1]


def by_name(tensor) -> str:
    return tensor.name
