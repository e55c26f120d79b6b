"""Decoding of a Llama-shaped model: prompts are read by the layers that train, then rows go on a token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.forest import Forest
from tunesmith.models.forward import active_module, base_model, decoder_of, logit_softcap
from tunesmith.models.heads import has_head, is_encoder
from tunesmith.models.layer.function import Call, close_half, forward_layer, normed
from tunesmith.models.layer.heads import Rotation, by_key_head, heads_of
from tunesmith.models.layer.module import FastLayer
from tunesmith.models.layer.parts import gate
from tunesmith.models.layer.weights import Shape, Weights
from tunesmith.models.native import decode
from tunesmith.models.native.decode import MANY
from tunesmith.models.native.step import Layers
from tunesmith.models.prompts import positions_taken
from tunesmith.models.rounding import missing
from tunesmith.models.scratch import Loan, scratch
from tunesmith.rollout.config import Held
from tunesmith.rollout.engine.matrices import Head, Packs, laid_out, stacked
from tunesmith.rollout.engine.pages import Pages, Row, View

TOKENS = 4096  # of prompts that are read in one pass; a longer one alone is more
TOGETHER = 256  # tokens of a row that is gone on with


class Engine:
    """One model and the rows that are being decoded with it. It must be in evaluation mode and stay as it is.

    Engines of one base with other adapters share what is packed through `packs`, which then says how it is held.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, held: Held = "packed", packs: Packs | None = None) -> None:
        weights = layers_of(model)
        assert weights is not None, "ask `serves` first"
        self.decoder, self.base = decoder_of(model), base_model(model)
        self.embed = self.base.get_input_embeddings()
        layers = [layer for layer in self.decoder.modules() if isinstance(layer, FastLayer)]
        self.shapes = [layer.shape for layer in layers]
        like = weights[0].norms.all()[0].weight.detach()
        packs = packs or Packs(held)
        self.weights = [laid_out(each, packs, like) for each in weights]
        head = self.base.get_output_embeddings()
        assert head is not None, "a causal model without a head got past loading"
        self.head = Head(active_module(head), packs)
        shape = self.shapes[0]
        self.pages = Pages(len(layers), shape.key_heads, shape.width, like)
        self.stack = stacked(self.weights, self.shapes) if self.pages.native else None

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Row], Float[Tensor, "P V"]]:
        """A row of each prompt, and the logits of what comes next."""
        rows, logits = [Row() for _ in prompts], []
        try:
            for group in in_passes([len(prompt) for prompt in prompts]):
                logits.append(self.read_pass([prompts[at] for at in group], [rows[at] for at in group]))
        except BaseException:
            for row in rows:
                self.release(row)
            raise
        return rows, torch.cat(logits)

    def read_pass(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> Float[Tensor, "P V"]:
        """The prompts end to end, each seeing itself alone, and what makes their number of tokens a round one."""
        ends = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0)
        count = int(ends[-1])
        extra = missing(count, ends)
        lengths = [*map(len, prompts), *([extra] if extra else [])]
        starts = torch.tensor([0, *lengths]).cumsum(0)
        segments = torch.stack([starts[:-1], starts[1:], torch.full_like(starts[1:], -1)], 1)
        tokens = torch.tensor([token for prompt in prompts for token in prompt] + [0] * extra)
        places = torch.tensor(
            [place for row, prompt in zip(rows, prompts, strict=True) for place in self.pages.extend(row, len(prompt))]
        )
        forest = Forest.of(segments, ends - 1)
        states, rotation = self.begin(tokens, torch.cat([torch.arange(length) for length in lengths]))
        for number, (weights, shape) in enumerate(zip(self.weights, self.shapes, strict=True)):
            wanted = forest.wanted if number == len(self.shapes) - 1 else None
            states, kept = forward_layer(states, Call(weights, shape, rotation, forest, wanted))
            key, value = kept.attended.heads.key[:, :count], kept.attended.heads.value[:, :count]
            self.pages.keep(number, key.contiguous(), value, places)
        return self.end(states)

    @torch.no_grad()
    def step(self, rows: Sequence[Row], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Every row one token longer; the logits of what comes next."""
        return self.end(self.step_states(tokens, self.pages.view(rows)))

    @torch.no_grad()
    def go_on(self, row: Row, tokens: Sequence[int]) -> Float[Tensor, " V"]:
        """One row longer by all of `tokens`, read behind what it holds; the logits of what comes next."""
        states = None
        for begin in range(0, len(tokens), TOGETHER):
            some = torch.tensor(tokens[begin : begin + TOGETHER])
            states = self.step_states(some, self.pages.view_along(row, len(some)))
        assert states is not None, "there must be a token to go on with"
        return self.end(states[-1:])[0]

    def step_states(self, tokens: Int[Tensor, " B"], view: View) -> Float[Tensor, "B D"]:
        states, rotation = self.begin(tokens, view.lengths - 1)
        if self.stack is not None:
            self.step_stack(self.stack, states, rotation, view)
            return states
        for number, (weights, shape) in enumerate(zip(self.weights, self.shapes, strict=True)):
            states = self.step_layer(number, states, weights, shape, rotation, view)
        return states

    def step_stack(self, stack: Layers, states: Float[Tensor, "B D"], rotation: Rotation, view: View) -> None:
        """In place, MANY rows at a time: those of one text come in order, so that each sees what is before it."""
        given = states, rotation.cos, rotation.sin, view.pages, view.lengths, view.places
        for own, cos, sin, *seen in zip(*(each.split(MANY) for each in given), strict=True):
            stack.step(own, cos, sin, self.pages.layers, *seen)

    def step_layer(
        self, number: int, x: Float[Tensor, "B D"], weights: Weights, shape: Shape, rotation: Rotation, view: View
    ) -> Float[Tensor, "B D"]:
        loans: list[Loan] = []
        raw, norms = scratch("qkv", (len(x), weights.qkv.width), x), weights.norms
        weights.qkv.apply(normed(x, norms.before_attention), raw)
        query, key, value = raw.split([shape.query_width, shape.key_width, shape.key_width], 1)
        own_key = heads_of(key, shape, norms.key, rotation, loans)
        self.pages.keep(number, own_key, by_key_head(value, shape)[:, :, 0].contiguous(), view.places)
        mixed = scratch("mixed", (len(x), shape.query_width), x)
        own_query = heads_of(query, shape, norms.query, rotation, loans)
        self.pages.attend(number, own_query, view, shape.window, shape.scale, mixed)
        middle, out = torch.empty_like(x), torch.empty_like(x)
        close_half(mixed, weights.out, norms.after_attention, x, None, middle)
        both = scratch("both", (len(x), weights.gate_up.width), x)
        weights.gate_up.apply(normed(middle, norms.before_mlp), both)
        product = gate(both, out=scratch("product", (len(x), weights.gate_up.width // 2), x))
        close_half(product, weights.down, norms.after_mlp, middle, None, out)
        return out

    def begin(self, tokens: Int[Tensor, " T"], positions: Int[Tensor, " T"]) -> tuple[Float[Tensor, "T D"], Rotation]:
        states = self.embed(tokens)
        cos, sin = self.decoder.get_submodule("rotary_emb")(states[None], positions[None])
        return states, Rotation(*(each[0].to(states.dtype).contiguous() for each in (cos, sin)))

    def end(self, states: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        return self.head(self.decoder.get_submodule("norm")(states))

    def fork(self, row: Row) -> Row:
        return self.pages.fork(row)

    def release(self, row: Row) -> None:
        self.pages.release(row)


def serves(model: nn.Module) -> bool:
    """Whether the engine computes this model: on a CPU, every layer written out, every prompt of tokens alone."""
    base = base_model(model)
    if base.device.type != "cpu" or is_encoder(base.config) or has_head(base):
        return False
    if positions_taken(model) or logit_softcap(base) is not None:
        return False
    return layers_of(model) is not None


def check_held(model: nn.Module, held: Held) -> None:
    """Raises ModelError E428 where 8 bits are asked for and cannot be multiplied."""
    if held != "int8" or (serves(model) and decode.serves(base_model(model).dtype)):
        return
    dtype = str(base_model(model).dtype).removeprefix("torch.")
    if not serves(model):
        why = "this model is decoded by transformers"
    else:
        why = f"its weights are {dtype} here"
    raise ModelError(
        "E428",
        f"answers in 8 bits are made from bf16 weights of the Llama family on a CPU that multiplies them; {why}",
        where=Where(field="products"),
        fixes=[
            "--products packed (in a recipe products: packed), which is exact",
            Fix("store the weights in bf16", command="tunesmith export MODEL OUT --dtype bfloat16"),
        ],
    )


def layers_of(model: nn.Module) -> list[Weights] | None:
    """The weights of every layer; None where some layer is not written out, or is more than linear layers with LoRA."""
    decoder = decoder_of(model)
    stack = cast(nn.ModuleList, decoder.get_submodule("layers"))
    found = [layer.weights() if isinstance(layer, FastLayer) and not layer.sees_more() else None for layer in stack]
    known = [weights for weights in found if weights is not None]
    return known if known and len(known) == len(found) else None


def in_passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of prompts, as many at a time as TOKENS allow."""
    group: list[int] = []
    for at, length in enumerate(lengths):
        if group and sum(lengths[each] for each in group) + length > TOKENS:
            yield group
            group = []
        group.append(at)
    if group:
        yield group
