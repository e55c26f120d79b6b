"""The proof at start-up passes for right attention and fails for wrong attention."""

import pytest
import torch
from tests.unit.models.values import classifier, pairs

from tunesmith.data.packing import batch_of
from tunesmith.errors import ModelError
from tunesmith.models.forest import Forest
from tunesmith.models.verify import verify_scores


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert", "distilbert"])
def test_values_of_shared_prompts_are_proven(architecture, tmp_path):
    model = classifier(architecture, tmp_path, 2)
    implementation = model.config._attn_implementation
    assert verify_scores(model, batch_of(pairs(), "values")) < 1e-4
    assert model.config._attn_implementation == implementation


def test_answers_that_do_not_see_their_prompt_are_found(tmp_path, monkeypatch):
    model = classifier("llama", tmp_path, 1)
    torch.nn.init.normal_(model.score.weight)
    forest = Forest.of
    orphaned = torch.tensor([1, 1, 0])
    monkeypatch.setattr(Forest, "of", lambda segments, wanted: forest(segments * orphaned - (1 - orphaned), wanted))
    with pytest.raises(ModelError, match="E096"):
        verify_scores(model, batch_of(pairs(), "values"))
