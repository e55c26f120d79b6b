import pytest
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
