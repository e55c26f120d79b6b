"""Three small conversations that show whether a model's template can be trained with, before any data is read."""

from __future__ import annotations

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import BadInput, Diagnostic, Fix, Where
from tunesmith.types import Conversation, Message

_QUESTION = (Message("user", "Which colour is the sky?"), Message("assistant", "It is blue."))
PROBES: dict[str, tuple[Message, ...]] = {
    "a question and its answer": _QUESTION,
    "a system message": (Message("system", "Answer in one sentence."), *_QUESTION),
    "two rounds": (*_QUESTION, Message("user", "And grass?"), Message("assistant", "It is green.")),
}


def check_template(tokenizer: Tokenizer) -> list[Diagnostic]:
    """What the template cannot do: warnings, and an error when not even one question can be trained."""
    found: list[Diagnostic] = [rowless(tokenizer)] if tokenizer.rowless else []
    for index, (name, messages) in enumerate(PROBES.items()):
        try:
            encode_record(Conversation(messages, "probe", 1), tokenizer, DataConfig())
        except BadInput as error:
            if index == 0:
                return [error.diagnostic]
            found.append(
                Diagnostic(
                    "W072",
                    f"the chat template does not work with {name}: {error.diagnostic.message}",
                    "warning",
                    where=Where(file=str(tokenizer.folder)),
                    evidence=error.diagnostic.evidence,
                    fixes=(Fix(f"leave records with {name} out: data.on_bad=skip", {"data.on_bad": "skip"}),),
                )
            )
    stop = check_stop_token(tokenizer)
    return found if stop is None else [*found, stop]


def rowless(tokenizer: Tokenizer) -> Diagnostic:
    """W510: tokens that the model has no row for."""
    named = tokenizer.rowless
    return Diagnostic(
        "W510",
        f"the tokenizer adds {len(named)} tokens that the model's embedding has no row for; as text they stay text",
        "warning",
        where=Where(file=str(tokenizer.folder / "tokenizer.json"), field="added_tokens"),
        evidence=(
            ", ".join(map(repr, named[:10])),
            f"the tokenizer has ids below {tokenizer.vocab_size:,} without them",
        ),
        fixes=(Fix("to train them, name them as model.new_tokens"),),
    )


def check_stop_token(tokenizer: Tokenizer) -> Diagnostic | None:
    """A warning when the token that ends a trained answer would not stop a generation; None when it would.

    Raises ModelError without a template, DataError when the template refuses a plain question.
    """
    conversation = Conversation(_QUESTION, "probe", 1)
    example = encode_record(conversation, tokenizer, DataConfig()).examples[0]
    last = int(example.tokens[example.weights > 0][-1])
    stops = tokenizer.declared_eos_ids or tokenizer.eos_ids
    if last in stops:
        return None
    where = Where(file=str(tokenizer.folder / "generation_config.json"), field="eos_token_id")
    named = ", ".join(f"{tokenizer.token_text(id)!r} ({id})" for id in stops) or "none"
    if last not in tokenizer.control.ids.values():
        return Diagnostic(
            "W061",
            "the model will never learn to stop: the chat template ends answers without an end-of-text token",
            "warning",
            where=where,
            evidence=(f"an answer ends with {tokenizer.token_text(last)!r}", f"generation stops at {named}"),
            fixes=(Fix("use the chat template of the model's publisher"),),
        )
    ending = f"{tokenizer.token_text(last)!r} ({last})"
    return Diagnostic(
        "W060",
        f"the model will not stop: answers end with {ending}, generation stops at {named}",
        "warning",
        where=where,
        evidence=(f"a trained answer: {tokenizer.decode(example.tokens[example.weights > 0])!r}",),
        fixes=(Fix(f'put {last} into "eos_token_id" of generation_config.json'),),
    )
