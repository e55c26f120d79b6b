"""An export is read back and compared with its source by logits, on twenty prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import ModelError, Where
from tunesmith.export.gguf.engine import is_installed, llama_ids, llama_logits
from tunesmith.export.gguf.reading import Reading
from tunesmith.export.gguf.spelling import encode
from tunesmith.export.gguf.tensors import as_stored
from tunesmith.export.gguf.types import EXACT, FileType
from tunesmith.export.huggingface import check_rows
from tunesmith.export.opening import ModelSource
from tunesmith.export.proof import ready

ROUNDED = 3e-2  # in bf16; llama.cpp rounds what goes into quantised products, and keeps its cache in fp16
TOKENS = 32  # of each prompt: bounds the logits that are held
PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write two sentences about the sea.",
    "A train leaves at 9:40 and arrives at 12:05. How long does it take?",
    "Name three colours.",
    "Translate to German: Good morning, how are you?",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Explain in one sentence why the sky is blue.",
    "The quick brown fox jumps over the lazy dog.",
    '{"name": "Ada", "born": 1815, "known for": ["notes", "engines"]}',
    "How many legs do two spiders and a cat have?",
    "Un café, s'il vous plaît: combien ça coûte à Paris?",
    "Sort these numbers: 17, 3, 256, -4, 0.5",
    "Once upon a time there was a lighthouse keeper who",
    "Is 91 a prime number? Answer yes or no, then say why.",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "What does the word 'ephemeral' mean?",
    "SELECT name, COUNT(*) FROM visits GROUP BY name;",
    "List the steps of boiling an egg.",
    "今日はいい天気ですね。",
    "If all bloops are razzies and all razzies are lazzies, are all bloops lazzies?",
)


@dataclass(frozen=True, slots=True)
class Check:
    """`difference` is the mean KL divergence from the source in nats per token, `limit` the largest allowed.

    `logit` is the largest difference of a logit, `agreement` the share of positions with the same likeliest token,
    `spelled` that of prompts that become the same ids. `unexplained` is the divergence from the same model with its
    weights rounded likewise: what the type does not explain.
    """

    file: str
    form: str
    difference: float
    limit: float
    logit: float
    agreement: float
    prompts: int
    positions: int
    spelled: float = 1.0
    unexplained: float = 0.0
    unexplained_limit: float = 0.0

    @property
    def passed(self) -> bool:
        near = self.difference <= self.limit and self.unexplained <= self.unexplained_limit
        return near and self.spelled == 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        text = (
            f"{self.file}: {self.form} differs by {self.difference:.2g} nats per token (allowed: {self.limit:g}), "
            f"by {self.logit:.2g} in a logit; the likeliest token is the same at {self.agreement:.1%} of "
            f"{self.positions:,} positions"
        )
        if self.unexplained > self.unexplained_limit:
            text += f"; {self.unexplained:.2g} nats are not explained by rounding (allowed: {self.unexplained_limit:g})"
        return text if self.spelled == 1 else f"{text}; only {self.spelled:.0%} of the prompts become the same ids"


def prompt_rows(found: ModelSource, tokenizer: Tokenizer) -> list[list[int]]:
    """Twenty rows: records of the run's training data first, as far as they are still there."""
    rows = check_rows(found, tokenizer)[: len(PROMPTS) // 2]
    lead = tokenizer.start_ids
    rows += [[*lead, *tokenizer.encode(text, specials=False)] for text in PROMPTS]
    return [row[:TOKENS] for row in rows if row][: len(PROMPTS)]


@torch.no_grad()
def logits_of(model: nn.Module, rows: Sequence[Sequence[int]]) -> Float[Tensor, "K V"]:
    """Logits of every next token, by transformers' own forward."""
    base = ready(model.eval())
    return torch.cat([base(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows])


def compared(wanted: Float[Tensor, "K V"], found: Float[Tensor, "K V"]) -> tuple[float, float, float]:
    """Mean KL divergence (infinite when not a number), largest difference of a logit, share of equal choices."""
    before, after = wanted.log_softmax(-1), found.log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1).mean().item()
    agreement = (wanted.argmax(-1) == found.argmax(-1)).float().mean().item()
    return (
        max(divergence, 0.0) if divergence == divergence else float("inf"),
        (wanted - found).abs().max().item(),
        agreement,
    )


def both(first: float, second: float) -> float:
    """The largest divergence of two errors at once: it grows with the square of their sum."""
    return round((first**0.5 + second**0.5) ** 2, 4)


@dataclass(frozen=True, slots=True)
class Source:
    """What an export is compared with."""

    rows: list[list[int]]
    logits: Tensor
    tokenizer: Tokenizer

    def check(self, found: Tensor, file: str, form: str, limit: float, spelled: float = 1.0) -> Check:
        difference, logit, agreement = compared(self.logits, found)
        return Check(file, form, difference, limit, logit, agreement, len(self.rows), len(found), spelled)

    def check_gguf(self, path: Path, model: PreTrainedModel, kind: FileType) -> list[Check]:
        """By what the file alone says: its keys, its numbers, its tokenizer; by llama.cpp too where it is installed."""
        file = Reading(path)
        wanted = logits_of(as_stored(model, kind), self.rows)
        exact = EXACT if model.dtype == torch.float32 else ROUNDED
        spelled = self.spelled([encode(file.fields, text) for text in PROMPTS])
        logits = torch.cat(file.logits(self.rows))
        own = self.check(logits, path.name, kind.name, kind.limit, spelled)
        found = [self.explained(own, logits, wanted, exact)]
        if is_installed():
            logits, spelled = llama_logits(path, self.rows), self.spelled(llama_ids(path, PROMPTS))
            llama = self.check(logits, path.name, f"{kind.name} in llama.cpp", both(kind.limit, ROUNDED), spelled)
            found.append(self.explained(llama, logits, wanted, ROUNDED))
        return found

    def explained(self, check: Check, found: Tensor, wanted: Tensor, limit: float) -> Check:
        return replace(check, unexplained=compared(wanted, found)[0], unexplained_limit=limit)

    def spelled(self, ids: Sequence[list[int]]) -> float:
        """The share of the prompts that became the tokenizer's own ids."""
        same = [row == self.tokenizer.encode(text, specials=False) for row, text in zip(ids, PROMPTS, strict=True)]
        return sum(same) / len(same)


def refuse_failed(checks: Sequence[Check], out: Path) -> None:
    """ModelError E435 when a file answers otherwise than its source; what was written stays."""
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ModelError(
            "E435",
            f"{len(failed)} of {len(checks)} exported files do not answer as their source does",
            where=Where(str(out)),
            evidence=[str(check) for check in failed],
            fixes=["use a finer type: --type q8_0, or --dtype float32", "if it is the finest, report it"],
        )
