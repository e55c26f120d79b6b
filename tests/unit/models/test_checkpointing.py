"""What layers keep changes memory alone: losses and gradients are the same to the bit, on every architecture."""

import gc
import weakref

import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, build
from tests.unit.models.test_forest import PAIRS, batches, loss_and_gradients
from torch import Tensor, nn

from tunesmith.errors import MachineError, ModelError
from tunesmith.models import checkpointing
from tunesmith.models.adapters import attach, merge
from tunesmith.models.checkpointing import checkpoint_layers, mlp_of
from tunesmith.models.config import LoraConfig
from tunesmith.models.forward import score
from tunesmith.models.fused import fuse
from tunesmith.models.layer import function, module
from tunesmith.models.layer.module import WINDOWS, FastLayer, put_fast_layers
from tunesmith.models.offload import Arriving, HostStore, Parcel
from tunesmith.models.policy import Checkpointing, everywhere

WRITTEN_OUT = [name for name in ARCHITECTURES if f"{name}DecoderLayer".lower() in {key.lower() for key in WINDOWS}]


class Porter:
    """A carrier that runs on the spot and writes down what it does; what it carries is a copy."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.sent: list[Tensor] = []

    def send(self, states: Tensor) -> Tensor:
        self.log.append(f"send {len(self.sent)}")
        self.sent.append(states.detach().clone())
        return self.sent[-1]

    def fetch(self, away: Tensor) -> Arriving:
        number = next(place for place, tensor in enumerate(self.sent) if tensor is away)
        self.log.append(f"fetch {number}")
        return Arriving(away.clone(), lambda: self.log.append(f"wait {number}"))


@pytest.fixture
def porter(monkeypatch) -> Porter:
    made = Porter()
    monkeypatch.setattr(checkpointing, "carrier_for", lambda device: made)
    return made


def made(architecture: str, adapter: LoraConfig | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """As loading makes a model, in training mode; the same weights at every call."""
    model: nn.Module = put_fast_layers(fuse(build(architecture))).to(dtype)
    if adapter is not None:
        model = attach(model, adapter)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.train()


def seeded(model: nn.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    return loss_and_gradients(model, batches(PAIRS)[0])


def assert_same_bits(model: nn.Module, wanted: tuple) -> None:
    found = seeded(model)
    assert torch.equal(found[0], wanted[0])
    assert found[2].keys() == wanted[2].keys()
    assert [name for name in wanted[2] if not torch.equal(found[2][name], wanted[2][name])] == []


CHOICES = {
    "selective": everywhere("selective"),
    "full": everywhere("full"),
    "mixed": Checkpointing(full=1, selective=1),
    "offloaded": everywhere("offloaded"),
    "all of them": Checkpointing(offloaded=1, full=1, selective=1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("adapter", [None, LoraConfig(rank=4), LoraConfig(rank=4, dropout=0.3)],
                         ids=["full tuning", "lora", "dropout"])  # fmt: skip
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_policy_gives_the_same_bits(architecture, adapter, dtype, porter):
    wanted = seeded(made(architecture, adapter, dtype))
    assert wanted[2]
    for chosen in CHOICES.values():
        if chosen.offloaded and architecture not in WRITTEN_OUT:
            continue
        model = made(architecture, adapter, dtype)
        checkpoint_layers(model, chosen)
        assert_same_bits(model, wanted)


def kept_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that the graph of a loss holds, apart from parameters; each storage once."""
    held: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        score(model, batches(PAIRS)[0])
    return sum(held.values())


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "phi3"])
def test_layers_of_transformers_keep_less_and_less(architecture):
    found = []
    for policy in ("off", "selective", "full"):
        model = made(architecture, LoraConfig(rank=4))
        checkpoint_layers(model, everywhere(policy))
        found.append(kept_bytes(model))
    assert found[2] < 0.5 * found[1] < 0.5 * found[0]
    assert found[1] < 0.75 * found[0]


