"""Ranks train one model only when they mean the same: settings, code and data are compared before the first step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import UsageError
from tunesmith.recipe import Recipe, with_absolute_paths
from tunesmith.train.manifest import code_hash
from tunesmith.train.position import flatten

OWN = ("run.",)  # settings that only say where results go
SHOWN = 12


def agree_on_start(recipe: Recipe, mesh: Mesh) -> None:
    """UsageError E500 on every rank, with the difference, unless all have the same recipe and code."""
    if mesh.world > 1:
        flat = flatten(with_absolute_paths(recipe).model_dump(mode="json"))
        settings = {key: value for key, value in flat.items() if not key.startswith(OWN)}
        compare(mesh, {**settings, "code": code_hash(), "torch": torch.__version__})


def compare(mesh: Mesh, mine: Mapping[str, Any]) -> None:
    """UsageError E500 on every rank, unless all hold the same values."""
    if mesh.world == 1:
        return
    texts = mesh.gather_texts(json.dumps(mine, sort_keys=True, default=str))
    first = json.loads(texts[0])
    found: list[str] = []
    for rank, text in enumerate(texts):
        other = json.loads(text) if text != texts[0] else first
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                found.append(f"{key}: {first.get(key)!r} on rank 0, {other.get(key)!r} on rank {rank}")
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        message = f"the ranks would not train the same: {len(found)} difference{'s' * (len(found) > 1)}"
        fixes = ["start all ranks with the same recipe, data and version of Tunesmith"]
        raise UsageError("E500", message, evidence=[*found[:SHOWN], *more], fixes=fixes)
