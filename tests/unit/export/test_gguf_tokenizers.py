"""Tokenizers in GGUF: every prompt becomes the same ids, by our reading and by llama.cpp's, or there is no file."""

import base64
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_model_folder
from tests.unit.export.shapes import written
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.export.gguf.engine import llama_ids
from tunesmith.export.gguf.reading import Reading
from tunesmith.export.gguf.spelling import encode, spaced_text
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.verifying import PROMPTS

SPECIALS = ["<unk>", "<s>", "</s>"]


def sentencepiece_like(folder: Path, prepend: bool) -> Path:
    """BPE over characters with bytes for the rest, as in Llama 2 (a space in front) and Gemma (none)."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prepend else space
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.train_from_iterator([text for text in PROMPTS if text.isascii()] * 2, trainer)
    data = json.loads(core.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [each for each in data["added_tokens"] if not each["content"].startswith("<0x")]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prepend", [True, False])
def test_tokenizer_of_characters(tmp_path, prepend) -> None:
    folder = tiny_model_folder(tmp_path / "model", vocab_size=512, template=None)
    sentencepiece_like(folder, prepend)
    path = written(folder, "F32", tmp_path / "model.gguf")
    file, tokenizer = Reading(path), load_tokenizer(folder)
    kinds = file.fields["tokenizer.ggml.token_type"]
    assert kinds[:5] == [2, 3, 3, 6, 6]
    assert file.fields["tokenizer.ggml.model"] == "llama"
    assert file.fields["tokenizer.ggml.add_space_prefix"] is prepend
    wanted = [tokenizer.encode(text, specials=False) for text in PROMPTS]
    assert [encode(file.fields, text) for text in PROMPTS] == wanted
    assert max(map(len, wanted)) < max(map(len, PROMPTS)), "nothing was merged"
    if find_spec("llama_cpp") is not None:
        assert llama_ids(path, PROMPTS) == wanted


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}),
        ("model", {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}),
    ],
)
def test_tokenizers_without_a_form(tmp_path, part, value) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), part: value}), "utf-8")
    with pytest.raises(ModelError, match="E433"):
        read_vocabulary(folder, 512)


def unigram(folder: Path, joined: bool, scheme: str) -> Path:
    """Pieces by the highest sum of scores, as SentencePiece trains them for T5, XLNet and many others."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Replace(Regex(" {2,}"), " ") if joined else None
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=420, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([text for text in PROMPTS if text.isascii()] * 2, trainer)
    data = json.loads(core.to_str())
    for at, pair in enumerate(data["model"]["vocab"]):  # few texts give equal sums, which rounding would decide
        pair[1] -= at * 1e-3 if at > 2 else 0
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("joined", "scheme"), [(False, "always"), (True, "always"), (False, "never")])
def test_tokenizer_of_pieces(tmp_path, joined, scheme) -> None:
    folder = tiny_model_folder(tmp_path / "model", vocab_size=512, template=None)
    unigram(folder, joined, scheme)
    path = written(folder, "F32", tmp_path / "model.gguf")
    fields, tokenizer = Reading(path).fields, load_tokenizer(folder)
    assert fields["tokenizer.ggml.model"] == "t5"
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 1]
    texts = [*PROMPTS, "two  spaces", "odd ☃☃ signs"]
    wanted = [tokenizer.encode(text, specials=False) for text in texts]
    assert [encode(fields, text) for text in texts] == wanted
    assert wanted[-1].count(0) == 1, "unknown characters in a row are one unknown token"
    if find_spec("llama_cpp") is not None:
        assert llama_ids(path, texts) == wanted


def change(folder: Path, key: str, value: object) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    data["model" if key in ("byte_fallback", "unk_id") else "normalizer"] = (
        {**data["model"], key: value} if key in ("byte_fallback", "unk_id") else value
    )
    path.write_text(json.dumps(data), "utf-8")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("byte_fallback", True, "bytes for unknown characters"),
        ("unk_id", None, "without an unknown token"),
        ("normalizer", {"type": "Lowercase"}, "changed by Lowercase"),
    ],
)
def test_pieces_without_a_form(tmp_path, key, value, said) -> None:
    folder = tiny_model_folder(tmp_path / "model", vocab_size=512, template=None)
    unigram(folder, False, "always")
    change(folder, key, value)
    with pytest.raises(ModelError, match=f"E433.*{said}"):
        read_vocabulary(folder, 512)


def test_joined_spaces_need_one_in_front(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "model", vocab_size=512, template=None)
    unigram(folder, True, "never")
    with pytest.raises(ModelError, match="spaces are joined"):
        read_vocabulary(folder, 512)


def one_rule() -> bytes:
    """A map of characters as SentencePiece keeps it, a tree in an array: the three bytes of a wide A become A."""
    units = np.zeros(0x500, np.uint32)
    units[0] = 0x100 << 10
    units[0x1EF] = (0x1EF ^ 0x200) << 10 | 0xEF
    units[0x2BC] = (0x2BC ^ 0x300) << 10 | 0xBC
    units[0x3A1] = (0x3A1 ^ 0x400) << 10 | 1 << 8 | 0xA1
    units[0x400] = 1 << 31
    return np.uint32(units.nbytes).tobytes() + units.tobytes() + b"A\0"


def test_map_of_characters_is_kept(tmp_path) -> None:
    folder = tiny_model_folder(tmp_path / "model", vocab_size=512, template=None)
    unigram(folder, False, "always")
    charsmap = one_rule()
    change(folder, "normalizer", {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    path = written(folder, "F32", tmp_path / "model.gguf")
    fields = Reading(path).fields
    assert bytes(fields["tokenizer.ggml.precompiled_charsmap"]) == charsmap
    assert spaced_text(fields, "\uff21da b") == "▁Ada▁b"
    texts = [*PROMPTS, "\uff21da"]
    wanted = [load_tokenizer(folder).encode(text, specials=False) for text in texts]
    assert wanted[-1] == load_tokenizer(folder).encode("Ada", specials=False)
    assert [encode(fields, text) for text in texts] == wanted
    if find_spec("llama_cpp") is not None:
        assert llama_ids(path, texts) == wanted
