"""`tunesmith export`: a run or a model in the form that another program reads, proven by its answers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tunesmith.contained import check_tree
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import Diagnostic, Fix, UsageError, Where
from tunesmith.export.card import base_name, card
from tunesmith.export.gguf.families import family_of
from tunesmith.export.gguf.reading import Reading
from tunesmith.export.gguf.turning import main_rope, original_length
from tunesmith.export.gguf.types import EXACT, FILE_TYPES, FileType, file_type
from tunesmith.export.gguf.vocabulary import Vocabulary, read_vocabulary
from tunesmith.export.gguf.write import About, write_gguf, write_lora
from tunesmith.export.graph import FILE, Graph, check_packages, write_graph
from tunesmith.export.huggingface import computing_dtype, merge_finite, name_of, save_merged
from tunesmith.export.ollama import modelfile
from tunesmith.export.opening import ModelSource, Which, check_gives, find_model, load_source
from tunesmith.export.quantised import (
    BITS,
    Bits,
    as_stored,
    check_layers,
    check_package,
    limit_of,
    read_folder,
    write_bits,
)
from tunesmith.export.staging import check_target, staged
from tunesmith.export.uses import USES
from tunesmith.export.verifying import ROUNDED, Check, Source, logits_of, prompt_rows, refuse_failed
from tunesmith.models.adapters import load_adapter
from tunesmith.models.adapters.updates import read_low_rank
from tunesmith.models.architecture import build_config
from tunesmith.models.config import ModelConfig
from tunesmith.models.forward import base_model
from tunesmith.models.load import load_base, resolve_dtype
from tunesmith.models.rounded import rounded_copy
from tunesmith.models.safety import read_config
from tunesmith.models.save import copy_tokenizer

Form = Literal["huggingface", "adapter", "gguf", "gguf-adapter", "ollama", "onnx"]
FORMS: tuple[Form, ...] = ("huggingface", "adapter", "gguf", "gguf-adapter", "ollama", "onnx")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LIMITS = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 1e-3}  # nats per token that rounding explains
TYPES: Mapping[Form, tuple[str, ...]] = {"huggingface": (*DTYPES, *BITS), "onnx": ("float32", "float16")}
REPORT = "export.json"


@dataclass(frozen=True, slots=True)
class Wish:
    """The form and, where it has them, types of GGUF files, type and largest file of a folder, context to offer."""

    to: Form = "huggingface"
    types: tuple[str, ...] = ("q8_0",)
    dtype: str | None = None
    shard: str = "5GB"
    context: int | None = None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how near its answers are to the source's."""

    folder: str
    form: Form
    base: str
    bytes: int
    checks: tuple[Check, ...]
    warnings: tuple[Diagnostic, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "form": self.form,
            "base": self.base,
            "bytes": self.bytes,
            "checks": [check.to_json() for check in self.checks],
            "warnings": [warning.to_json() for warning in self.warnings],
        }


@dataclass(frozen=True, slots=True)
class Order:
    """An export on its way: where from, where to, as what."""

    found: ModelSource
    out: Path
    wish: Wish
    config: PreTrainedConfig

    @property
    def word(self) -> Literal["float32", "bfloat16"]:
        """The type that the model is computed in."""
        return "float32" if computing_dtype(self.found.base, torch.bfloat16) == torch.float32 else "bfloat16"

    @property
    def about(self) -> About:
        longest = self.config.to_dict()["max_position_embeddings"]
        return About(self.out.name, base_name(self.found), min(self.wish.context or longest, longest))


Checker = Callable[[Path], list[Check]]


