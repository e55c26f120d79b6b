"""The README of an exported model, written from what its run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith import __version__
from tunesmith.configuring.reader import read_yaml
from tunesmith.contained import is_contained
from tunesmith.errors import TunesmithError
from tunesmith.export.opening import ModelSource
from tunesmith.export.uses import Use
from tunesmith.models.meaning import Meaning
from tunesmith.track.outcome import outcome
from tunesmith.track.reader import read_lines
from tunesmith.track.run_dir import RunDir

LONGEST_README = 65_536  # bytes of a model's README that are looked at
SHOWN = (
    "model.adapter",
    "objective",
    "train.epochs",
    "train.steps",
    "train.sequences_per_step",
    "train.tokens_per_step",
    "train.optimizer",
    "train.schedule",
    "train.seed",
    "data.train_on",
    "data.max_length",
)
COUNTS = (
    ("records", "records"),
    ("examples", "examples"),
    ("tokens", "tokens"),
    ("trained_tokens", "of them in the loss"),
)


def model_card(source: ModelSource, name: str, report: Mapping[str, Any]) -> str:
    """Markdown with the front matter of model hubs; file paths of this machine are left out."""
    meaning = source.meaning if source.outputs else None
    made = "merged into an ordinary model folder"
    how = use_text(name) if meaning is None else use_head(name, meaning)
    return card(source, name, Use(made, how), f"## Merge\n\n{merge_lines(report)}")


def card(source: ModelSource, name: str, use: Use, proof: str) -> str:
    """What it is and how it was made, how it is used, what it was trained on, the `proof` that it is the same."""
    base = base_name(source)
    recipe = recipe_of(source.run)
    parts = [
        front_matter(source, base, use),
        f"# {name}",
        f"{described(recipe)} of `{base}`, made with Tunesmith {__version__} and {use.made}.",
        "## Use",
        use.how,
        "## Base model",
        f"`{base}`" + stack_note(source, recipe) + checkpoint_note(source),
    ]
    if source.run is not None:
        parts += ["## Data", data_lines(source.run, recipe), "## Training", training_lines(source.run, recipe)]
        parts += ["## Results", result_lines(source.run)]
    parts += [proof, "## Limits", limit_lines(source.run, recipe, use), "## Licence", licence(source, base)]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(source: ModelSource, base: str, use: Use) -> str:
    """The lines that model hubs sort by; a licence only where the base folder names one."""
    about = {
        "license": licence_of(source.base),
        "base_model": base,
        "base_model_relation": use.relation,
        "library_name": use.library,
        "pipeline_tag": "text-classification" if source.outputs else "text-generation",
        "tags": ["tunesmith"],
    }
    return f"---\n{yaml.safe_dump({key: value for key, value in about.items() if value}, sort_keys=False)}---"


def base_name(source: ModelSource) -> str:
    """The name in the recipe; of a path only its last part."""
    path = source.settings.path
    return Path(path).name if Path(path).exists() or path.startswith(("/", ".", "~")) else path


def recipe_of(run: RunDir | None) -> dict[str, Any]:
    if run is None:
        return {}
    try:
        value = read_yaml(run.read_config(), str(run.config_file)).value
    except TunesmithError:
        return {}
    return value if isinstance(value, dict) else {}


def described(recipe: Mapping[str, Any]) -> str:
    method = value_at(recipe, "model.adapter.method")
    objective = value_at(recipe, "objective.name")
    words = {
        "lora": "A LoRA fine-tune",
        "dora": "A DoRA fine-tune",
        "full": "A full fine-tune",
        "freeze": "A partial fine-tune",
    }
    return words.get(str(method), "A fine-tune") + (f" ({objective})" if objective else "")


def use_text(name: str) -> str:
    return f'```\ntunesmith chat {name}\n```\n\nor with transformers: `AutoModelForCausalLM.from_pretrained("{name}")`.'


def use_head(name: str, meaning: Meaning) -> str:
    """What the values are, and the few lines that give the same ones in transformers."""
    if meaning.classes:
        told = (
            f"It gives one value per class ({', '.join(f'`{each}`' for each in meaning.classes)}); softmax makes them "
        )
        told += "probabilities."
    elif meaning.kind == "process":
        told = "It judges the steps of an answer: a logit at the last token of each. Transformers reads the last step."
    elif meaning.kind == "label":
        told = "It gives a number."
    else:
        told = "It gives a reward: the better of two answers to a prompt has the higher one."
    if meaning.is_reward and meaning.centred_on:
        told += f" `tunesmith score` subtracts {meaning.offset:.4g}, the mean over `{meaning.centred_on}`; "
        told += "the model itself does not."
    return f"""{told}

```
tunesmith score {name} --data FILE
```

