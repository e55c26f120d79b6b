"""What an answer is worth beside what is wanted: the scorers that a task can name."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.config import Config
from tunesmith.errors import DataError, Fix, MachineError, TunesmithError, UsageError, Where, nearest
from tunesmith.evaluate.exercise import Exercise, filled, lacks
from tunesmith.evaluate.instructions import check_instructions, follows, unfenced
from tunesmith.evaluate.json_schema import check_schema, fits, same
from tunesmith.evaluate.quantities import agrees, quantities
from tunesmith.rollout.sandbox import Limits, check_sandbox, run_program

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(?P<code>.*?)(?:\n[ \t]*```|\Z)", re.S)
INSTALL = "pip install 'tunesmith[eval]'"


class AnswerScorer(Config):
    """Scores from 0 to 1; those that are not named in SHARES are right or wrong and nothing between."""

    needs_answers: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """The name of its figure; unlike those of others of one task."""
        raise NotImplementedError

    def check(self, exercise: Exercise) -> None:
        """DataError when the exercise lacks what is compared with."""
        if self.needs_answers and not exercise.answers:
            raise lacks(exercise.where, "answer", f"{self.title} compares with it")

    def prepare(self) -> None:
        """Raise what stands in the way before any model is loaded."""

    def score(self, answer: str, exercise: Exercise) -> float:
        """The best that the answer gets for any of the right answers."""
        return max(self.compare(answer, wanted) for wanted in exercise.answers)

    def compare(self, answer: str, wanted: str) -> float:
        raise NotImplementedError


class ExactScorer(AnswerScorer):
    """The same text, white space around it aside."""

    name: Literal["exact"] = "exact"
    ignore_case: bool = Field(default=False, description="Upper and lower case are the same.")
    ignore_punctuation: bool = Field(default=False, description="Punctuation is left out.")

    @property
    def title(self) -> str:
        return "exact"

    def compare(self, answer: str, wanted: str) -> float:
        return float(self.normal(answer) == self.normal(wanted))

    def normal(self, text: str) -> str:
        text = text.lower() if self.ignore_case else text
        if self.ignore_punctuation:
            text = " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())
        return text.strip()


class ContainsScorer(AnswerScorer):
    """A right answer stands somewhere in the text, not as part of a longer word."""

    name: Literal["contains"] = "contains"
    ignore_case: bool = Field(default=True, description="Upper and lower case are the same.")

    @property
    def title(self) -> str:
        return "contains"

    def compare(self, answer: str, wanted: str) -> float:
        pattern = rf"(?<!\w){re.escape(wanted.strip())}(?!\w)"
        return float(re.search(pattern, answer, re.I if self.ignore_case else 0) is not None)


class RegexScorer(AnswerScorer):
    """A pattern finds something; where it has a group, what the last find holds there is a right answer."""

    name: Literal["regex"] = "regex"
    pattern: str = Field(description="A regular expression of Python; with a group, what it holds is compared.")

    @property
    def title(self) -> str:
        return "regex"

    def prepare(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = f"the pattern is no regular expression: {error}"
            fixes = ["quote it in single quotes in YAML, so that backslashes stay"]
            raise UsageError("E464", message, where=Where(self.pattern), fixes=fixes) from error

    def check(self, exercise: Exercise) -> None:
        if re.compile(self.pattern).groups:
            super().check(exercise)

    def score(self, answer: str, exercise: Exercise) -> float:
        found = list(re.finditer(self.pattern, answer))
        if not found or not found[-1].re.groups:
            return float(bool(found))
        held = next((group for group in found[-1].groups() if group is not None), "")
        return float(held.strip() in [wanted.strip() for wanted in exercise.answers])


class NumericScorer(AnswerScorer):
    """The last number of the answer is the last one of the right answer, in any unit of its kind."""

    name: Literal["numeric"] = "numeric"
    tolerance: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="Share that it may be off by.")
    which: Literal["first", "last"] = Field(default="last", description="Which number of the answer is meant.")
    unit_required: bool = Field(default=True, description="A unit that is wanted must stand there.")

    @property
    def title(self) -> str:
        return "numeric"

    def check(self, exercise: Exercise) -> None:
        super().check(exercise)
        for wanted in exercise.answers:
            if not quantities(wanted):
                raise lacks(
                    exercise.where, "number in its answer", f"{wanted[:60]!r} holds none", "choose another scorer"
                )

    def compare(self, answer: str, wanted: str) -> float:
        found = quantities(answer)
        if not found:
            return 0.0
        chosen = found[0 if self.which == "first" else -1]
        return float(agrees(chosen, quantities(wanted)[-1], self.tolerance, unit_required=self.unit_required))


class SchemaScorer(AnswerScorer):
    """The whole answer is JSON that a schema allows; the task's, or the field `schema` of the exercise."""

    needs_answers: ClassVar[bool] = False
    name: Literal["json_schema"] = "json_schema"
    allowed: dict[str, Any] | None = Field(default=None, alias="schema", description="The schema of every answer.")

    @property
    def title(self) -> str:
        return "json_schema"

    def prepare(self) -> None:
        if self.allowed is not None:
            check_schema(self.allowed, Where(field="schema"))

    def check(self, exercise: Exercise) -> None:
        if self.allowed is None:
            if "schema" not in exercise.fields:
                raise lacks(exercise.where, "schema", "neither has the scorer", "give the scorer a schema")
            check_schema(exercise.fields["schema"], exercise.where)

    def score(self, answer: str, exercise: Exercise) -> float:
        found = parsed(answer)
        wanted = exercise.fields["schema"] if self.allowed is None else self.allowed
        return float(found is not None and fits(found[0], wanted))


