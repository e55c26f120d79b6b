import json
import pickle
import zipfile

import pytest

from tunesmith.errors import ModelError, Unsafe
from tunesmith.models.safety import read_config, refuse_pickle

GOOD = {"model_type": "llama", "hidden_size": 64, "rope_parameters": {"rope_type": "default"}}


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_clean_config_comes_back_unchanged(tmp_path):
    assert read_config(write(tmp_path, GOOD)) == (GOOD, ())


def test_f08_hostile_keys_are_stripped_at_every_depth_and_named(tmp_path):
    hostile = {
        **GOOD,
        "auto_map": {"AutoModel": "evil.Model"},
        "_attn_implementation_internal": "owner/kernel",
        "attn_implementation": "owner/kernel",
        "trust_remote_code": True,
        "model_file": "evil.py",
        "custom_pipelines": {"x": {"impl": "evil.P"}},
        "text_config": {"model_type": "llama", "auto_map": {}, "_name_or_path": "x"},
        "parts": [{"auto_map": {}}],
    }
    clean, stripped = read_config(write(tmp_path, hostile))
    assert clean == {**GOOD, "text_config": {"model_type": "llama"}, "parts": [{}]}
    assert set(stripped) == {
        "auto_map",
        "_attn_implementation_internal",
        "attn_implementation",
        "trust_remote_code",
        "model_file",
        "custom_pipelines",
        "text_config.auto_map",
        "text_config._name_or_path",
        "parts.0.auto_map",
    }


@pytest.mark.parametrize("model_type", [None, 7, "", "llama\nimport os", "../llama", "Llama", "a" * 65])
def test_f08_a_model_type_must_be_a_plain_word(tmp_path, model_type):
    with pytest.raises(ModelError, match="E084"):
        read_config(write(tmp_path, {**GOOD, "model_type": model_type}))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000, '{"a": ' * 50 + "1" + "}" * 50, "9" * 5000])
def test_a_config_that_is_not_one_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match="E084"):
        read_config(tmp_path)


def test_a_folder_without_config_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config.json"):
        read_config(tmp_path)


def test_quantised_weights_are_refused_with_their_method(tmp_path):
    with pytest.raises(ModelError, match="gptq") as caught:
        read_config(write(tmp_path, {**GOOD, "quantization_config": {"quant_method": "gptq"}}))
    assert caught.value.diagnostic.code == "E089"


def test_f01_pickles_are_known_by_content_not_by_name(tmp_path):
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"p{protocol}.safetensors"
        path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
        with pytest.raises(Unsafe, match="a pickle"):
            refuse_pickle(path)
    path = tmp_path / "zipped.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(Unsafe, match="zip archive"):
        refuse_pickle(path)
    path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    with pytest.raises(Unsafe, match="7z") as caught:
        refuse_pickle(path)
    assert caught.value.exit_code == 9


def test_a_safetensors_header_length_that_looks_like_a_magic_is_no_pickle(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((0x0280).to_bytes(8, "little") + b"{" + b" " * 700)
    refuse_pickle(path)
