"""The same prompts answered again and again during training, so that progress can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.track.clock import phase
from tunesmith.track.tracker import Tracking


@dataclass(frozen=True, slots=True)
class FixedPrompts:
    """Calling it with a step writes one greedy completion per prompt to `completions.jsonl`; all of them or none."""

    model: nn.Module
    tokenizer: Tokenizer
    prompts: Sequence[tuple[str, Sequence[int]]]  # as shown, as tokens
    tracker: Tracking
    max_new_tokens: int = 128

    @phase("evaluation")
    def __call__(self, step: int, on_token: Callable[[], None]) -> None:
        tokens = [ids for _, ids in self.prompts]
        answers = generate(
            self.model, self.tokenizer, tokens, Sampling(self.max_new_tokens), held="shared", on_token=on_token
        )
        for (shown, _), answer in zip(self.prompts, answers, strict=True):
            self.tracker.completion(step, shown, answer.text)
