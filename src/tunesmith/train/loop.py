"""The one loop: step, judge, update, report, evaluate, save. It knows no algorithm and no file format."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tunesmith.distributed.stragglers import Stragglers
from tunesmith.errors import CheckpointError, MachineError
from tunesmith.faults import fault, spoil
from tunesmith.track.clock import phase
from tunesmith.train import layer_watch, out_of_memory, saving
from tunesmith.train.checkpoint import Checkpoint
from tunesmith.train.clipping import make_clipper
from tunesmith.train.due import answers_left, due, evaluation_left, is_left
from tunesmith.train.early_stopping import is_over, note
from tunesmith.train.measure import left_alone, memory_gb
from tunesmith.train.optimizer import clip
from tunesmith.train.out_of_memory import TooLarge
from tunesmith.train.parts import Parts, Timing
from tunesmith.train.position import Position, check_same, restored, without
from tunesmith.train.replicas import Replicas
from tunesmith.train.saving import Saver
from tunesmith.train.schedule import factor, settled
from tunesmith.train.signals import Cut, Poll, Request, Signals, stop_error
from tunesmith.train.stability import Verdict
from tunesmith.train.start import check_start
from tunesmith.train.step import StepResult, compute_step, with_faults
from tunesmith.train.work import Amount, amount_of
from tunesmith.types import Batch


class Loop:
    """Runs the steps that are left; `position` tells how it went."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.saver = Saver(parts.store, apart=parts.settings.checkpoint.in_background and parts.mesh.world == 1)
        self.position = Position()
        self.schedule = settled(parts.settings)
        self.clipper = make_clipper(parts.settings)
        self.amounts = Amount(), Amount()  # of the last step on this rank: passes with gradient, passes without
        self.extra: dict[str, float] = {}  # figures of the last update, besides those of every step
        self.stragglers = Stragglers()
        every = parts.settings.stability.replica_check_every
        self.replicas = Replicas(parts.mesh, every, parts.store.folder.parent, parts.trained, parts.warn)
        self.saved_at = -1
        self.saved_when = time.monotonic()
        self.stopped_early = False
        self.told = -1  # step of an evaluation that an earlier attempt has told of

    def run(self, signals: Signals) -> Position:
        """Train to the end, to an early stop, or to a signal; a signal saves and raises Preempted or Interrupted."""
        self.parts.model.train()
        if self.position.step == 0:
            self.look_at_start(signals)
        elif self.unmeasured:  # a stop was asked for before it was done
            self.look(signals)
            self.answer(signals)
        with left_alone():
            while self.position.step < self.parts.total and not self.stopped_early:
                self.step_and_more(signals)
            self.tell_saved(self.saver.settle())
        return self.position

    def step_and_more(self, signals: Signals) -> None:
        """A step and whatever is due after it: evaluation, samples, a checkpoint, an answer to a signal."""
        settings = self.parts.settings
        self.step()
        self.replicas.look(self.position.step, self.parts.model, self.parts.optimizer)
        self.tell_saved(self.saver.landed())
        self.look(signals)
        last = self.position.step == self.parts.total
        if due(self.position.step, settings.checkpoint.every) or last or self.stopped_early or self.overdue():
            self.save()
        self.answer(signals)

    def look(self, signals: Signals) -> None:
        """The evaluation and the answers that are due; after a request everything is saved first.

        What a stop breaks off is left for the resume.
        """
        if evaluation_left(self.parts, self.position):
            if self.urgency(signals):
                self.save()
            with suppress(Cut):
                self.evaluate(lambda: self.poll(signals))
        if answers_left(self.parts, self.position):
            if self.parts.mesh.world == 1 and signals.requested():
                self.save()
            self.show_samples(signals)

    def show_samples(self, signals: Signals) -> None:
        """Of the first rank alone, so that the others learn of a stop when it is answered."""
        if self.parts.show_samples is not None:
            with self.parts.optimizer.averaged(), suppress(Cut):
                signals.poll()
                self.parts.show_samples(self.position.step, signals.poll)
                self.position.sampled = self.position.step

    def poll(self, signals: Signals) -> None:
        """Raises Cut on all ranks once one of them was asked to stop."""
        urgency = self.urgency(signals)
        if urgency and Request(urgency).stops:
            raise Cut

    @property
    def unmeasured(self) -> bool:
        """On any rank: the first one alone answers prompts."""
        return self.parts.mesh.largest(float(is_left(self.parts, self.position))) > 0

    @phase("evaluation")
    def look_at_start(self, signals: Signals) -> None:
        """Answers, and the loss on general data, before anything is learned: what later ones are compared with."""
        parts, position = self.parts, self.position
        if parts.settings.sample_every:
            if position.sampled < 0:
                self.show_samples(signals)
            self.answer(signals)
        if parts.measure_general is not None and position.general_start is None:
            with suppress(Cut):
                position.general_start = parts.measure_general(lambda: self.poll(signals))
                position.general_loss = position.general_start
                parts.tracker.metrics(0, 0, {"eval/general_loss": position.general_start})
            self.answer(signals)

    def step(self) -> None:
        parts, position = self.parts, self.position
        parts.mesh.heart.begin(position.step + 1)
        started, waiting = time.monotonic(), parts.mesh.heart.waited
        with phase("waiting for data"):
            microbatches = parts.source.next_step()
        waited = time.monotonic() - started
        fault("train.step", position.step + 1)
        rate = factor(self.schedule, position.step, parts.total)
        parts.optimizer = parts.tuning.before(position.step, parts.optimizer)
        parts.optimizer.set_rate(rate)
        parts.optimizer.scale = 1.0 if parts.scale is None else parts.scale.value
        result, microbatches = self.compute(microbatches)
        result = parts.tuning.weigh(with_faults(result, position.step + 1), parts.optimizer)
        if position.step == 0:
            check_start(parts, result)
        verdict = self.judge(result)
        if verdict.action == "update":
            self.update(result)
        parts.optimizer.clear()
        spoil("train.weights", position.step + 1, parts.model)
        if verdict.action == "rollback":
            self.roll_back()
        position.step += 1
        parts.streams.after_step(position.step)
        position.tokens += parts.source.step_tokens
        position.saved += parts.source.step_saved
        position.scored += result.scored
        took = time.monotonic() - started
        position.seconds += took
        self.account(result, verdict)
        own = took - (parts.mesh.heart.waited - waiting)
        utilisation = self.flops(microbatches, own) / (took * parts.work.peak * parts.mesh.world)
        self.report(result, verdict, rate, Timing(took, waited, utilisation))
        parts.mesh.heart.end()
        if verdict.action == "stop":
            raise verdict.error(self.last_checkpoint(), parts.settings.optimizer.lr)

    def compute(self, microbatches: Sequence[Batch]) -> tuple[StepResult, Sequence[Batch]]:
        """The step's gradient and figures, in smaller microbatches from now on where these do not fit into memory.

        Raises MachineError E491 where smaller ones do not help.
        """
        parts, reason = self.parts, ""
        for _ in range(out_of_memory.RETRIES + 1):
            try:
                result = compute_step(
                    parts.model,
                    microbatches,
                    parts.objectives,
                    parts.optimizer,
                    parts.mesh,
                    memory=self.position.memory,
                    neftune_alpha=parts.settings.neftune_alpha,
                    attach=parts.streams.attach,
                )
            except TooLarge as error:
                reason = str(error)
            else:
                return result, microbatches
            limit = out_of_memory.smaller(microbatches, parts.mesh)
            if limit == 0 or parts.optimizer.has_updated:
                break
            parts.optimizer.clear()
            gc.collect()
            self.position.microbatch_tokens = limit
            parts.tracker.event("out_of_memory", {"step": self.position.step + 1, "microbatch_tokens": limit})
            parts.tracker.text(
                f"step {self.position.step + 1}: out of memory, microbatches of {limit} tokens from now on"
            )
            microbatches = parts.source.again(limit)
        raise out_of_memory.cannot_split(self.position.step + 1, reason, microbatches)

    def judge(self, result: StepResult) -> Verdict:
        """What to do with the step; one beyond the range of fp16 is none of the guard's business."""
        parts = self.parts
        if parts.scale is not None:
            before, overflowed = parts.scale.value, parts.scale.overflowed(result.loss, result.grad_norm)
            if overflowed:
                return Verdict("rescale", f"gradients in fp16 overflowed at a loss scale of {before:g}")
        verdict = parts.guard.judge(self.position.step + 1, result.loss, result.grad_norm, result.records)
        if not result.is_finite:
            verdict.evidence["parameters"] = parts.optimizer.nonfinite()
        if parts.scale is not None and verdict.evidence:
            verdict.evidence["loss_scale"] = parts.scale.value
        return verdict.too_late() if verdict.action != "update" and parts.optimizer.has_updated else verdict

    def roll_back(self) -> None:
        """Weights and all that follows them as in the newest checkpoint; the data go on, the steps between are lost.

        Where nothing was saved yet, the step is left out and nothing else.
        """
        parts, position = self.parts, self.position
        self.tell_saved(self.saver.settle())
        checkpoint = parts.store.newest()
        if checkpoint is None:
            return
        in_a_row = parts.guard.in_a_row
        saving.put_back(parts, checkpoint)
        parts.guard.in_a_row = in_a_row
        self.clipper.restore(checkpoint.state["clipper"])
        position.memory = checkpoint.state["position"]["memory"]
        position.skipped += position.step - checkpoint.step
        parts.tracker.event("rollback", {"step": position.step + 1, "to": checkpoint.step})
        parts.tracker.text(f"step {position.step + 1}: back to the weights of step {checkpoint.step}")

    def update(self, result: StepResult) -> None:
        """Change the weights by the gradient in the optimizer, and what follows or draws them."""
        parts, position = self.parts, self.position
        masters = parts.optimizer.masters
        seen = layer_watch.look(masters) if due(position.step + 1, parts.settings.watch_layers) else None
        limit = self.clipper.limit(result.grad_norm)
        clip(parts.optimizer.gradients(), result.grad_norm, limit)
        position.clipped += result.grad_norm > limit
        self.extra = {} if parts.pull is None else {"train/distance": parts.pull.apply()}
        parts.optimizer.step()
        parts.tuning.after(position.step + 1, parts.optimizer)
        if parts.optimizer.average is not None:
            parts.optimizer.average.follow(position.step)
        if seen is not None:
            self.extra |= layer_watch.told(seen, masters)
        for objective in parts.objectives:
            position.memory = objective.remember(position.memory, result.metrics)

    def account(self, result: StepResult, verdict: Verdict) -> None:
        position = self.position
        if verdict.action != "update":
            position.skipped += verdict.action != "rescale"
            return
        position.first_loss = result.loss if position.first_loss is None else position.first_loss
        position.last_loss = result.loss

    def report(self, result: StepResult, verdict: Verdict, rate: float, timing: Timing) -> None:
        parts, position = self.parts, self.position
        if verdict.action == "rescale":
            parts.tracker.event("overflow", {"step": position.step, "reason": verdict.reason})
        elif verdict.action != "update":
            parts.tracker.bad_batch(position.step, {"reason": verdict.reason, **verdict.evidence})
            parts.tracker.event("bad_step", {"step": position.step, "action": verdict.action, "reason": verdict.reason})
        values = {
            "train/loss": result.loss,
            "train/lr": rate * parts.settings.optimizer.lr,
            "train/grad_norm": result.grad_norm,
            "train/epoch": parts.source.epoch(),
            "train/tokens_per_step": float(parts.source.step_tokens),
            "train/scored_per_step": result.scored,
            "train/saved_per_step": float(parts.source.step_saved),
            "train/skipped": float(position.skipped),
            "train/clipped": position.clipped / position.step,
            "perf/tok_s": parts.source.step_tokens / timing.took,
            "perf/scored_tok_s": result.scored / timing.took,
            "perf/mfu": timing.utilisation,
            "perf/step_s": timing.took,
            "perf/data_s": timing.waited,
            "mem/peak_gb": memory_gb(parts.mesh.device()),
        }
        values |= {} if parts.scale is None else parts.scale.metrics()
        values |= {f"train/{name}": value for name, value in result.metrics.items()}
        values |= self.extra
        self.extra = {}
        parts.tracker.metrics(position.step, position.tokens, values)
        if parts.on_step is not None:
            parts.on_step(position.step, parts.total, values)

    def flops(self, microbatches: Sequence[Batch], own_seconds: float) -> float:
        """Model FLOP of the step's passes over all ranks, without what the backward pass computes again.

        In the same message every rank tells how long it worked by itself; one that holds up the others is warned of.
        """
        parts, forward = self.parts, Amount()
        if any(objective.looks_ahead for objective in parts.objectives):
            forward = amount_of(batch if batch.mismatched is None else batch.mismatched for batch in microbatches)
        forward.include(parts.streams.amount)
        parts.streams.amount.clear()
        self.amounts = amount_of(microbatches), forward
        done, *seconds = parts.mesh.sum([parts.work.flops(*self.amounts), *parts.mesh.only_mine(own_seconds)])
        if (late := self.stragglers.note(seconds)) is not None:
            parts.warn(late)
        return done

    @phase("evaluation")
    def evaluate(self, poll: Poll) -> None:
        """The losses on held-out data, the best ones so far, and whether it is time to stop; `poll` may break off."""
        parts, position = self.parts, self.position
        found: dict[str, float] = {}
        with parts.optimizer.averaged():
            if parts.evaluate is not None:
                found = parts.evaluate(position.memory, poll)
            if parts.measure_general is not None:
                found["general_loss"] = parts.measure_general(poll)
        if self.told != position.step:
            values = {f"eval/{name}": value for name, value in found.items()}
            parts.tracker.metrics(position.step, position.tokens, values)
        if note(position, found, parts.settings.early_stopping):
            if parts.settings.evaluate_every:
                self.save(best=True)
        elif is_over(position, parts.settings.early_stopping):
            self.stopped_early = True
            parts.tracker.event("early_stop", {"step": position.step, "best_step": position.best_step})

    def answer(self, signals: Signals) -> None:
        """Serve the most urgent request of any rank."""
        request = Request(urgency) if (urgency := self.urgency(signals)) else None
        if request is None:
            return
        folder = self.save()
        signals.saved()
        is_over = self.position.step == self.parts.total or self.stopped_early
        if request.stops and (not is_over or self.unmeasured):
            self.tell_saved(self.saver.settle())
            run = self.parts.store.folder.parent
            raise stop_error(request, self.position.step, folder, f"tunesmith runs resume {run}")

    def urgency(self, signals: Signals) -> int:
        return int(self.parts.mesh.largest(float(signals.requested() or 0)))

    def overdue(self) -> bool:
        """Whether the last checkpoint is older than allowed, by the clock of any rank."""
        minutes = self.parts.settings.checkpoint.minutes
        late = minutes > 0 and time.monotonic() - self.saved_when >= 60 * minutes
        return self.parts.mesh.largest(float(late)) > 0

    @phase("checkpoint")
    def save(self, *, best: bool = False) -> Path:
        """Commit everything a resume needs; saving the same step again only marks it."""
        parts, position = self.parts, self.position
        folder = saving.folder_of(parts.store, position.step)
        if self.saved_at == position.step and not best:
            return folder
        self.replicas.compare(position.step, parts.model, parts.optimizer)
        parts.tracker.flush()
        own = {"position": asdict(position), "clipper": self.clipper.state()}
        with parts.optimizer.averaged():
            snapshot = saving.take(parts, position.step, own, position.tokens)
            done = self.saver.save(snapshot, best=best)
        if self.saved_at != position.step:
            self.saved_at, self.saved_when = position.step, time.monotonic()
            self.tell_saved(done)
        return folder

    def tell_saved(self, done: list[saving.Saving]) -> None:
        saving.tell(done, self.parts.tracker.event, apart=self.saver.apart)

    def resume(self, checkpoint: Checkpoint, ignore: tuple[str, ...] = ()) -> None:
        """Take over the state of a checkpoint of the same run; `about` must be the same but for the keys to ignore."""
        state = checkpoint.state
        check_same(without(state["about"], ignore), without(self.parts.about, ignore), self.parts.known)
        saving.put_back(self.parts, checkpoint)
        self.clipper.restore(state["clipper"])
        self.position = restored(state["position"])
        self.parts.source.restore(state["source"], self.position.microbatch_tokens)
        self.parts.total = state["total"]
        self.stopped_early = is_over(self.position, self.parts.settings.early_stopping)
        self.saved_at = self.position.step

    def close(self) -> None:
        """Wait for a save in the background, and give back what the optimiser holds outside of memory."""
        self.saver.close()
        self.parts.optimizer.close()

    def last_checkpoint(self) -> Path | None:
        """Where the run could go on; None when nothing was saved or nothing saved can be used."""
        try:
            self.tell_saved(self.saver.settle())
            newest = self.parts.store.newest()
        except (CheckpointError, MachineError):
            return None
        return None if newest is None else newest.folder
