"""The loop of a conversation: messages are answered, commands change it, and of two answers one is voted for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.chat.conversation import Conversation, Turn
    from tunesmith.chat.voice import Voice, Voices
    from tunesmith.chat.votes import Duel, Vote, Votes
    from tunesmith.cli.chat_screen import Screen

COMMANDS = {
    "system": ("TEXT", "set the system message; without TEXT show it, with none remove it"),
    "set": ("NAME=VALUE", "change how answers are drawn; without NAME show every setting"),
    "retry": ("", "draw another answer to the last message"),
    "undo": ("", "take the last message and its answer back, and the vote on it; again: the one before"),
    "clear": ("", "forget the conversation, keep the system message"),
    "save": ("FILE", "write the conversation to a .jsonl file of training records"),
    "load": ("FILE", "go on from the last conversation of a file; a question without an answer is answered"),
    "use": ("MODEL", "go on with another model"),
    "help": ("", "this list"),
    "bye": ("", "leave"),
}
ELSEWHERE = {"exit": "bye", "quit": "bye", "reset": "clear", "new": "clear", "regenerate": "retry", "model": "use"}
VOTE = "1, 2, tie, both bad, or Enter to skip> "


class Talk:
    """The loop of a conversation: messages are answered, lines that begin with / are commands."""

    def __init__(
        self,
        conversation: Conversation,
        answering: list[Voice],
        screen: Screen,
        voices: Voices | None = None,
        votes: Votes | None = None,
    ) -> None:
        self.conversation, self.answering, self.screen = conversation, answering, screen
        self.voices, self.votes = voices, votes
        self.commands: dict[str, Callable[[str], None]] = {
            "system": self.system, "set": self.set, "retry": self.retry, "undo": self.undo, "clear": self.clear,
            "save": self.save, "load": self.load, "use": self.use, "help": self.help,
        }  # fmt: skip

    def run(self) -> None:
        while (line := self.screen.line("> ")) is not None and line != "/bye":
            self.attempt(line)

    def attempt(self, line: str) -> None:
        """What fails is told, so that a person can go on; a pipe ends there, and who has no model left."""
        from tunesmith.cli.output import show
        from tunesmith.errors import TunesmithError

        try:
            self.take(line)
        except TunesmithError as error:
            if not self.screen.talks or not self.answering:
                raise
            show(error.diagnostic)

    def take(self, line: str) -> None:
        """Answer a message or do what a command says; // begins a message with /. UsageError E483: no such command."""
        from tunesmith.errors import UsageError, nearest

        if not line.startswith("/") or line.startswith("//"):
            self.say(line.removeprefix("/") if line.startswith("//") else line)
            return
        name, _, rest = line[1:].partition(" ")
        if name in self.commands:
            self.commands[name](rest.strip())
            return
        near = ELSEWHERE.get(name) or nearest(name, COMMANDS)
        fixes = [f"did you mean /{near}?"] if near else [f"there are: {', '.join(f'/{one}' for one in COMMANDS)}"]
        fixes.append(f"a message that begins with /: /{line[:40]}")
        raise UsageError("E483", f"there is no command /{name[:40]}", fixes=fixes)

    def say(self, text: str) -> None:
        from tunesmith.cli.output import show

        if not text:
            return
        turn, warnings = self.conversation.ask(text, self.answering)
        for warning in warnings:
            show(warning)
        if self.votes is None:
            self.answer(turn)
        else:
            self.compare(turn, self.votes)

    def answer(self, turn: Turn) -> None:
        """One answer, shown while it is made; Ctrl-C keeps what was said so far."""
        (voice,) = self.answering
        said: list[str] = []
        try:
            self.listen(voice, turn, lambda piece: (said.append(piece), self.screen.piece(piece)))
        except KeyboardInterrupt:
            if not self.screen.talks:
                raise
        finally:
            self.screen.end()
        text = "".join(said)
        self.screen.spoken(voice.spoken)
        self.screen.told({"model": voice.name, "message": turn.text, "answer": text, **figures(voice)})
        if text.strip():
            self.conversation.keep(turn, text)
        else:
            self.screen.note("the answer is empty: your message is taken back")

    def listen(self, voice: Voice, turn: Turn, hear: Callable[[str], Any]) -> None:
        sampling = self.conversation.settings.sampling()
        prompt = voice.tokenizer.prompt_ids(turn.seen)
        with closing(voice.answer(prompt, sampling, turn.name)) as pieces:
            for piece in pieces:
                hear(piece)

    def compare(self, turn: Turn, votes: Votes) -> None:
        """Both answers, shown when both are whole; the one that is preferred goes on."""
        from tunesmith.chat.votes import Duel
        from tunesmith.cli.output import console

        said: dict[str, list[str]] = {voice.name: [] for voice in self.answering}
        try:
            with console().status("both are answering"):
                for voice in self.answering:
                    self.listen(voice, turn, said[voice.name].append)
        except KeyboardInterrupt:
            if not self.screen.talks:
                raise
            self.screen.note("stopped: your message is taken back")
            return
        duel = Duel.of(turn.seen, {name: "".join(pieces) for name, pieces in said.items()}, votes.seed)
        one, two = duel.texts
        self.screen.told({"message": turn.text, "answers": [one, two]})
        self.screen.duel(one, two)
        self.go_on(turn, duel.texts, self.vote_on(duel, turn, votes))

    def vote_on(self, duel: Duel, turn: Turn, votes: Votes) -> Vote | None:
        """None where there is nothing to choose between, or nobody chose; both bad takes its turn back and stays."""
        one, two = duel.texts
        if one == two or not (one.strip() and two.strip()):
            self.screen.note("the answers are equal, or one is empty: nothing to vote on")
            if not self.screen.talks:  # a script cannot know, and has a line for every vote
                self.read_vote()
            return "2" if two.strip() and not one.strip() else None
        vote = self.read_vote()
        if vote is not None:
            kept = None if vote == "bad" else turn.number
            votes.write(duel, vote, self.conversation.settings.model_dump(), kept)
        return vote

    def read_vote(self) -> Vote | None:
        """UsageError E483 for a line of a pipe that is no vote; a command takes the place of a vote."""
        from tunesmith.chat.votes import WORDS
        from tunesmith.errors import UsageError

        while (line := self.screen.line(VOTE)) not in (None, "", "s", "skip"):
            word = " ".join(line.lower().split())
            if word in WORDS:
                return WORDS[word]
            if line.startswith("/"):
                self.screen.pending.append(line)
                return None
            if not self.screen.talks:
                raise UsageError("E483", f"{line[:40]!r} is no vote", fixes=["1, 2, tie, both bad, or an empty line"])
            self.screen.note(f"{line[:40]!r} is no vote")
        return None

    def go_on(self, turn: Turn, texts: tuple[str, str], vote: Vote | None) -> None:
        chosen = texts[1] if vote == "2" else texts[0]
        if vote == "bad" or not chosen.strip():
            self.screen.note("neither goes on: your message is taken back")
            return
        self.conversation.keep(turn, chosen)
        if vote in (None, "tie"):
            self.screen.note("1 goes on")

    def system(self, text: str) -> None:
        if not text:
            self.screen.note(self.conversation.system or "there is no system message")
            return
        self.conversation.set_system(None if text == "none" else text)
        self.screen.note("the system message is gone" if text == "none" else "the system message is set")

    def set(self, assignment: str) -> None:
        if assignment:
            self.conversation.settings = self.conversation.settings.changed(assignment)
            name = assignment.partition("=")[0].strip().replace("-", "_")
            self.screen.note(f"{name} is {self.conversation.settings.model_dump()[name]}")
            return
        for name, value, meaning in self.conversation.settings.listed():
            self.screen.note(f"{name:15} {value:8} {meaning}")

    def retry(self, _: str) -> None:
        if self.conversation.settings.temperature == 0:
            self.screen.note("temperature is 0: the answer will be the same; /set temperature=0.7")
        text = self.take_back()
        if text is not None:
            self.say(text)

    def undo(self, _: str) -> None:
        text = self.take_back()
        if text is not None:
            self.screen.note(f"taken back: {text[:80]}")

    def take_back(self) -> str | None:
        number, text = self.conversation.number, self.conversation.undo()
        if text is None:
            self.screen.note("there is nothing to take back")
        elif self.votes is not None and self.votes.take_back(number):
            self.screen.note("the vote is taken back too")
        return text

    def clear(self, _: str) -> None:
        self.conversation.clear()
        self.settle()
        self.screen.note("the conversation is forgotten")

    def settle(self) -> None:
        if self.votes is not None:
            self.votes.settle()

    def save(self, name: str) -> None:
        from tunesmith.chat.files import save

        self.screen.note(save(self.conversation.messages, named_file("save", name)))

    def load(self, name: str) -> None:
        from tunesmith.chat.files import load

        loaded = load(named_file("load", name))
        self.conversation.replace(loaded.messages)
        self.settle()
        told = f"{len(loaded.messages)} messages"
        if loaded.question is not None:
            self.screen.note(f"{told}; the last question has no answer yet: {loaded.question[:80]}")
            self.say(loaded.question)
            return
        if loaded.left_out:
            told += f"; {loaded.left_out} behind the last answer left out"
        self.screen.note(f"{told}; your turn")

    def use(self, name: str) -> None:
        """Go on with another model; the conversation stays. UsageError E483 where two are compared."""
        from tunesmith.cli.output import console
        from tunesmith.errors import UsageError

        if self.voices is None or not name:
            message = "two models are compared here" if name else "/use names no model"
            raise UsageError("E483", message, fixes=["/use MODEL in a conversation with one model"])
        before = self.answering.pop().name  # who holds it keeps it in memory beside the other one
        failed: BaseException | None = None
        with console().status(f"loading {name}"):
            try:
                self.answering = [self.voices.another(name)]
            except BaseException as error:
                failed = error
                clear_frames(error.__traceback__)  # which hold what was loaded
            if failed is not None:
                self.answering = [self.voices.open(before)]
                raise failed
        self.screen.note(self.answering[0].source.told)

    def help(self, _: str) -> None:
        for name, (given, meaning) in COMMANDS.items():
            self.screen.note(f"{f'/{name} {given}':18} {meaning}")
        self.screen.note('""" begins and ends a message of several lines; // begins a message with /')


def figures(voice: Voice) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(voice.spoken), "tokens_per_second": voice.spoken.tokens_per_second}


def named_file(command: str, name: str) -> Path:
    from tunesmith.errors import UsageError

    if not name:
        raise UsageError("E483", f"/{command} names no file", fixes=[f"/{command} chats.jsonl"])
    return Path(name).expanduser()
