"""Files from somebody who means harm, made on the spot, and the commands they are handed to."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.cli.main import run


class Done(NamedTuple):
    """How a command ended: its exit code, and all that it said."""

    code: int
    text: str


def tunesmith(*words: object) -> Done:
    """Run a command of the real command line in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run([str(word) for word in words])
        except SystemExit as end:
            return Done(end.code if isinstance(end.code, int) else 0, said.getvalue())
    raise AssertionError("every command leaves with a code")


class Touch:
    """What makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def evil_pickle(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"weights": Touch(canary)}, protocol=protocol)


def disguises(canary: Path) -> dict[str, bytes]:
    """Everything that is or may hold a pickle, by what it is."""
    import torch

    content = evil_pickle(canary)
    found = {f"pickle of protocol {protocol}": evil_pickle(canary, protocol) for protocol in range(6)}
    found["gzip"], found["bzip2"], found["xz"] = gzip.compress(content), bz2.compress(content), lzma.compress(content)
    found["zstd"] = b"\x28\xb5\x2f\xfd" + content
    found["7z"] = b"7z\xbc\xaf\x27\x1c" + bytes(26) + content
    found["rar"] = b"Rar!\x1a\x07\x01\x00" + content
    found["hdf5"] = b"\x89HDF\r\n\x1a\n" + content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    found["zip"] = buffer.getvalue()
    found["empty zip"] = b"PK\x05\x06" + bytes(18)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        about = tarfile.TarInfo("data.pkl")
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    found["tar"] = buffer.getvalue()
    for name, zipped in (("torch", True), ("old torch", False)):
        buffer = io.BytesIO()
        torch.save({"weights": Touch(canary)}, buffer, _use_new_zipfile_serialization=zipped)
        found[name] = buffer.getvalue()
    return found


CODE = "from pathlib import Path\nPath({canary!r}).touch()\n"
KEYS: dict[str, Any] = {
    "auto_map": {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForCausalLM": "evil.Model",
        "AutoModelForSequenceClassification": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
    },
    "trust_remote_code": True,
    "model_file": "evil.py",
    "_name_or_path": "owner/evil",
    "_attn_implementation": "owner/evil",
    "_attn_implementation_internal": "owner/evil",
    "_experts_implementation": "owner/evil",
    "attn_implementation": "owner/evil",
    "experts_implementation": "owner/evil",
    "kernel_config": {"RMSNorm": "owner/evil:evil"},
    "use_kernels": True,
    "custom_generate": "evil.py",
    "custom_pipelines": {"text-generation": {"impl": "evil.Pipeline"}},
}


def arm(folder: Path, canary: Path) -> Path:
    """Make a good model folder one that tries to run code in every way that a folder has."""
    config = json.loads((folder / "config.json").read_text())
    nested = {"model_type": "llama", **KEYS}
    config = {**config, **KEYS, "vision_config": nested, "parts": [dict(KEYS)]}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **KEYS, "tokenizer_class": "EvilTokenizer"}))
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, **KEYS}))
    (folder / "processor_config.json").write_text(json.dumps(KEYS))
    code = CODE.format(canary=str(canary))
    for name in ("evil.py", "modeling_evil.py", "__init__.py", "conftest.py", "setup.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state_0.pth", "tokenizer.pkl"):
        (folder / name).write_bytes(evil_pickle(canary))
    return folder


def copy(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model folder, with other values in its config."""
    shutil.copytree(folder, to)
    if config:
        settings = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**settings, **config}))
    return to