def export(name: str, out: Path, wish: Wish, which: Which = "auto") -> ExportReport:
    """Write what `name` means to the new folder `out`, read it back and compare.

    ModelError E435 when the answers differ by more than the type explains: the folder stays, its report says so.
    UsageError E430 for an unknown type, E438 where there is no adapter; E431 to E434 for what GGUF cannot hold; E439
    for a package that is not installed, E440 for a type that the form has not.
    """
    found = find_model(name, which)
    check_gives(found, "text")
    check_target(out)
    config = build_config(read_config(found.base)[0], found.base)
    order = Order(found, out, wish, config)
    if wish.to in ("gguf", "gguf-adapter", "ollama"):
        family_of(config)
    for kind in wish.types:
        file_type(kind)
    if wish.to in ("adapter", "gguf-adapter") and found.adapter is None:
        raise no_adapter(name)
    check_wish(wish)
    write = WRITERS[wish.to]
    with staged(out, "the export") as stage:
        stage.mkdir()
        checker, warnings = write(order, stage)
    copied = rounded_copy(found.base, name)
    warnings += [] if copied is None else [copied]
    checks = checker(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    report = ExportReport(str(out), wish.to, base_name(found), size, tuple(checks), tuple(warnings))
    (out / REPORT).write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    (out / "README.md").write_text(written_card(order, report), "utf-8")
    refuse_failed(checks, out)
    return report


def check_wish(wish: Wish) -> None:
    """E440 for a type that the form has not, E439 for a package that is not installed."""
    known = TYPES.get(wish.to, ())
    if wish.dtype is not None and wish.dtype not in known:
        told = f"--to {wish.to} has no type {wish.dtype}" if known else f"--dtype says nothing for --to {wish.to}"
        fixes = [f"--dtype {' or '.join(known)}"] if known else ["leave --dtype out; --type is that of GGUF files"]
        raise UsageError("E440", told, where=Where("command line", field="--dtype"), fixes=fixes)
    if wish.dtype in BITS:
        check_package(cast("Bits", wish.dtype))
    if wish.to == "onnx":
        check_packages()


def no_adapter(name: str) -> UsageError:
    return UsageError(
        "E438",
        f"{name} has no adapter to write",
        where=Where("command line", field="--to"),
        fixes=[Fix("write the whole model", command=f"tunesmith export {name} OUT --to huggingface")],
    )


def opened(order: Order) -> tuple[PreTrainedModel, Source]:
    """The plain model, and what it said before its adapter was merged."""
    tokenizer = load_tokenizer(order.found.base, order.found.settings.new_tokens)
    rows = prompt_rows(order.found, tokenizer)
    model = load_source(order.found, order.word)
    source = Source(rows, logits_of(model, rows), tokenizer)
    return merge_finite(model), source


def write_huggingface(order: Order, stage: Path) -> tuple[Checker, list[Diagnostic]]:
    named = order.wish.dtype
    if named in BITS:
        return write_quantised(order, stage, cast("Bits", named))
    model, source = opened(order)
    written = DTYPES[named] if named else resolve_dtype(order.found.settings.dtype, read_config(order.found.base)[0])
    save_merged(model, written, stage, order.found, order.wish.shard)

    def check(out: Path) -> list[Check]:
        again = load_base(out, ModelConfig(path=str(out), dtype=order.word))
        form = name_of(written)
        return [source.check(logits_of(again, source.rows), out.name, form, LIMITS[form])]

    return check, []


@contextmanager
def plain_folder(order: Order, model: PreTrainedModel, dtype: torch.dtype) -> Iterator[Path]:
    """The merged model as an ordinary folder, for as long as another form is made of it."""
    with tempfile.TemporaryDirectory(dir=order.out.parent) as place:
        save_merged(model, dtype, Path(place), order.found, order.wish.shard)
        yield Path(place)


def write_quantised(order: Order, stage: Path, bits: Bits) -> tuple[Checker, list[Diagnostic]]:
    check_layers(order.config, bits)
    model, source = opened(order)
    dtype = resolve_dtype(order.found.settings.dtype, read_config(order.found.base)[0])
    with plain_folder(order, model, dtype) as plain:
        write_bits(bits, plain, stage, dtype, order.wish.shard)
    copy_tokenizer(order.found.base, stage, order.found.settings.added)
    computed = DTYPES[order.word]

    def check(out: Path) -> list[Check]:
        found = logits_of(read_folder(out, computed), source.rows)
        wanted = logits_of(as_stored(model.to(dtype=computed), out), source.rows)  # pyright: ignore[reportCallIssue]
        exact = order.word == "float32"
        near = source.check(found, out.name, bits, limit_of(bits) + (0 if exact else ROUNDED))
        return [source.explained(near, found, wanted, EXACT if exact else ROUNDED)]

    return check, []


def write_onnx(order: Order, stage: Path) -> tuple[Checker, list[Diagnostic]]:
    model, source = opened(order)
    form = order.wish.dtype or "float32"
    with plain_folder(order, model, DTYPES[form]) as plain:
        write_graph(read_folder(plain, DTYPES[form]), stage)
        shutil.copy(plain / "config.json", stage)
    copy_tokenizer(order.found.base, stage, order.found.settings.added)

    def check(out: Path) -> list[Check]:
        graph = Graph.of(out)
        whole = source.check(graph.logits(source.rows), FILE, form, LIMITS[form])
        by_token = source.check(graph.logits_by_token(source.rows), FILE, f"{form} token by token", LIMITS[form])
        return [whole, by_token]

    return check, turning_warning(order)


def write_adapter(order: Order, stage: Path) -> tuple[Checker, list[Diagnostic]]:
    folder, source = order.found.adapter, opened(order)[1]
    assert folder is not None
    check_tree(folder)
    shutil.copytree(folder, stage, dirs_exist_ok=True)

    def check(out: Path) -> list[Check]:
        base = load_base(order.found.base, order.found.settings.model_copy(update={"dtype": order.word}))
        again = load_adapter(base, out)
        return [source.check(logits_of(again, source.rows), out.name, "the adapter", LIMITS["float32"])]

    return check, []


def row_count(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def gguf_files(order: Order, stage: Path, model: PreTrainedModel) -> tuple[dict[str, FileType], Vocabulary]:
    """Files by name; the tokenizer is read from a folder that has the tokens a run added."""
    with tempfile.TemporaryDirectory() as place:
        copy_tokenizer(order.found.base, Path(place), order.found.settings.added)
        words = read_vocabulary(Path(place), row_count(model))
    kinds = {f"{order.out.name}-{kind.name}.gguf": kind for kind in map(file_type, order.wish.types)}
    for name, kind in kinds.items():
        write_gguf(stage / name, model, kind, words, order.about)
    return kinds, words


def write_ggufs(order: Order, stage: Path) -> tuple[Checker, list[Diagnostic]]:
    model, source = opened(order)
    kinds = gguf_files(order, stage, model)[0]

    def check(out: Path) -> list[Check]:
        return [each for name, kind in kinds.items() for each in source.check_gguf(out / name, model, kind)]

    return check, window_warning(order)


def write_ollama(order: Order, stage: Path) -> tuple[Checker, list[Diagnostic]]:
    model, source = opened(order)
    kinds, words = gguf_files(order, stage, model)
    name, kind = next(iter(kinds.items()))
    text, warnings = modelfile(source.tokenizer, words, name, order.about.context)
    (stage / "Modelfile").write_text(text, "utf-8")

    def check(out: Path) -> list[Check]:
        return source.check_gguf(out / name, model, kind)

    return check, [*window_warning(order), *warnings]


def write_gguf_adapter(order: Order, stage: Path) -> tuple[Checker, list[Diagnostic]]:
    """The adapter alone; for the check the base is written too, to a place that is gone afterwards."""
    folder, source = order.found.adapter, opened(order)[1]
    assert folder is not None
    name = f"{order.out.name}-lora.gguf"
    write_lora(stage / name, read_low_rank(folder), order.config, order.about)

    def check(out: Path) -> list[Check]:
        base = base_model(load_base(order.found.base, order.found.settings.model_copy(update={"dtype": order.word})))
        kind = FILE_TYPES["F32" if order.word == "float32" else "BF16"]
        with tempfile.TemporaryDirectory(dir=out.parent) as place:
            copy_tokenizer(order.found.base, Path(place))
            words = read_vocabulary(Path(place), row_count(base))
            write_gguf(Path(place) / "base.gguf", base, kind, words, order.about)
            logits = Reading(Path(place) / "base.gguf", out / name).logits(source.rows)
        return [source.check(torch.cat(logits), name, "the adapter", kind.limit)]

    return check, []


WRITERS: Mapping[Form, Callable[[Order, Path], tuple[Checker, list[Diagnostic]]]] = {
    "huggingface": write_huggingface,
    "adapter": write_adapter,
    "gguf": write_ggufs,
    "gguf-adapter": write_gguf_adapter,
    "ollama": write_ollama,
    "onnx": write_onnx,
}


def window_warning(order: Order) -> list[Diagnostic]:
    """W430: programs that read the file let Mistral and Phi-3 see everything, where the model sees a window."""
    window = order.config.to_dict().get("sliding_window")
    if order.config.model_type not in ("mistral", "phi3") or not window or window >= order.about.context:
        return []
    message = f"the model sees {window:,} tokens back, and GGUF has no key for that: longer texts are read otherwise"
    fix = Fix("offer no longer context", command=f"tunesmith export MODEL OUT --to {order.wish.to} --context {window}")
    return [Diagnostic("W430", message, "warning", Where("config.json", field="sliding_window"), (), (fix,))]


def turning_warning(order: Order) -> list[Diagnostic]:
    """W433: a model that turns positions otherwise in long texts does not do so in a graph, which is followed once."""
    config = order.config.to_dict()
    if main_rope(config).get("rope_type") not in ("dynamic", "longrope"):
        return []
    message = f"beyond {original_length(config):,} tokens the model turns positions otherwise, and the graph does not"
    return [Diagnostic("W433", message, "warning", Where("config.json", field="rope_parameters"), (), ())]


def written_card(order: Order, report: ExportReport) -> str:
    lines = "\n".join(f"- {check}" for check in report.checks)
    prompts = max(check.prompts for check in report.checks)
    proof = f"## Check\n\nRead back and compared with the source on {prompts} prompts:\n\n{lines}"
    form = order.wish.dtype if order.wish.dtype in BITS else order.wish.to
    use = USES[form].filled(order.out.name, report.checks[0].file)
    return card(order.found, order.out.name, use, proof)
