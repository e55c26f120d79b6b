"""Rounds of answers, marks and training in one run directory, continued after a kill in any phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import DataError, Fix, Interrupted, Preempted, TunesmithError
from tunesmith.evaluate.labelling import check_choice
from tunesmith.evaluate.outcomes import UNFINISHED
from tunesmith.faults import fault
from tunesmith.iterate.phases import Around, mark, sample, timed, train
from tunesmith.iterate.record import (
    OnlineResult,
    describe,
    keep_weights,
    summarise,
    tell_evaluation,
    tell_round,
    told_rounds,
)
from tunesmith.iterate.rounds import Round, all_prompts, prompts_of, settings_of, target_of
from tunesmith.recipe import Recipe
from tunesmith.rollout.prompts import Prompt
from tunesmith.running.attempt import attempt
from tunesmith.track.files import replace_text, to_json
from tunesmith.track.outcome import FINISH
from tunesmith.track.progress import Progress
from tunesmith.track.run_dir import RunDir
from tunesmith.track.tracker import Tracking
from tunesmith.train.signals import Request, Signals

LIMIT = "online.sampling.max_new_tokens"
NOTHING = "E264"  # no record came out of a round


def iterate(
    recipe: Recipe,
    run: RunDir,
    mesh: Mesh,
    display: Progress,
    *,
    plan: dict[str, Any] | None = None,
    accept_data_change: bool = False,
) -> OnlineResult:
    """Run all rounds in `run`, from where an earlier attempt stopped; the last round's weights become the run's.

    Every rank calls it; the first one samples and labels while the others wait. A round after the first that brings no
    record ends the run early. Raises what the phases raise; Preempted or Interrupted after a signal.
    """
    check_choice(settings_of(recipe).label)
    target_of(recipe)

    def work(tracker: Tracking, signals: Signals) -> OnlineResult:
        return Whole(recipe, run, mesh, display, tracker, signals).play(plan, accept_data_change)

    return attempt(recipe, run, mesh, work)


@dataclass(slots=True)
class Whole:
    """All rounds of one attempt."""

    recipe: Recipe
    run: RunDir
    mesh: Mesh
    display: Progress
    tracker: Tracking
    signals: Signals
    phase: str = "begin"
    tokens: int = 0  # trained on, in all rounds so far

    def play(self, plan: dict[str, Any] | None, accept_data_change: bool) -> OnlineResult:
        rounds = settings_of(self.recipe).rounds
        prompts = self.mesh.first_then_others(lambda: all_prompts(self.recipe))
        if self.mesh.is_first:
            describe(self.run, self.recipe, self.mesh, plan, accept_data_change)
        done: list[dict[str, Any]] = []
        for number in range(rounds):
            found = self.play_round(Round(number, self.run), prompts)
            if found is None:
                self.tracker.event("early_stop", {"round": number, "message": "the round brought no record"})
                self.display.message(f"round {number + 1} brought no record: the run ends here")
                break
            done.append(found)
        if self.mesh.is_first:
            last = Round(len(done) - 1, self.run)
            keep_weights(last)
            tell_evaluation(self.tracker, last)
        self.mesh.barrier()
        result = summarise(self.run, done, rounds)
        self.tracker.event(FINISH, result.to_json())
        return result

    def play_round(self, this: Round, prompts: Sequence[Prompt]) -> dict[str, Any] | None:
        """What became of the round; None when it brought no record and is not the first."""
        known = this.done()
        if known is not None:
            self.tell_once(known)
            return known
        around = Around(self.recipe, self.mesh, self.display, self.check_stop, self.tracker.event)
        told: dict[str, Any] = {"round": this.number}
        empty = False
        if self.mesh.is_first:
            self.enter(this, "answers")
            told["sampled"] = timed(lambda: sample(this, prompts_of(self.recipe, prompts, this.number), around))
            self.enter(this, "marks")
            try:
                told["labelled"] = timed(lambda: mark(this, around))
            except DataError as error:
                if error.diagnostic.code != NOTHING or this.number == 0:
                    raise
                empty = True
        if not self.mesh.all_agree(not empty):
            return None
        self.enter(this, "training")
        told["trained"] = self.train(this, around)
        if self.mesh.is_first:
            replace_text(this.summary, to_json(told, indent=1) + "\n")
            fault("online.after_round", this.number, this.summary)
        self.tell_once(told)
        return told

    def train(self, this: Round, around: Around) -> dict[str, Any]:
        try:
            return train(this, around)
        except (Preempted, Interrupted) as error:
            raise self.stopped(error) from error

    def enter(self, this: Round, phase: str) -> None:
        """A phase begins: recorded, and left at once when a signal asked to stop."""
        total = settings_of(self.recipe).rounds
        self.phase = f"round {this.number + 1} of {total}: {phase}"
        self.tracker.status("running", total=total, phase=self.phase)
        self.tracker.event("phase", {"round": this.number, "phase": phase})
        self.tracker.text(self.phase)
        self.check_stop()

    def check_stop(self) -> None:
        request = self.signals.requested()
        if request is None or not request.stops:
            return
        if request is Request.TERMINATE:
            raise self.stopped(Preempted("E130", f"stopped by SIGTERM in {self.phase}"))
        raise self.stopped(Interrupted("E131", f"interrupted in {self.phase}"))

    def stopped(self, error: TunesmithError) -> TunesmithError:
        """The same error, with the way on for the run as a whole."""
        way_on = Fix("go on from here", command=f"tunesmith runs resume {self.run.path}")
        evidence = (f"{self.phase}; what is done is kept", *error.diagnostic.evidence)
        return type(error)(error.diagnostic.code, error.diagnostic.message, evidence=evidence, fixes=[way_on])

    def tell_once(self, found: dict[str, Any]) -> None:
        """One row of metrics per round, also when a kill came between the round's end and its row."""
        self.tokens += found["trained"]["tokens"]
        if self.mesh.is_first and found["round"] + 1 not in told_rounds(self.run):
            tell_round(self.tracker, found, self.tokens)
            self.display.message(round_line(found))


def round_line(found: dict[str, Any]) -> str:
    sampled, labelled, trained = found["sampled"], found["labelled"], found["trained"]
    mark_text = "" if labelled["mean_mark"] is None else f", marks {labelled['mean_mark']:.4g}"
    loss = "" if trained["last_loss"] is None else f", loss {trained['first_loss']:.4f} -> {trained['last_loss']:.4f}"
    answers = f"{sampled['completions']} answers of {sampled['mean_length']:.0f} tokens"
    records = f"{labelled['records']} records, {labelled['ties']} ties{left_out_text(labelled)}"
    return f"round {found['round'] + 1}: {answers}{mark_text}, {records}{loss}"


def left_out_text(labelled: dict[str, Any]) -> str:
    """How many prompts gave no record besides ties, and why."""
    reasons = {reason: count for reason, count in labelled["left_out"].items() if count}
    if not reasons:
        return ""
    hints = {UNFINISHED: f" (raise {LIMIT})"}
    told = [f"{count} {reason}{hints.get(reason, '')}" for reason, count in reasons.items()]
    return f", {sum(reasons.values())} of {labelled['prompts']} prompts left out: {'; '.join(told)}"
