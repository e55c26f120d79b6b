"""Batch to scores: the one place where a model is run for training and evaluation losses."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models import trunk
from tunesmith.models.divergence import divergence
from tunesmith.models.encoder import encoder_values
from tunesmith.models.forest import Forest
from tunesmith.models.head import token_logprobs, whole_logprobs
from tunesmith.models.heads import has_head, is_encoder
from tunesmith.models.prompts import with_keys, with_prompt
from tunesmith.models.rounding import filled, rounded, with_more
from tunesmith.types import Batch, Reads, Scores


def score(model: nn.Module, batch: Batch, embeddings: Float[Tensor, "T D"] | None = None) -> Scores:
    """Log-probabilities of the batch's targets; the vocabulary is projected at the scored positions only.

    `embeddings` replaces the embedded tokens, for methods that disturb or learn them.
    """
    rows = queried_states(model, batch, embeddings)
    base = base_model(model)
    head = base.get_output_embeddings()
    assert head is not None, "a causal model without a head got past loading"
    softcap, head = logit_softcap(base), active_module(head)
    logprobs, correct, log_z = token_logprobs(rows, head, batch.target, softcap)
    far = None
    if batch.reference is not None:
        far = divergence(rows, head, batch.reference.rows, batch.reference.head, softcap)
    return Scores(logprobs, correct, log_z=log_z, divergence=far)


def queried_states(model: nn.Module, batch: Batch, embeddings: Tensor | None = None) -> Float[Tensor, "K D"]:
    """The states that predict the batch's targets; layers that can compute no other row of the last one."""
    states, places = distinct_states(model, batch, embeddings)
    return states.index_select(0, places)


def distinct_states(
    model: nn.Module, batch: Batch, embeddings: Tensor | None = None
) -> tuple[Float[Tensor, "R D"], Int[Tensor, " K"]]:
    """The same states once each, with others that make their number round, and where that of each target stands."""
    given = with_prompt(model, base_model(model).get_input_embeddings(), batch, embeddings)
    batch = given.batch
    wanted = with_more(batch.query.unique(), len(rounded(batch).tokens))
    states = states_of(model, batch, given.embeddings, wanted)
    if len(states) != len(wanted):
        states = states.index_select(0, wanted)
    return states, torch.searchsorted(wanted, batch.query)


def hidden_states(model: nn.Module, batch: Batch, embeddings: Tensor | None = None) -> Float[Tensor, "T D"]:
    """The states behind the last norm of all tokens."""
    given = with_prompt(model, base_model(model).get_input_embeddings(), batch, embeddings)
    return states_of(model, given.batch, given.embeddings)[given.count :]


def states_of(
    model: nn.Module, batch: Batch, embeddings: Tensor | None = None, wanted: Int[Tensor, " R"] | None = None
) -> Float[Tensor, "T D"]:
    """The states behind the last norm, of all rows, or of the wanted ones from layers that can leave others out.

    A learned prompt is among the rows.
    """
    count, batch = len(batch.tokens), rounded(batch)
    total = len(batch.tokens)
    decoder, forest = decoder_of(model), with_keys(model, Forest.of(batch.segments, wanted), batch.segments)
    if batch.entry is None:
        states = run_decoder(decoder, batch, forest, None if embeddings is None else filled(embeddings, total))
    else:
        assert embeddings is None, "states that were computed before know of no other embeddings"
        known = filled(batch.entry.load().to(batch.tokens.device), total)
        with trunk.left_out(decoder, batch.entry.layer, known[None]):
            states = run_decoder(decoder, batch, forest, known)
    return states[:count] if wanted is None else states


@torch.no_grad()
def trunk_states(model: nn.Module, batch: Batch, layer: int) -> Float[Tensor, "T D"]:
    """What the `layer` lowest layers give for all tokens, in evaluation mode; nothing above them is computed."""
    training = model.training
    model.eval()
    try:
        decoder = decoder_of(model)
        count, batch = len(batch.tokens), rounded(batch)
        with trunk.alone(decoder, layer):
            return run_decoder(decoder, batch, Forest.of(batch.segments))[:count]
    finally:
        model.train(training)


def run_decoder(
    decoder: nn.Module, batch: Batch, forest: Forest, embeddings: Tensor | None = None
) -> Float[Tensor, "T D"]:
    out = decoder(
        input_ids=batch.tokens[None] if embeddings is None else None,
        inputs_embeds=None if embeddings is None else embeddings[None],
        position_ids=batch.positions[None],
        use_cache=False,
        forest=forest,
    )
    return out.last_hidden_state.flatten(0, 1)


def decoder_of(model: nn.Module) -> PreTrainedModel:
    """The part between the tokens and the states that a head reads."""
    base = base_model(model)
    decoder = base.base_model if has_head(base) else base.get_decoder()
    assert isinstance(decoder, PreTrainedModel)
    return decoder


def base_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face causal model inside an adapter wrapper, adapters still in place."""
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()  # pyright: ignore[reportCallIssue]
    assert isinstance(inner, PreTrainedModel)
    return inner


def active_module(module: nn.Module) -> nn.Module:
    """The module, or the copy that PEFT trains in its place (modules_to_save) while the adapter is at work."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, ModulesToSaveWrapper):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        return module.original_module if module.disable_adapters or not active else module.modules_to_save[active[0]]
    if isinstance(module, TrainableTokensWrapper) and module.disable_adapters:
        return module.original_module
    return module


def logit_softcap(model: PreTrainedModel) -> float | None:
    return model.config.to_dict().get("final_logit_softcapping")


def read(model: nn.Module, batch: Batch, reads: Reads, embeddings: Float[Tensor, "T D"] | None = None) -> Scores:
    """What an objective reads of the model: log-probabilities of the targets, or the values of its head."""
    return score(model, batch, embeddings) if reads == "logprobs" else read_values(model, batch, embeddings)


def read_values(model: nn.Module, batch: Batch, embeddings: Float[Tensor, "T D"] | None = None) -> Scores:
    """Values (K, C) in fp32 of the model's head; an encoder's are those of each scored token's whole sequence."""
    base = base_model(model)
    if is_encoder(base.config):
        assert embeddings is None, "an encoder's embeddings are not disturbed"
        values = encoder_values(base, batch)
    else:
        rows = queried_states(model, batch, embeddings)
        values = base.get_submodule("score")(rows)
    nothing = values.new_zeros(0)
    return Scores(nothing, nothing, values.float())


@torch.no_grad()
def read_only(model: nn.Module, batch: Batch, reads: Reads) -> Scores:
    """`read` without gradients, in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    try:
        return read(model, batch, reads)
    finally:
        model.train(training)


@torch.no_grad()
def score_only(model: nn.Module, batch: Batch) -> Scores:
    """`score` without gradients, in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    try:
        return score(model, batch)
    finally:
        model.train(training)


@torch.no_grad()
def score_whole(model: nn.Module, batch: Batch) -> Scores:
    """`score_only` by torch's log_softmax over whole rows, so that last digits are those of programs that take that.

    A state that predicts several targets is projected once.
    """
    training = model.training
    model.eval()
    try:
        rows, places = distinct_states(model, batch)
        base = base_model(model)
        head = base.get_output_embeddings()
        assert head is not None, "a causal model without a head got past loading"
        return Scores(*whole_logprobs(rows, active_module(head), places, batch.target, logit_softcap(base)))
    finally:
        model.train(training)


@torch.no_grad()
def states_only(model: nn.Module, batch: Batch) -> Float[Tensor, "K D"]:
    """The states that predict the batch's targets, in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    try:
        return queried_states(model, batch)
    finally:
        model.train(training)
