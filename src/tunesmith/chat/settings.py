"""How answers of a conversation are drawn: everything that sampling knows, changed by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

from tunesmith.config import Config
from tunesmith.configuring.reader import read_value
from tunesmith.errors import TunesmithError, UsageError, Where, nearest
from tunesmith.rollout.choosing import Sampling
from tunesmith.rollout.ranges import Bias, MinP, Penalty, Repetition, Temperature, TopP


class ChatSettings(Config):
    """The settings of `Sampling`, with their ranges and what they begin as in a conversation."""

    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = Field(default=512, description="Longest answer, tokens.")
    temperature: Temperature = Field(default=0.7, description="0 takes the likeliest token.")
    top_p: TopP = Field(default=0.95, description="Mass of the tokens drawn from.")
    top_k: Annotated[int, Field(ge=0)] = Field(default=0, description="Draw from the k likeliest tokens; 0: all.")
    min_p: MinP = Field(default=0.0, description="Least share of the likeliest's.")
    repetition: Repetition = Field(default=1.0, description="Divides what was said before.")
    presence: Penalty = Field(default=0.0, description="Taken from what the answer holds already.")
    frequency: Penalty = Field(default=0.0, description="The same, for each time.")
    bias: dict[int, Bias] = Field(default_factory=dict, description="Added to the logits of tokens: {12: -5}.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of the draws.")

    def sampling(self) -> Sampling:
        return Sampling(**{**self.model_dump(exclude={"bias"}), "bias": tuple(self.bias.items())})

    def changed(self, assignment: str) -> ChatSettings:
        """With one `name=value` more. UsageError E481: no such setting; E482: a value that it cannot have."""
        name, sign, text = assignment.partition("=")
        name, known = name.strip().replace("-", "_"), type(self).model_fields
        if not sign or name not in known:
            near = name if name in known else nearest(name, known)
            message = f"{name} is set by {name}=VALUE" if name in known else f"there is no setting {name[:40]!r}"
            value = text.strip() or known[near or "temperature"].get_default(call_default_factory=True)
            fixes = [f"did you mean {near}?"] if near and near != name else []
            fixes += [f"/set {near}={value}, or --set {near}={value}"] if near else ["/set alone lists every setting"]
            evidence = [f"settings: {', '.join(known)}"]
            raise UsageError("E481", message, where=Where(field=assignment), evidence=evidence, fixes=fixes)
        try:
            return ChatSettings.model_validate({**self.model_dump(), name: read_value(text.strip())})
        except (ValidationError, TunesmithError) as error:
            told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.diagnostic.message
            message = f"{name} cannot be {text.strip()!r}: {told[:1].lower()}{told[1:]}"
            fixes = [f"{name}={known[name].get_default(call_default_factory=True)} is what it begins as"]
            raise UsageError("E482", message, where=Where(field=assignment), fixes=fixes) from error

    def listed(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of each."""
        values = self.model_dump()
        return [(name, str(values[name]), field.description or "") for name, field in type(self).model_fields.items()]
