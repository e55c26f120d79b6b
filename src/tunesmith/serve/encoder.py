"""Sentence embeddings of encoders: mean or first state, as the folder says, at length one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, PreTrainedModel

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.export.opening import ModelSource
from tunesmith.models.architecture import build_config
from tunesmith.models.headers import read_headers
from tunesmith.models.heads import positions
from tunesmith.models.load import check_loading, from_folder, quietly
from tunesmith.models.safety import read_config, read_json_object
from tunesmith.serve.refusals import Refusal

POOLING = "1_Pooling/config.json"  # of sentence-transformers
BATCH_TOKENS = 4096


class Encoder:
    """An encoder without its head; the mean of the last states of a text unless the folder says the first one."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, first: bool) -> None:
        self.model, self.tokenizer, self.first = model, tokenizer, first
        self.longest = positions(model.config)

    @classmethod
    def open(cls, source: ModelSource) -> Encoder:
        """Raises ModelError E081 for a folder whose weights are not those of its architecture."""
        folder = source.base
        config = build_config(read_config(folder)[0], folder)
        read_headers(folder)
        model, report = quietly(folder, lambda: from_folder(AutoModel, folder, config, torch.float32))
        unused = [name for name in report["missing_keys"] if not name.startswith("pooler.")]  # it is not read
        check_loading({**report, "missing_keys": unused, "unexpected_keys": []}, folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        first = pooling_of(folder).get("pooling_mode_cls_token") is True
        model.eval().requires_grad_(False).to(device)  # pyright: ignore[reportArgumentType]
        return cls(model, load_tokenizer(folder), first)

    def encode(self, text: str, field: str = "input") -> list[int]:
        """Ids with what the tokenizer puts around a text. Raises Refusal E414 for one that is too long or empty."""
        ids = self.tokenizer.encode(text, specials=False)
        found = [*self.tokenizer.start_ids, *ids, *self.tokenizer.end_ids]
        if not found:
            raise Refusal("E414", f"{field} is empty", field=field, fix="give some text, or leave the entry out")
        if len(found) > self.longest:
            message = f"{field} has {len(found):,} tokens; the model reads {self.longest:,}"
            raise Refusal("E414", message, field=field, fix="embed it in pieces")
        return found

    @torch.no_grad()
    def embed(self, texts: Sequence[Sequence[int]]) -> Float[Tensor, "N D"]:
        """A row of length one for each text, in order."""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        rows: dict[int, Tensor] = {}
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(texts[order[count]]) <= BATCH_TOKENS:
                count += 1
            group, order = order[:count], order[count:]
            rows |= zip(group, self.pooled([texts[at] for at in group]), strict=True)
        return torch.stack([rows[at] for at in range(len(texts))])

    def pooled(self, texts: Sequence[Sequence[int]]) -> Float[Tensor, "N D"]:
        device = self.model.device
        pad = self.model.config.pad_token_id or 0
        tokens = pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=pad).to(device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        states = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
        if self.first:
            return normalize(states[:, 0], dim=-1)
        return normalize((states * mask[..., None]).sum(1) / lengths[:, None], dim=-1)


def pooling_of(folder: Path) -> dict[str, Any]:
    path = folder / POOLING
    return read_json_object(path) if path.is_file() else {}