or with transformers:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}", dtype="float32")
texts = [tokenizer.apply_chat_template(chat, tokenize=False)]  # chat: messages that end with the answer
model(**tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")).logits
```"""


def stack_note(source: ModelSource, recipe: Mapping[str, Any]) -> str:
    """The adapters that became part of the base before this one was trained; of their paths only the last part."""
    names = value_at(recipe, "model.merged_adapters") or source.settings.merged_adapters
    listed = ", ".join(f"`{Path(str(name)).name}`" for name in names)
    return f", with {listed} merged into it first" if listed else ""


def checkpoint_note(source: ModelSource) -> str:
    return "" if source.checkpoint is None else f", with the weights of step {source.checkpoint.step}"


def data_lines(run: RunDir, recipe: Mapping[str, Any]) -> str:
    listed = value_at(recipe, "data.train") or []
    names = [Path(str(each.get("path", each) if isinstance(each, dict) else each)).name for each in listed]
    about = recorded(run).get("data")
    about = about if isinstance(about, dict) else {}
    counts = [f"{about[key]:,} {word}" for key, word in COUNTS if isinstance(about.get(key), int)]
    shown = [
        ("files", ", ".join(f"`{each}`" for each in names)),
        ("size", ", ".join(counts)),
        ("hash", f"`{about['hash']}`" if about.get("hash") else ""),
    ]
    return "\n".join(f"- {word}: {text}" for word, text in shown if text)


def training_lines(run: RunDir, recipe: Mapping[str, Any]) -> str:
    came = outcome(run)
    lines = [f"- {came.steps:,} steps, {came.tokens:,} tokens" + (f", {came.seconds:,.0f} s" if came.seconds else "")]
    for key in SHOWN:
        value = value_at(recipe, key)
        if value is not None:
            shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
            lines.append(f"- {key}: `{shown.strip().removesuffix('...').strip()}`")
    return "\n".join(lines)


def result_lines(run: RunDir) -> str:
    """Losses, and the newest evaluation as a table with its intervals."""
    came = outcome(run)
    pairs = (
        ("first training loss", came.first_loss),
        ("last training loss", came.last_loss),
        ("evaluation loss", came.eval_loss),
    )
    lines = [f"- {word}: {value:.4f}" for word, value in pairs if value is not None]
    evaluations = [row["scores"] for row in read_lines(run.events_file) if isinstance(row.get("scores"), dict)]
    table = [
        f"| {task} | {metric} | {score['value']:.4g} | {score['low']:.4g} to {score['high']:.4g} | {score['n']:,} |"
        for task, metrics in (evaluations[-1] if evaluations else {}).items()
        for metric, score in metrics.items()
        if isinstance(score, dict) and "value" in score
    ]
    head = ["", "| task | metric | value | 95 % interval | n |", "|---|---|---|---|---|"]
    return "\n".join(lines + (head + table if table else [])) or "No figures were recorded."


def merge_lines(report: Mapping[str, Any]) -> str:
    lead = ""
    if report.get("share", 1) < 1:
        lead = f"The weights are base + {report['share']:g} (tuned - base) (arXiv:2109.01903). "
    elif report.get("averaged"):
        lead = f"The weights are a mean: {', '.join(report['averaged'])}. "
    return lead + (
        f"Weights in {report['dtype']}. On {report['positions']} predictions or scores they differ from the unmerged "
        f"weights by {report['difference']:.1g} {report['unit']} (allowed: {report['limit']:g})."
    )


def limit_lines(run: RunDir | None, recipe: Mapping[str, Any], use: Use) -> str:
    """What nobody has looked at, as far as the run tells."""
    lines = ["- What the base model gets wrong, this one can get wrong too. Nothing here tests whether it is safe."]
    if use.rounded:
        lines.append("- Its weights are rounded, so it answers somewhat otherwise than its source: see the check.")
    longest = value_at(recipe, "data.max_length")
    if longest:
        lines.append(f"- It was trained on texts of up to {longest:,} tokens; longer ones were not practised.")
    if run is not None and "| task |" not in result_lines(run):
        lines.append("- No score on a task was recorded: the losses say nothing of how useful its answers are.")
    return "\n".join(lines)


def licence(source: ModelSource, base: str) -> str:
    """What the base folder says of its licence, and what follows for this model."""
    named = licence_of(source.base)
    told = f" (its folder says: {named})" if named else ""
    return (
        f"The licence of `{base}`{told} holds for this model too; the licences of the training data may add terms. "
        "Check both before you share it."
    )


def licence_of(folder: Path) -> str | None:
    """The `license` of the front matter of a folder's README."""
    path = folder / "README.md"
    if not path.is_file() or not is_contained(path):
        return None
    try:
        with path.open("rb") as file:
            parts = file.read(LONGEST_README).decode("utf-8", "replace").split("---")
        about = read_yaml(parts[1], str(path)).value if len(parts) > 2 and not parts[0].strip() else None
    except (OSError, TunesmithError):
        return None
    named = about.get("license") if isinstance(about, dict) else None
    return named if isinstance(named, str) else None


def recorded(run: RunDir) -> dict[str, Any]:
    try:
        return run.read_run()
    except TunesmithError:
        return {}


def value_at(tree: Any, key: str) -> Any:
    """The value under a dotted key, None when it is not there."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