class JsonScorer(AnswerScorer):
    """The same JSON value, whatever its order of keys and its spaces."""

    name: Literal["json"] = "json"

    @property
    def title(self) -> str:
        return "json"

    def check(self, exercise: Exercise) -> None:
        super().check(exercise)
        if not all(parsed(wanted) for wanted in exercise.answers):
            raise DataError("E452", "the answer of the exercise is not JSON", where=exercise.where)

    def compare(self, answer: str, wanted: str) -> float:
        found, right = parsed(answer), parsed(wanted)
        return float(found is not None and right is not None and same(found[0], right[0]))


class F1Scorer(AnswerScorer):
    """F-measure of the words that both have (SQuAD, arXiv:1606.05250): case, punctuation and articles aside."""

    name: Literal["f1"] = "f1"

    @property
    def title(self) -> str:
        return "f1"

    def compare(self, answer: str, wanted: str) -> float:
        one, other = plain_words(answer), plain_words(wanted)
        if not one or not other:
            return float(one == other)
        common = sum((Counter(one) & Counter(other)).values())
        return 2 * common / (len(one) + len(other))


class BleuScorer(AnswerScorer):
    """BLEU or chrF of single answers by sacrebleu, over 100; the figure of a task is their mean."""

    name: Literal["bleu", "chrf"]

    @property
    def title(self) -> str:
        return self.name

    def prepare(self) -> None:
        try:
            import sacrebleu  # noqa: F401
        except ImportError as error:
            raise not_installed(self.name, "sacrebleu") from error

    def score(self, answer: str, exercise: Exercise) -> float:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        metric = BLEU(effective_order=True) if self.name == "bleu" else CHRF()
        return metric.sentence_score(answer, list(exercise.answers)).score / 100


class RougeScorer(AnswerScorer):
    """ROUGE F-measures by rouge-score, with its stemmer."""

    name: Literal["rouge1", "rouge2", "rougeL"]

    @property
    def title(self) -> str:
        return self.name

    def prepare(self) -> None:
        try:
            import rouge_score  # noqa: F401
        except ImportError as error:
            raise not_installed(self.name, "rouge-score") from error

    def compare(self, answer: str, wanted: str) -> float:
        from rouge_score.rouge_scorer import RougeScorer as Counted

        return float(Counted([self.name], use_stemmer=True).score(wanted, answer)[self.name].fmeasure)


class InstructionScorer(AnswerScorer):
    """Whether all instructions of the exercise are followed, or which share of them (after arXiv:2311.07911)."""

    needs_answers: ClassVar[bool] = False
    name: Literal["instructions", "instructions_share"]

    @property
    def title(self) -> str:
        return self.name

    def check(self, exercise: Exercise) -> None:
        check_instructions(exercise.fields.get("instructions"), exercise.where)

    def score(self, answer: str, exercise: Exercise) -> float:
        followed = [follows(answer, one) for one in exercise.fields["instructions"]]
        return float(all(followed)) if self.name == "instructions" else sum(followed) / len(followed)


class CodeScorer(AnswerScorer):
    """The program that the answer completes runs to its last line in the sandbox; the code of a fence, or all of it."""

    needs_answers: ClassVar[bool] = False
    name: Literal["code"] = "code"
    program: str = Field(
        default="{answer}\n\n{test}", description="What is run: {answer} is the code, others are fields."
    )
    seconds: Annotated[int, Field(ge=1, le=600)] = Field(default=5, description="Longest time of one program.")
    memory: Annotated[int, Field(ge=64)] = Field(default=512, description="Memory of one of its processes, MiB.")

    @property
    def title(self) -> str:
        return "code"

    def prepare(self) -> None:
        check_sandbox()

    def check(self, exercise: Exercise) -> None:
        self.whole("", exercise)

    def whole(self, answer: str, exercise: Exercise) -> str:
        fields = {**exercise.fields, "answer": answer}
        return filled(self.program, fields, exercise.where, "the program of the scorer names it")

    def score(self, answer: str, exercise: Exercise) -> float:
        limits = Limits(seconds=self.seconds, memory=self.memory)
        return float(run_program(self.whole(code_in(answer), exercise), limits).passed)


Scorer = Annotated[
    ExactScorer
    | ContainsScorer
    | RegexScorer
    | NumericScorer
    | SchemaScorer
    | JsonScorer
    | F1Scorer
    | BleuScorer
    | RougeScorer
    | InstructionScorer
    | CodeScorer,
    Field(discriminator="name"),
]
SCORERS = (
    "exact", "contains", "regex", "numeric", "json_schema", "json", "f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL",
    "instructions", "instructions_share", "code",
)  # fmt: skip
SHARES = {"f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "instructions_share"}


def plain_words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return ARTICLES.sub(" ", bare).split()


def parsed(answer: str) -> tuple[Any] | None:
    """The JSON value that the whole answer is, a code fence around it aside; None for anything else."""
    try:
        return (json.loads(unfenced(answer), parse_constant=refused),)
    except (ValueError, RecursionError):
        return None


def refused(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def not_installed(name: str, package: str) -> MachineError:
    fix = Fix("install what evaluation can use", command=INSTALL)
    message = f"{name} is counted by {package}, which is not installed"
    return MachineError("E457", message, fixes=[fix, "choose another scorer, such as f1"])


def code_in(answer: str) -> str:
    """The code of the first fence, or the whole answer where there is none."""
    found = FENCE.search(answer)
    return found["code"] if found else answer


def unknown_scorer(name: str, where: Where) -> TunesmithError:
    """E453."""
    near = "code" if name in ("tests", "pass_at_1", "execute", "humaneval", "mbpp") else nearest(name, SCORERS)
    fixes = [f"did you mean {near}?"] if near else []
    message = f"no scorer is called {name!r}"
    return UsageError("E453", message, where=where, evidence=[f"scorers: {', '.join(SCORERS)}"], fixes=fixes)


def code_not_allowed(task: str) -> UsageError:
    """E459: answers are run as programs when the user says so, never because a task does."""
    message = f"{task} runs what the model writes as programs, which happens only when you allow it"
    fixes = [Fix("run them in the sandbox", command="add --run-code"), "read first what the sandbox does not keep off"]
    return UsageError("E459", message, where=Where(task), fixes=fixes)
