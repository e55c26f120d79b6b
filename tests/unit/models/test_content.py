from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.errors import ModelError
from tunesmith.models.content import content_hash


def test_models_of_one_shape_differ_in_their_content(tmp_path: Path) -> None:
    one, other = (tiny_model_folder(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    again = tiny_model_folder(tmp_path / "again", seed=0)
    assert content_hash(one) == content_hash(again) != content_hash(other)
    (one / "chat_template.jinja").write_text("{{ messages }}")
    assert content_hash(one) != content_hash(again)


def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match="E278"):
        content_hash(tmp_path)
