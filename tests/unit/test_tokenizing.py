import base64
import json

import pytest
from tests.hostile import tunesmith
from tests.tiny import tiny_model_folder, tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.tokenizing import LONGEST, encoded, growth

CATASTROPHE = {"Regex": "^(([a-z ])+.)+[A-Z]([a-z])+$"}


def change(folder, **parts):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    return folder


def split(pattern):
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(pattern, content):
    kind = "String" if isinstance(pattern, str) else "Regex"
    return {
        "type": "Replace",
        "pattern": {kind: pattern if isinstance(pattern, str) else pattern[0]},
        "content": content,
    }


@pytest.mark.row("S22")
def test_a_pattern_that_runs_long_is_an_error_of_the_file(tmp_path, capfd):
    folder = change(tiny_tokenizer(tmp_path / "model"), pre_tokenizer=split(CATASTROPHE))
    tokenizer = load_tokenizer(folder)
    for encode in (tokenizer.encode_rendered, lambda text: tokenizer.encode(text, specials=False)):
        with pytest.raises(ModelError) as caught:
            encode("a" * 60 + "!")
        found = caught.value.diagnostic
        assert found.code == "E066"
        assert found.where.file == str(folder / "tokenizer.json")
        assert "a rule of tokenizer.json fails on a text: Onig: Regex search error" in found.message
        assert found.fixes[0].label == "use the tokenizer that was published with the model"


@pytest.mark.row("S22")
def test_a_plan_tells_a_pattern_that_runs_long(tmp_path, capfd):
    folder = change(tiny_model_folder(tmp_path / "model"), pre_tokenizer=split(CATASTROPHE))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a" * 60 + "!", "completion": "b"}) + "\n")
    done = tunesmith("plan", "sft", f"model.path={folder}", f"data.train={data}", "train.steps=1")
    assert (done.code, "error[E066]" in done.text) == (4, True)
    assert "Traceback" not in done.text


def test_what_stops_a_program_is_not_taken_for_a_panic(tmp_path):
    class Stops:
        def encode(self, text, *, add_special_tokens):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(Stops(), "a", tmp_path / "tokenizer.json")  # type: ignore[arg-type]


GROWING = {
    "normaliser": {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "a" * 1000)] * 6}},
    "nested": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Sequence", "normalizers": [replace("a", "bb"), replace("b", "aa")]}] * 10}},
    "nothing": {"normalizer": {"type": "Sequence", "normalizers": [replace(["x*"], "x")] * 20}},
    "bytes": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}] * 20}},
    "decoder": {"decoder": {"type": "Sequence", "decoders": [replace("a", "a" * 100)] * 3}},
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000}},
}  # fmt: skip


@pytest.mark.row("S24")
@pytest.mark.parametrize("parts", GROWING.values(), ids=GROWING)
def test_rules_that_swell_a_text_are_refused_as_they_are_loaded(tmp_path, parts):
    folder = change(tiny_tokenizer(tmp_path / "model"), **parts)
    with pytest.raises(ModelError, match=f"may make [0-9,]+ characters of one; at most {LONGEST:,}") as caught:
        load_tokenizer(folder)
    assert caught.value.diagnostic.code == "E066"
    assert caught.value.diagnostic.where.file == str(folder / "tokenizer.json")


def test_a_map_of_characters_counts_with_its_longest_text():
    trie = b"\0" * 8
    content = base64.b64encode(len(trie).to_bytes(4, "little") + trie + b"ab\0" + "é".encode() * 5 + b"\0").decode()
    rules = [{"type": "Precompiled", "precompiled_charsmap": content}]
    assert growth(rules) == 5
    assert growth(rules * 3) == 125


def test_rules_in_use_are_far_below_the_limit(tmp_path):
    albert = [replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
              {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4) + b"x" * 18).decode()},
              replace([" {2,}"], " ")]  # fmt: skip
    assert growth(albert) == 18 * 3 * 18
    expansions = [
        replace(mark, word) for mark, word in zip("&%@#§½", ("and", "per cent", "at", "no", "sec", "1/2"), strict=True)
    ]
    assert growth(expansions * 5) == 8
    gemma = Tokenizer(models.BPE())
    gemma.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    gemma.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    gemma.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "isolated")
    folder = tiny_tokenizer(tmp_path / "model")
    parts = json.loads(gemma.to_str())
    load_tokenizer(change(folder, **{name: parts[name] for name in ("normalizer", "decoder", "pre_tokenizer")}))
