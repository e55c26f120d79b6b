"""Which guard to turn on: a table of rules over what was measured and what the recipe has already."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.evaluate.metrics import Score

THRESHOLDS = {
    "forgot": 0.02,  # part of the general figures that is lost; less than that asks for no guard
    "forgot much": 0.10,
    "learned": 0.02,
    "little": 0.05,  # of the new task, below which the whole interval of what was learned must lie
    "wide": 0.05,  # half an interval, from which one that holds 0 says too little
    "share": 0.3,  # of general data, above which more of it is not advised
    "coefficient": 1.0,  # of kl_to_reference, above which a larger one is not advised
    "states": 3,  # besides the base, below which there is little to choose from
}


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, why, and the command to type."""

    rule: str
    says: str
    command: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """Advice that is given where all facts of `when` hold and none of `unless`.

    `does` is a template: of settings for another run, or with `kind` "command" of the command itself; empty: nothing.
    """

    name: str
    when: frozenset[str]
    unless: frozenset[str]
    says: str
    does: str
    kind: Literal["settings", "command"] = "settings"


def rule(name: str, when: str, unless: str, says: str, does: str = "", *, command: bool = False) -> Rule:
    """A row of the table; facts are separated by commas."""
    needed, barred = (frozenset(filter(None, words.split(", "))) for words in (when, unless))
    return Rule(name, needed, barred, says, does, "command" if command else "settings")


RULES = (
    rule(
        "earlier",
        "earlier",
        "",
        "{best} is the better model: it learned {best_learned}, at {best_kept} of the general figures",
        "tunesmith merge {run} OUT --weights {best_weights}",
        command=True,
    ),
    rule(
        "base",
        "base",
        "",
        "at this weight the base is the better model: {kept} of the general figures for {learned} of the new task",
    ),
    rule(
        "stop",
        "earlier, forgot",
        "watches",
        "the loss went on after {best}: stop when the general loss has risen by {rise}",
        "train.evaluate_every={every} 'train.early_stopping={{watch: general, max_rise: {rise}}}'{general_eval}",
    ),
    rule(
        "mix",
        "forgot, mixable",
        "mixes",
        "{kept} of the general figures: mix in a tenth of general data",
        "data.general.train=FILE data.general.share=0.1",
    ),
    rule(
        "mix more",
        "forgot, mixes",
        "mixes much",
        "{kept} of the general figures in spite of a share of {share}: mix in more",
        "data.general.share={more_share}",
    ),
    rule(
        "lora",
        "forgot, full",
        "",
        "all weights are trained: an adapter changes less",
        "model.adapter=lora train.optimizer.lr=2e-4",
    ),
    rule(
        "freeze",
        "forgot much, full",
        "",
        "or train the last four layers alone",
        "model.adapter=freeze model.adapter.last=4",
    ),
    rule(
        "rate",
        "forgot much, learned",
        "",
        "a third of the rate, as more than a tenth was lost ({kept})",
        "train.optimizer.lr={lower_rate}",
    ),
    rule(
        "share",
        "forgot, learned, a way back",
        "",
        "weights between base and tuned ones lose less and need no training",
        "tunesmith merge {run} OUT --share 0.7",
        command=True,
    ),
    rule(
        "kl",
        "forgot, mixing done, comparable",
        "kl",
        "stay near what the base says of every next token",
        "{also_new}",
    ),
    rule(
        "kl more",
        "forgot, kl",
        "kl much",
        "{kept} in spite of a coefficient of {coefficient}: three times as much",
        "{also_more}",
    ),
    rule(
        "checkpoints",
        "forgot, few states",
        "",
        "{states} of its weights are kept: keep more, so that one before the loss can be taken",
        "train.checkpoint.every={every} train.checkpoint.keep=10",
    ),
    rule(
        "kl less",
        "little, kl",
        "forgot, base",
        "little is learned and nothing lost: a third of the coefficient of {coefficient}",
        "{also_less}",
    ),
    rule(
        "longer",
        "little",
        "forgot, kl, base",
        "little is learned and nothing lost: three times the rate",
        "train.optimizer.lr={higher_rate}",
    ),
    rule(
        "more records",
        "wide, cut",
        "",
        "elsewhere the change is {kept}, which can be anything from {low} to {high}: measure more records",
        "tunesmith eval --forgetting {run} --limit {more_records}",
        command=True,
    ),
    rule(
        "more data",
        "wide",
        "cut",
        "elsewhere the change is {kept}, which can be anything from {low} to {high}: hold out more general records",
    ),
    rule(
        "fine",
        "learned",
        "forgot, wide, few, base",
        "no guard is needed: {kept} of the general figures",
    ),
)


def measured_facts(learned: Score, kept: Score, fewest: int) -> frozenset[str]:
    """What the figures of the last weights show; nothing is shown within an interval or by fewer than `fewest`."""
    found: set[str] = set()
    enough = kept.n >= fewest
    if enough and kept.high < 0 and kept.value <= -THRESHOLDS["forgot"]:
        found.add("forgot")
        if kept.value <= -THRESHOLDS["forgot much"]:
            found.add("forgot much")
    if learned.n >= fewest and learned.low > 0 and learned.value >= THRESHOLDS["learned"]:
        found.add("learned")
    elif learned.n >= fewest and learned.high < THRESHOLDS["little"]:
        found.add("little")
    if enough and kept.low <= 0 <= kept.high and (kept.high - kept.low) / 2 > THRESHOLDS["wide"]:
        found.add("wide")
    if not enough or learned.n < fewest:
        found.add("few")
    return frozenset(found)


def advise(facts: Collection[str], values: Mapping[str, str], rules: Sequence[Rule] = RULES) -> tuple[Advice, ...]:
    """The rules that apply, in the order of the table."""
    held = frozenset(facts)
    return tuple(
        Advice(one.name, one.says.format_map(values), command_of(one, values))
        for one in rules
        if one.when <= held and not one.unless & held
    )


def command_of(one: Rule, values: Mapping[str, str]) -> str:
    """The command, for another run with other settings or for these weights."""
    does = one.does.format_map(values)
    if not does or one.kind == "command":
        return does
    name = f"{values['id']}-{one.name.replace(' ', '-')}"
    return f"tunesmith train {values['config']} run.name={shlex.quote(name)} {does}"
