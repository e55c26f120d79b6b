"""Inputs of layers that wait in host memory while a GPU computes. Run with `pytest -m gpu`."""

import pytest
import torch
from tests.unit.models.test_checkpointing import made
from tests.unit.models.test_forest import PAIRS, batches

from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import LoraConfig
from tunesmith.models.forward import score
from tunesmith.models.offload import CudaCarrier, HostStore
from tunesmith.models.policy import Checkpointing, everywhere

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def test_tensors_come_back_unchanged_while_their_memory_is_used_again():
    store = HostStore(CudaCarrier(torch.device("cuda")))
    made_on = torch.Generator("cuda").manual_seed(0)
    wanted, parcels = [], []
    for _ in range(8):
        states = torch.randn(2048, 1024, device="cuda", generator=made_on)
        wanted.append(states.cpu())
        parcels.append(store.put(states))
        del states
        torch.zeros(2048, 1024, device="cuda")  # takes the memory that was let go
    for states, parcel in zip(reversed(wanted), reversed(parcels), strict=True):
        assert parcel.away is not None
        assert parcel.away.is_pinned()
        assert torch.equal(parcel.open().cpu(), states)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_policy_gives_the_same_bits_on_a_gpu(architecture, dtype):
    batch = batches(PAIRS)[0].to(torch.device("cuda"))
    found = []
    for chosen in (*map(everywhere, ("off", "selective", "full", "offloaded")), Checkpointing(1, 1, 1)):
        model = made(architecture, LoraConfig(rank=4), dtype).to("cuda")
        checkpoint_layers(model, chosen)
        for _ in range(2):
            model.zero_grad()
            score(model, batch).logprobs.sum().backward()
        found.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert [name for name in other if not torch.equal(found[0][name], other[name])] == []


def test_offloading_needs_less_of_the_device():
    batch = batches((*PAIRS,) * 200)[0].to(torch.device("cuda"))
    peaks = []
    for policy in ("off", "selective", "full", "offloaded"):
        model = made("llama", LoraConfig(rank=4)).to("cuda")
        checkpoint_layers(model, everywhere(policy))
        score(model, batch).logprobs.sum()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        logprobs = score(model, batch).logprobs.sum()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.memory_allocated())
        logprobs.backward()
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[3] < peaks[2]