def test_a_written_out_layer_keeps_what_its_policy_says(porter):
    model = made("llama", LoraConfig(rank=4))
    checkpoint_layers(model, Checkpointing(offloaded=1, full=1, selective=1))
    loss = score(model, batches(PAIRS)[0]).logprobs.sum()
    found, node = {}, [loss.grad_fn]
    while node:
        step = node.pop()
        node += [below for below, _ in step.next_functions if below is not None]
        if step.name() == "LayerFunctionBackward":
            found[step.call.policy] = step
    assert found["offloaded"].kept is None
    assert not found["offloaded"].saved_tensors
    assert found["full"].kept is None
    assert len(found["full"].saved_tensors) == 1
    assert found["selective"].kept.both is None
    assert found["selective"].kept.middle is not None


def test_layers_below_the_lowest_trained_one_are_not_counted():
    model = made("llama", None)
    model.requires_grad_(False)
    list(layers_of(model))[1].requires_grad_(True)
    assert checkpoint_layers(model, Checkpointing(full=1)) == ["off", "full", "off"]
    assert checkpoint_layers(made("llama", None), Checkpointing(full=1)) == ["full", "off", "off"]


def layers_of(model: nn.Module) -> list[FastLayer]:
    return [layer for layer in model.modules() if isinstance(layer, FastLayer)]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_parameters_keep_their_names_and_adapters_can_be_merged(architecture):
    plain, model = (made(architecture, LoraConfig(rank=4)) for _ in range(2))
    checkpoint_layers(model, everywhere("selective"))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    shared, _ = batches(PAIRS)
    wanted = score(merge(plain.eval()), shared).logprobs
    assert torch.equal(score(merge(model.eval()), shared).logprobs, wanted)


def test_parcels_come_back_one_layer_ahead(porter):
    model = made("llama", LoraConfig(rank=4))
    checkpoint_layers(model, everywhere("offloaded"))
    score(model, batches(PAIRS)[0]).logprobs.sum().backward()
    assert porter.log[:3] == ["send 0", "send 1", "send 2"]
    assert porter.log[3:] == ["fetch 2", "fetch 1", "wait 2", "fetch 0", "wait 1", "wait 0"]


def test_a_second_pass_does_not_call_for_parcels_of_the_first():
    porter = Porter()
    store = HostStore(porter)
    first = [store.put(torch.full((2,), float(number))) for number in range(2)]
    assert [parcel.open().tolist() for parcel in reversed(first)] == [[1.0, 1.0], [0.0, 0.0]]
    second = store.put(torch.ones(2))
    porter.log.clear()
    second.open()
    assert porter.log == ["fetch 2", "wait 2"]
    with pytest.raises(AssertionError, match="opened once"):
        second.open()


def test_a_graph_that_is_dropped_takes_its_parcels_along():
    store = HostStore(Porter())
    parcels: list[Parcel] = [store.put(torch.ones(2)) for _ in range(3)]
    watched = [weakref.ref(parcel) for parcel in parcels]
    del parcels
    gc.collect()
    assert [each() for each in watched] == [None] * 3
    assert store.put(torch.ones(2)).open().tolist() == [1.0, 1.0]


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch):
    seen = []
    real = function.forward_layer
    monkeypatch.setattr(module, "forward_layer", lambda x, call: seen.append(call) or real(x, call))
    with torch.no_grad():
        score(made("llama", None), batches(PAIRS)[0])
    assert {call.policy for call in seen} == {"full"}


def test_offloading_is_refused_on_a_cpu():
    with pytest.raises(MachineError) as caught:
        checkpoint_layers(made("llama", None), everywhere("offloaded"))
    assert caught.value.diagnostic.code == "E188"
    assert caught.value.diagnostic.fixes[0].set == {"train.activation_checkpointing": "full"}


def test_selective_is_refused_where_a_layer_has_no_mlp():
    with pytest.raises(ModelError) as caught:
        mlp_of(nn.Sequential(nn.Linear(2, 2)))
    assert caught.value.diagnostic.code == "E188"
