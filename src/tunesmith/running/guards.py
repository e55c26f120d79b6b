"""What keeps a run from forgetting, built from a recipe: a pull to the start, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from peft.tuners.lora import LoraLayer
from torch import nn

from tunesmith.data.loader import Builder, Microbatches
from tunesmith.distributed.mesh import Mesh
from tunesmith.models.reference import AdapterOff, StartWeights
from tunesmith.objectives import SFT, Objective
from tunesmith.planning.guards import draws_updates
from tunesmith.planning.sharing import shares_prefixes
from tunesmith.recipe import Recipe
from tunesmith.running.inputs import Inputs
from tunesmith.running.references import Referee, build_streams
from tunesmith.train.evaluation_loss import HeldOut, evaluation_loss
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.pull import Factors, Pull
from tunesmith.train.signals import Poll
from tunesmith.train.streams import Streams
from tunesmith.types import Task


def general_loss(recipe: Recipe, inputs: Inputs, model: nn.Module, mesh: Mesh) -> Callable[[Poll], float] | None:
    """The loss on held-out general data: that of their next tokens, whatever the objective is."""
    if inputs.general is None:
        return None
    build = Builder(inputs.general, Task(), share=shares_prefixes(recipe, inputs.base))
    held_out = HeldOut(Microbatches(build, recipe.train.microbatch_limit(mesh.device().type)), Streams(), mesh)
    return lambda poll: evaluation_loss(model, held_out, (SFT(),), {}, poll)["loss"]


def guessed_loss(objectives: Sequence[Objective], vocabulary: int) -> float | None:
    """The loss of a model that holds every token for equally likely; None where the loss is another one."""
    if not all(isinstance(objective, SFT) for objective in objectives):
        return None
    return sum(objective.coefficient for objective in objectives) * math.log(vocabulary)


def streams_of(
    recipe: Recipe, referee: Referee, build: Builder, shaping: str, mesh: Mesh, told: Callable[[int, int], None]
) -> Streams:
    """The reference's log-probabilities, its whole distributions, or both."""
    streams = build_streams(recipe, referee, build, shaping, mesh, told) if recipe.has_reference else Streams()
    if not recipe.compares_distributions:
        return streams
    reference = referee.reference
    assert isinstance(reference, AdapterOff | StartWeights), (
        "another reference is refused where whole distributions count"
    )
    return replace(streams, distributions=reference)


def make_pull(recipe: Recipe, model: nn.Module, optimizer: Optimizer) -> Pull | None:
    """What draws the weights to their start; of a new plain LoRA adapter it is the update that is drawn to 0."""
    if recipe.train.l2_to_start == 0:
        return None
    names = {id(one): name for name, one in optimizer.parameters.items()}
    factors = []
    if draws_updates(recipe):
        for module in model.modules():
            if isinstance(module, LoraLayer) and (active := module.active_adapters[0]) in module.lora_A:
                a, b = (pair[active].get_parameter("weight") for pair in (module.lora_A, module.lora_B))
                factors.append(Factors(names.get(id(a), a), names.get(id(b), b), module.scaling[active]))
    return Pull(optimizer, recipe.train.l2_to_start, factors)
