"""Values of packed trees equal those of separate sequences and of transformers' own classifiers."""

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, VOCABULARY
from tests.unit.models.test_forward import assert_close_gradients, gradients
from tests.unit.models.values import ENCODERS, classifier, padded_logits, pairs, plain, separate, tree

from tunesmith.data.packing import batch_of
from tunesmith.errors import ModelError
from tunesmith.models.encoder import RAGGED, RAGGED_TYPES
from tunesmith.models.forward import read, read_only

SLOPES = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.3])  # a loss that weighs every sequence differently


def backward(values: torch.Tensor) -> None:
    (values * SLOPES[:, None]).sum().backward()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ENCODERS])
def test_shared_prompt_equals_separate_sequences_and_transformers(architecture, tmp_path):
    examples = pairs()
    alone = [answer for example in examples for answer in separate(example)]
    model = classifier(architecture, tmp_path, outputs=2)
    shared = read(model, batch_of(examples, "values"), "values")
    assert shared.values.shape == (6, 2)
    assert shared.values.dtype == torch.float32
    assert shared.logprobs.numel() == shared.correct.numel() == 0
    backward(shared.values)
    ours = gradients(model)
    apart = read(model, batch_of(alone, "values"), "values").values
    backward(apart)
    theirs = gradients(model)
    torch.testing.assert_close(shared.values, apart, atol=1e-5, rtol=1e-5)
    assert_close_gradients(ours, theirs, 1e-4)
    model.set_attn_implementation("eager")
    logits = padded_logits(model, [example.tokens for example in alone])
    backward(logits)
    torch.testing.assert_close(shared.values, logits, atol=1e-5, rtol=1e-5)
    assert_close_gradients(ours, gradients(model), 1e-4)


@pytest.mark.parametrize("architecture", ["llama", "bert", "distilbert"])
def test_steps_of_a_process_are_read_along_one_chain(architecture, tmp_path):
    rng = np.random.default_rng(2)
    example = tree(rng.integers(3, VOCABULARY, 7), [rng.integers(3, VOCABULARY, n) for n in (4, 1, 6)], chained=True)
    model = classifier(architecture, tmp_path, outputs=1)
    values = read_only(model, batch_of([example, *pairs()], "values"), "values").values[:3]
    apart = read_only(model, batch_of(separate(example), "values"), "values").values
    torch.testing.assert_close(values, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["gemma2", "bert"])
def test_dense_attention_gives_the_same_values(architecture, tmp_path):
    batch = batch_of(pairs(), "values")
    ragged = read_only(classifier(architecture, tmp_path / "a", 1), batch, "values").values
    dense = read_only(classifier(architecture, tmp_path / "b", 1, attention="dense"), batch, "values").values
    torch.testing.assert_close(ragged, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", RAGGED_TYPES)
def test_ragged_encoders_multiply_no_padding(architecture, tmp_path):
    assert classifier(architecture, tmp_path, 1).config._attn_implementation == RAGGED


def test_a_text_beyond_the_positions_of_an_encoder_is_refused(tmp_path):
    model = classifier("roberta", tmp_path, 1)
    longest = plain(np.full(257, 5))
    assert read_only(model, batch_of([longest], "values"), "values").values.isfinite().all()
    with pytest.raises(ModelError, match="E244") as caught:
        read_only(model, batch_of([plain(np.full(258, 5))], "values"), "values")
    assert caught.value.diagnostic.fixes[0].set == {"data.max_length": 257}


def test_other_sequences_change_nothing_and_get_no_gradient(tmp_path):
    one, two, three = pairs()
    model = classifier("bert", tmp_path, 1)
    values = read(model, batch_of([one, two, three], "values"), "values").values
    values[:2].sum().backward()
    touched = model.get_input_embeddings().weight.grad.abs().sum(1) > 0
    strangers = (set(two.tokens.tolist()) | set(three.tokens.tolist())) - set(one.tokens.tolist())
    assert strangers
    assert not touched[sorted(strangers)].any()
    assert touched[sorted(set(one.tokens.tolist()))].all()
