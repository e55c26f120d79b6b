import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model_folder
from tests.unit.serve.running import serving

LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.2}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("serve") / "tiny", **LIVELY)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """A model that the engine does not serve."""
    folder = tmp_path_factory.mktemp("serve") / "gemma"
    return tiny_model_folder(folder, "gemma2", **LIVELY, sliding_window=8, head_dim=16)


@pytest.fixture(scope="module")
def server(tiny, gemma):
    with serving({"tiny": tiny, "gemma": gemma}) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory, tiny):
    """The same in bf16, which the engine's kernels multiply where the processor can."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("serve") / "bf16")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder
