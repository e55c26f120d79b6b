"""A GGUF file becomes a folder of bf16 safetensors with its tokenizer, converted once through transformers."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, Where
from tunesmith.models.cache import Progress, made_once, remembered_digest, require_space, silent
from tunesmith.models.gguf_header import check_gguf
from tunesmith.paths import home
from tunesmith.track.kept import Kept

USUAL_SECONDS = 20.0  # of a conversion, for a progress bar that has nothing to measure
FLOAT32_BYTES = 2_000_000_000  # smaller files are read in fp32, which is four times as fast as bf16
STRAY = {
    "config.json": ("_model_name_or_path", "_name_or_path"),
    "generation_config.json": ("_from_model_config", "output_attentions", "output_hidden_states"),
    "tokenizer_config.json": ("is_local", "local_files_only"),
}


def locate_gguf(path: Path, progress: Progress | None = None) -> Path:
    """The folder a GGUF file was converted to, converting it on first use; keyed by the file's content."""
    check_gguf(path)
    report = progress or silent

    def make(stage: Path) -> None:
        require_space(stage.parent, 5 * path.stat().st_size, f"converting {path.name}")
        convert_in_child(path, stage, report)

    return made_once(home() / "models" / f"gguf-{remembered_digest(path)[:16]}", make, report)


def convert_in_child(gguf: Path, stage: Path, progress: Progress = silent) -> None:
    """Convert in a process of its own, so that its memory is gone afterwards; ModelError E088 when it fails."""
    log = stage / "convert.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    begin = time.monotonic()
    with log.open("wb") as output:
        command = [sys.executable, "-P", "-m", "tunesmith.models.gguf", str(gguf.resolve()), str(stage)]
        process = Kept(command, output, environment)
        try:
            while process.runs:
                progress("convert", min((time.monotonic() - begin) / USUAL_SECONDS, 0.99))
                time.sleep(0.25)
        finally:
            process.end()
    if process.code != 0:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise ModelError(
            "E088",
            f"{gguf.name} cannot be converted",
            where=Where(str(gguf)),
            evidence=[line[:300] for line in lines[-3:]],
            fixes=["use the same model as a folder with safetensors weights"],
        )
    log.unlink()
    progress("convert", 1.0)


def convert(gguf: Path, out: Path) -> None:
    """De-quantise the weights to bf16 and write them with config, generation config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if gguf.stat().st_size < FLOAT32_BYTES else torch.bfloat16
    with tempfile.TemporaryDirectory() as alone:  # other files beside the GGUF would be read as well
        (Path(alone) / "model.gguf").symlink_to(gguf.resolve())
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf", trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            alone, gguf_file="model.gguf", dtype=dtype, trust_remote_code=False
        )
    # transformers refuses to save a model that still carries its GGUF marks
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name, keys in STRAY.items():
        drop_keys(out / name, keys)


def drop_keys(path: Path, keys: tuple[str, ...]) -> None:
    if not path.is_file():
        return
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
