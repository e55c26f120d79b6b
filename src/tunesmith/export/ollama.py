"""A Modelfile for Ollama: its template is found from the model's own by what that writes around each message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Diagnostic, Where
from tunesmith.export.gguf.vocabulary import Vocabulary
from tunesmith.types import Message, Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
MARKS: dict[Role, str] = {role: f"\u2983{role}\u2984" for role in ROLES}
TALK: tuple[tuple[Role, str], ...] = (
    ("user", "Who?"),
    ("assistant", "Ada."),
    ("user", "When?"),
    ("assistant", "1815."),
    ("user", "Where?"),
)


Talk = Sequence[tuple[Role, str]]
Render = Callable[[Talk, bool], str | None]


@dataclass(frozen=True, slots=True)
class Around:
    """What a template writes before and after a message of each role, first of all, and to ask for an answer.

    `alone` is what it writes where no system message is given.
    """

    pairs: dict[Role, tuple[str, str]]
    ask: str
    alone: str

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the Go template below writes it."""
        lead = "" if messages[0].role == "system" else self.alone
        parts = [self.pairs[each.role][0] + str(each.content) + self.pairs[each.role][1] for each in messages]
        return lead + "".join(parts) + self.ask

    def go(self) -> str:
        """Ollama's language; the answer itself is the last thing, so what follows one is written only between turns."""
        lead = "{{ if not .System }}" + self.alone + "{{ end }}" if self.alone else ""
        tests = [f'eq .Role "{role}"' for role in self.pairs]
        said = [f"{before}{{{{ .Content }}}}{after}" for before, after in self.pairs.values()]
        cases = "{{ else if ".join(f"{test} }}}}{text}" for test, text in zip(tests, said, strict=True))
        return f"{lead}{{{{ range .Messages }}}}{{{{ if {cases}{{{{ end }}}}{{{{ end }}}}{self.ask}"


def modelfile(tokenizer: Tokenizer, words: Vocabulary, file: str, context: int) -> tuple[str, list[Diagnostic]]:
    """The text of the file; W431 where system messages have no place, W432 where the template has no such form."""
    lines, warnings = [f"FROM ./{file}"], []
    around = found_around(tokenizer, words) if tokenizer.has_template else None
    if around is None:
        warnings.append(unknown_form(tokenizer))
    else:
        lines.append(f'TEMPLATE """{around.go()}"""')
        if "system" not in around.pairs:
            warnings.append(no_system(tokenizer))
    stops = [words.tokens[at] for at in tokenizer.eos_ids if at < len(words.tokens)]
    lines += [f'PARAMETER stop "{quoted(stop)}"' for stop in stops]
    lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n", warnings


def quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def unknown_form(tokenizer: Tokenizer) -> Diagnostic:
    message = "the chat template has no form in Ollama's language that writes the same: the Modelfile has none"
    evidence = ("Ollama then uses one that it knows by the template in the GGUF file, or none",)
    return Diagnostic("W432", message, "warning", Where(str(tokenizer.folder)), evidence, ())


def no_system(tokenizer: Tokenizer) -> Diagnostic:
    message = "the chat template has no place for system messages: Ollama will leave them out"
    return Diagnostic("W431", message, "warning", Where(str(tokenizer.folder)), (), ())


def found_around(tokenizer: Tokenizer, words: Vocabulary) -> Around | None:
    """What the template writes around messages; None when it is not the same at every turn."""
    whole = parts_of(tokenizer, words, ROLES)
    return whole or parts_of(tokenizer, words, ("user", "assistant"))


def parts_of(tokenizer: Tokenizer, words: Vocabulary, roles: tuple[Role, ...]) -> Around | None:
    """Taken from one conversation and held against longer ones."""
    bos = words.tokens[words.special["bos"]] if words.begins and "bos" in words.special else ""

    def render(talk: Talk, ask: bool) -> str | None:
        try:
            text = tokenizer.render([Message(role, said) for role, said in talk], add_generation_prompt=ask)
        except DataError:
            return None
        return text.removeprefix(bos)

    turns: Talk = [("user", MARKS["user"]), ("assistant", MARKS["assistant"]), ("user", MARKS["user"])]
    plain, asked = render(turns[:1], False), render(turns[:1], True)
    answered, whole = render(turns[:2], False), render(turns, False)
    if plain is None or asked is None or answered is None or whole is None:
        return None
    begun = asked.startswith(plain) and answered.startswith(plain) and whole.startswith(answered)
    before, _, after = plain.partition(MARKS["user"])
    answer = answered.removeprefix(plain).partition(MARKS["assistant"])
    lead = whole.removeprefix(answered).partition(MARKS["user"])[0]
    if not begun or not before.endswith(lead):
        return None
    pairs: dict[Role, tuple[str, str]] = {"user": (lead, after), "assistant": (answer[0], answer[2])}
    if "system" in roles:
        tail = lead + MARKS["user"] + after
        led = render([("system", MARKS["system"]), ("user", MARKS["user"])], False)
        if led is None or MARKS["system"] not in led or not led.endswith(tail):
            return None
        system = led.removesuffix(tail).partition(MARKS["system"])
        pairs = {"system": (system[0], system[2]), **pairs}
    around = Around(pairs, asked.removeprefix(plain), before.removesuffix(lead))
    return around if holds(around, render) else None


def holds(around: Around, render: Render) -> bool:
    """Whether it writes what the template writes, and nothing that Ollama's language would take for a command."""
    written = [around.ask, around.alone, *(part for pair in around.pairs.values() for part in pair)]
    if any(sign in part for part in written for sign in ("{{", "}}", '"""')):
        return False
    leads: list[tuple[tuple[Role, str], ...]] = [(), (("system", "Be brief."),)] if "system" in around.pairs else [()]
    talks = [(*lead, *TALK[:length]) for lead in leads for length in (1, 3, 5)]
    return all(around.render([Message(role, said) for role, said in talk]) == render(talk, True) for talk in talks)
