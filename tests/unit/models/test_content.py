import hashlib
from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.errors import ModelError
from tunesmith.models.content import content_hash
from tunesmith.models.headers import read_header


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


@pytest.mark.row("F3")
def test_a_flipped_bit_in_the_hubs_cache_is_told(tmp_path: Path) -> None:
    whole = (tiny_model_folder(tmp_path / "m") / "model.safetensors").read_bytes()
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    stored = blobs / hashlib.sha256(whole).hexdigest()
    stored.write_bytes(whole)
    (snapshot / "model.safetensors").symlink_to(stored)
    assert content_hash(snapshot)
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    stored.write_bytes(flipped)
    read_header(snapshot / "model.safetensors")  # nothing else notices
    with pytest.raises(ModelError, match=r"E516.*model\.safetensors is damaged"):
        content_hash(snapshot)
