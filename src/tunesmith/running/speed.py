"""What a step costs in model FLOP, and what this machine could do at most."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.models.forward import base_model
from tunesmith.planning.calibration import flops_per_token, forward_flops
from tunesmith.planning.inputs import inventory_of, trainable_of
from tunesmith.planning.machine import this_machine
from tunesmith.planning.peak import measured_peak
from tunesmith.planning.trunk import frozen_layers, trunk_flops
from tunesmith.recipe import Recipe
from tunesmith.running.inputs import Inputs
from tunesmith.train.work import Rates, Work


def work_of(recipe: Recipe, inputs: Inputs, model: nn.Module, mesh: Mesh) -> Work:
    """The plan's formulas without what is computed again, and the measured peak in the type of the frozen weights."""
    inventory = inventory_of(recipe, inputs.base, inputs.task.outputs)
    machine = this_machine(torch.get_num_threads())
    dtype = str(base_model(model).dtype).removeprefix("torch.")
    cached = 0 if recipe.train.cache_trunk == "off" else frozen_layers(recipe, inventory)
    trained = partial(flops_per_token, inventory, trainable_of(recipe, inventory))
    return Work(
        trained=Rates.of(lambda scored, length: trained(scored, length) - trunk_flops(inventory, cached, length)),
        forward=Rates.of(partial(forward_flops, inventory)),
        peak=mesh.first_then_others(lambda: measured_peak(machine, dtype)),
    )
