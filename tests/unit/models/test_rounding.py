"""Numbers of rows are made round on a CPU: nothing that anybody reads changes, and the shapes repeat."""

import pytest
import torch
from tests.unit.models.architectures import VOCABULARY, build
from torch import Tensor

from tunesmith.models import rounding
from tunesmith.models.forward import hidden_states, score
from tunesmith.models.layer.module import put_fast_layers
from tunesmith.models.rounding import ROUND, missing, rounded, with_more
from tunesmith.types import Batch


def batch_of(lengths: list[int], scored: int) -> Batch:
    """Flat sequences; the last `scored` tokens of each are targets."""
    total = sum(lengths)
    tokens = torch.randint(3, VOCABULARY, (total,), generator=torch.Generator().manual_seed(total))
    ends = torch.tensor(lengths).cumsum(0).tolist()
    target = torch.cat([torch.arange(end - scored, end) for end in ends])
    return Batch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in lengths]),
        segments=torch.tensor([(end - length, end, -1) for end, length in zip(ends, lengths, strict=True)]),
        query=target - 1,
        target=tokens[target],
        weight=torch.ones(len(target)),
        sequence=torch.arange(len(lengths)).repeat_interleave(scored),
        group=torch.arange(len(lengths)),
        labels=torch.zeros(len(lengths)),
    )


def values(architecture: str, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    model = put_fast_layers(build(architecture)).requires_grad_(True)
    logprobs = score(model, batch).logprobs
    logprobs.sum().backward()
    return logprobs.detach(), [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_losses_and_gradients_are_those_of_the_batch_as_it_was(architecture, monkeypatch):
    batch = batch_of([50, 41, 9], 7)
    assert len(rounded(batch).tokens) == 128
    ours, slopes = values(architecture, batch)
    monkeypatch.setattr(rounding, "ROUND", 1)
    assert rounded(batch) is batch
    theirs, wanted = values(architecture, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    largest = max(float(each.abs().max()) for each in wanted)
    assert all((one - other).abs().max() <= 1e-5 * largest for one, other in zip(slopes, wanted, strict=True))


def test_states_are_those_of_the_tokens_alone():
    batch = batch_of([70, 3], 2)
    model = put_fast_layers(build("llama"))
    assert hidden_states(model, batch).shape == (73, 64)
    embedded = model.get_input_embeddings()(batch.tokens)
    torch.testing.assert_close(hidden_states(model, batch, embedded), hidden_states(model, batch))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 1000])
def test_few_rows_are_left_alone_and_many_become_round(count):
    total = count + missing(count, torch.zeros(1))
    assert total == count if count <= ROUND else total % ROUND == 0
    assert total - count < ROUND


def test_other_rows_are_taken_until_the_number_is_round():
    wanted = torch.arange(0, 200, 2)
    more = with_more(wanted, 256)
    assert len(more) == 128
    assert more.unique().equal(more)
    assert torch.isin(wanted, more).all()
    assert with_more(wanted, 101).equal(wanted)
