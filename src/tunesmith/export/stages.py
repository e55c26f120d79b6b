"""The weights that a run has been through, each put in its turn into one model that is loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from tunesmith.export.opening import ModelSource, put_tensors
from tunesmith.models.adapters import Adapted, trainable
from tunesmith.models.load import load_model
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.train.checkpoint import Checkpoint


@dataclass(slots=True)
class Stages:
    """One model on its device, in evaluation mode, whose trained tensors are exchanged.

    The base is what the run began as. Below a new adapter it is the model with the adapter off; else it is the weights
    as loaded, which are there until those of a checkpoint take their place.
    """

    model: nn.Module
    places: dict[str, nn.Parameter]
    is_off: bool  # whether the base is the model without its adapter
    at: int | None = None  # the step whose weights it has
    swaps: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, source: ModelSource) -> Stages:
        """Load the base of a run with what was trained on it, as it was before the first step."""
        settings = source.settings
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(source.base, settings, device)
        places = trainable(model)
        begins_there = settings.adapter_path is None and not isinstance(settings.adapter, LoftqConfig)
        return cls(model.requires_grad_(False).eval(), places, isinstance(model, Adapted) and begins_there)

    @contextmanager
    def base(self) -> Iterator[nn.Module]:
        if self.is_off:
            assert isinstance(self.model, Adapted)
            with self.model.disable_adapter():
                yield self.model
            return
        assert self.at is None, "the weights at the start are gone by then: ask for the base first"
        yield self.model

    def step(self, checkpoint: Checkpoint) -> nn.Module:
        """The model with the weights of a checkpoint; CheckpointError E155 for one of another recipe."""
        if self.at != checkpoint.step:
            put_tensors(self.places, checkpoint)
            self.at = checkpoint.step
            self.swaps.append(checkpoint.step)
        return self.model
