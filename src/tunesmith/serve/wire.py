"""Requests as OpenAI's clients write them; what is not known is refused, never left out in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from tunesmith.config import Config
from tunesmith.errors import nearest
from tunesmith.rollout.ranges import Bias, MinP, Penalty, Repetition, Temperature, TopP
from tunesmith.serve.refusals import Refusal
from tunesmith.types import Message, Role

Found = TypeVar("Found", bound=Config)
Text = Annotated[str, Field(max_length=4_000_000)]


class Part(Config):
    """A part of a message; only text is served."""

    type: Literal["text"]
    text: Text


class Called(Config):
    name: str
    arguments: str


class ToolCall(Config):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Called
    index: int | None = None


class Turn(Config):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None

    def message(self) -> Message:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or ())
        calls = tuple(call.model_dump(exclude_none=True) for call in self.tool_calls or ())
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role, text, calls, self.name, self.tool_call_id)


class Function(Config):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Config):
    type: Literal["function"]
    function: Function

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class Named(Config):
    name: str


class NamedTool(Config):
    type: Literal["function"]
    function: Named


class Schema(Config):
    name: str = "answer"
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class Form(Config):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: Schema | None = None


class StreamOptions(Config):
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(Config):
    """What chats and completions share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: int | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1024)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=16)]
        | None
    ) = None
    ignore_eos: bool = False
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatAsked(Asked):
    messages: Annotated[list[Turn], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Form | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionAsked(Asked):
    prompt: Text | list[int] | list[Text] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class EmbeddingAsked(Config):
    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class Scorable(Config):
    """An answer to a prompt; both texts, or the prompt a chat."""

    prompt: Text | list[Turn]
    answer: Text


class ScoreAsked(Config):
    """`input`: for a reward model prompts with answers, for a classifier texts or chats."""

    model: str
    input: Annotated[list[Scorable | Text | list[Turn]], Field(min_length=1, max_length=2048)]
    user: str | None = None


def read(kind: type[Found], body: dict[str, Any]) -> Found:
    """The request, or Refusal E411 that names the field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise refused(kind, error) from error


def refused(kind: type[Config], error: ValidationError) -> Refusal:
    """The fault that lies deepest: of several readings of a field the one that went furthest."""
    found = max(error.errors(include_url=False, include_input=False), key=lambda each: len(each["loc"]))
    names = [str(part) for part in found["loc"] if not (isinstance(part, str) and ("[" in part or part in SHAPES))]
    field = ".".join(names)
    if found["type"] == "extra_forbidden":
        known = [each.alias or name for name, each in kind.model_fields.items()]
        near = nearest(names[-1], known) if len(names) == 1 else None
        fix = f"did you mean {near}?" if near else "leave it out"
        return Refusal("E411", f"{field} is not a field that is served", field=field, fix=fix)
    return Refusal("E411", f"{field}: {found['msg']}", field=field, fix="give a value of that kind")


SHAPES = {"str", "int", "Scorable", "NamedTool"}  # what pydantic puts into the place of a fault in a union
