"""The models of a server, opened once and kept: what each can do, and the worker that decodes for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UsageError, Where, nearest
from tunesmith.evaluate.scoring import Scorer
from tunesmith.export.opening import ModelSource, Which, find_model, open_source
from tunesmith.export.shelf import Shelf, base_key
from tunesmith.models.architecture import build_config
from tunesmith.models.forward import base_model
from tunesmith.models.heads import is_encoder
from tunesmith.models.native.decode import PLACES
from tunesmith.models.safety import read_config
from tunesmith.rollout.decoding import settled
from tunesmith.rollout.engine.engine import Engine, check_held, serves
from tunesmith.rollout.engine.matrices import Packs
from tunesmith.rollout.generator import context_length, stop_ids
from tunesmith.rollout.orders import Speaker
from tunesmith.rollout.scheduler import BatchScheduler, EngineScheduler, Scheduler
from tunesmith.serve.encoder import Encoder
from tunesmith.serve.grammar import Grammars
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.settings import Limits
from tunesmith.serve.worker import Worker

Gives = Literal["text", "values", "embeddings"]
ROUTES: dict[Gives, str] = {
    "text": "/v1/chat/completions and /v1/completions",
    "values": "/v1/score",
    "embeddings": "/v1/embeddings",
}


@dataclass(frozen=True, slots=True)
class Writer:
    """A model that writes text."""

    name: str
    speaker: Speaker
    grammars: Grammars
    pages: int  # that one order may take; 0: as many as it likes

    @property
    def tokenizer(self) -> Tokenizer:
        return self.speaker.tokenizer


class House:
    """Every model by its name in requests. Raises what opening a model raises, before anything is served."""

    def __init__(self, named: Mapping[str, str], limits: Limits, which: Which = "auto") -> None:
        self.sources = {name: find_model(model, which) for name, model in named.items()}
        self.gives: dict[str, Gives] = {name: gives(source) for name, source in self.sources.items()}
        self.writers: dict[str, Writer] = {}
        self.scorers: dict[str, Scorer] = {}
        self.encoders: dict[str, Encoder] = {}
        self.limits = limits
        self.packs: dict[tuple[str, ...], Packs] = {}  # by the base that several models share
        self.schedulers: dict[str, Scheduler] = {}
        texts = {name: source for name, source in self.sources.items() if self.gives[name] == "text"}
        self.shelf = Shelf(texts, limits.dtype)
        for name, source in self.sources.items():
            self.open(name, source)
        self.worker = Worker(self.schedulers, limits.queue, limits.wait_seconds)

    def open(self, name: str, source: ModelSource) -> None:
        match self.gives[name]:
            case "text":
                self.open_writer(name, source)
            case "values":
                opened = open_source(source, wants="values")
                self.scorers[name] = Scorer(opened.model, opened.tokenizer, opened.source.meaning)
            case "embeddings":
                self.encoders[name] = Encoder.open(source)

    def open_writer(self, name: str, source: ModelSource) -> None:
        """In the engine where it serves the model; else beside the other models of its base, one batch at a time."""
        opened = self.shelf.open(name)
        tokenizer = opened.tokenizer
        view, packs = self.view_of(opened.model, name)
        stops, context = stop_ids(base_model(view), tokenizer), context_length(view)
        speaker = Speaker(tokenizer, stops, context)
        check_held(view, self.limits.held)
        pages = 0
        if serves(view):
            engine = Engine(view, self.limits.held, packs)
            pages = max(1, self.limits.cache_bytes // engine.pages.bytes_of(PLACES))
            self.schedulers[name] = EngineScheduler(engine, speaker, self.limits.batch_size, pages)
        else:
            self.schedulers[name] = self.plain_scheduler(name, source, speaker, view)
        width = int(base_model(view).get_input_embeddings().get_parameter("weight").shape[0])
        self.writers[name] = Writer(name, speaker, Grammars(tokenizer, stops, width), pages)

    def plain_scheduler(self, name: str, source: ModelSource, speaker: Speaker, view: nn.Module) -> Scheduler:
        several = self.shelf.several(source)
        if several is None:
            return BatchScheduler(lambda _: view, {name: speaker}, self.limits.batch_size)
        for other in self.shelf.companions(source):
            found = self.schedulers.get(other)
            if isinstance(found, BatchScheduler):
                found.speakers[name] = speaker
                return found
        return BatchScheduler(lambda name: self.shelf.activate(several, name), {name: speaker}, self.limits.batch_size)

    def view_of(self, model: nn.Module, name: str) -> tuple[nn.Module, Packs]:
        """The module that decodes, and what is packed of its weights.

        A base that several models share is prepared once, and they are switched on that one.
        """
        source = self.shelf.sources[name]
        several, key = self.shelf.several(source), base_key(source)
        if several is None or key is None:
            return settled(model), Packs(self.limits.held)
        if key not in self.packs:
            view = settled(model)
            assert isinstance(view, PeftModel | PreTrainedModel), "a copy of what it was made of"
            several = self.shelf.shared[key] = replace(several, model=view)
            self.packs[key] = Packs(self.limits.held)
        return self.shelf.activate(several, name), self.packs[key]

    def writer(self, name: str) -> Writer:
        self.check(name, "text")
        return self.writers[name]

    def scorer(self, name: str) -> Scorer:
        self.check(name, "values")
        return self.scorers[name]

    def encoder(self, name: str) -> Encoder:
        self.check(name, "embeddings")
        return self.encoders[name]

    def check(self, name: str, wanted: Gives) -> None:
        """Refusal E412 for a name that is not here, E423 for a model that gives something else."""
        found = self.find(name)
        if found != wanted:
            raise Refusal("E423", f"{name} gives {found}, not {wanted}", field="model", fix=f"use {ROUTES[found]}")

    def find(self, name: str) -> Gives:
        if name not in self.sources:
            near = nearest(name, self.sources)
            fix = f"did you mean {near}?" if near else f"there are: {', '.join(self.sources)}"
            raise Refusal("E412", f"there is no model {name[:200]!r}", field="model", fix=fix)
        return self.gives[name]

    def start(self) -> None:
        self.worker.start()

    def close(self) -> None:
        self.worker.close()


def gives(source: ModelSource) -> Gives:
    if source.outputs:
        return "values"
    return "embeddings" if is_encoder(build_config(read_config(source.base)[0], source.base)) else "text"


def name_models(given: Sequence[str]) -> dict[str, str]:
    """NAME=MODEL or MODEL, by the names that requests use. UsageError E020 for a name that comes twice."""
    named: dict[str, str] = {}
    for each in given:
        name, sign, model = each.partition("=")
        if not sign or "/" in name or not name or not model:
            name, model = each, each
        if name in named:
            where = Where("command line", field="MODEL")
            raise UsageError("E020", f"two models are called {name!r}", where=where, fixes=[f"{name}-2={model}"])
        named[name] = model
    return named
