"""What the modules of a model are in a profile, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from tunesmith.models.forward import base_model
from tunesmith.models.layer.parts import BETWEEN
from tunesmith.track.clock import Mark, part

QKV, OUT, GATE_UP, DOWN = part("qkv"), part("out"), part("gate and up"), part("down")
MARKS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "query_key_value"), QKV),
    "o_proj": OUT,
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), GATE_UP),
    "down_proj": DOWN,
    "rotary_emb": BETWEEN,
    "score": part("head and loss"),
}


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Inside `with`, modules that are called one by one are marked too; those of a written-out layer are not called."""
    embedding = base_model(model).get_input_embeddings()
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            mark = part("embedding") if module is embedding else mark_of(name, module)
            if mark is not None:
                hooks.callback(module.register_forward_pre_hook(lambda *_, mark=mark: mark.__enter__()).remove)
                hooks.callback(module.register_forward_hook(closer(mark), always_call=True).remove)
        yield


def closer(mark: Mark) -> Callable[..., None]:
    """Ends the mark; called however the module ends, also where recomputing breaks off at the last state it needs."""
    return lambda *_: mark.__exit__()


def mark_of(name: str, module: nn.Module) -> Mark | None:
    return BETWEEN if type(module).__name__.endswith("Norm") else MARKS.get(name.rpartition(".")[2])
