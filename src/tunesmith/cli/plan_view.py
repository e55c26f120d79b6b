"""A plan as a person reads it: a few aligned lines, the arithmetic written out, one bar for memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.planning.fresh import told_fresh
from tunesmith.planning.guards import told_guards
from tunesmith.planning.paging import told_paging
from tunesmith.planning.problems import gigabytes

if TYPE_CHECKING:
    from tunesmith.plan import Plan
    from tunesmith.planning.trunk import TrunkPlan

BAR = 44
WHERE = {"memory": "in memory", "disk": "on disk"}
HARD_SPACE = "\N{NO-BREAK SPACE}"
PARTS = {
    "weights": ("weights", "blue"),
    "adapters": ("adapters", "cyan"),
    "gradients": ("gradients", "green"),
    "optimizer": ("optimiser", "yellow"),
    "activations": ("activations", "magenta"),
    "head": ("head", "red"),
    "other": ("process", "white"),
    "copies": ("copies", "bright_magenta"),
    "trunk": ("frozen layers' states", "bright_black"),
}


def plan_view(plan: Plan) -> RenderableType:
    """Title, facts, memory bar; the problems are diagnostics and shown apart."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(plan):
        table.add_row(name, text)
    return Group(_title(plan), Text(), table)


def _title(plan: Plan) -> Text:
    fresh = plan.recipe.model.fresh
    title = Text(plan.inventory.folder.name if fresh is None else f"new {fresh.kind.word}", style="bold cyan")
    threads = f", {plan.machine.threads} threads" if plan.machine.device == "cpu" else ""
    words = {"bfloat16": "bf16", "float32": "fp32"}
    title.append(f"  {plan.recipe.model.adapter.told()}", style="default")
    products = plan.recipe.model.base_products
    eight = "" if products == "exact" else f", frozen products in {products}"
    held = plan.recipe.model.quantization
    eight += "" if held.name == "none" else f", base in {held.told()}"
    title.append(f"  {words.get(plan.dtype, plan.dtype)}{eight} on {plan.machine.name}{threads}", style="dim")
    return title


def _rows(plan: Plan) -> list[tuple[str, Text]]:
    step, steps = plan.arithmetic()
    total = plan.inventory.total + plan.trained.adapters
    share = plan.trained.total / total
    part = f", {millions(plan.trained.at_once)} at a time" if plan.trained.resting else ""
    rows = [
        (
            "parameters",
            Text(f"{millions(total)}, of which {millions(plan.trained.total)} are trained ({share:.1%}){part}"),
        ),
        ("precision", Text(plan.precision)),
        ("data", _data(plan)),
        ("step", Text(step)),
        ("", Text(_microbatches(plan), style="dim")),
        ("length", Text(steps)),
        *((name, Text(text)) for name, text in told_guards(plan.recipe, plan.steps.total, plan.counted).items()),
        ("memory", _memory(plan)),
        ("", _bar(plan)),
        ("", _legend(plan)),
    ]
    if plan.recipe.model.fresh is not None:
        rows[:0] = [(name, Text(text)) for name, text in told_fresh(plan.recipe)]
    if plan.recipe.model.merged_adapters:
        rows.insert(1, ("merged", Text(f"{', '.join(plan.recipe.model.merged_adapters)}: part of the frozen weights")))
    if plan.checkpointing.layers:
        rows.append(("recompute", Text(_recompute(plan))))
    if plan.memory.paged:
        rows.append(("paging", Text(told_paging(plan.recipe, plan.memory.paged, plan.machine.device))))
    if plan.trunk is not None:
        rows.append(("trunk", Text(_trunk(plan, plan.trunk))))
    rows.append(("time", _time(plan)))
    return rows


def _data(plan: Plan) -> Text:
    counted = plan.counted
    text = Text(f"{counted.records:,} records, ")
    if round(counted.examples) != counted.records:
        text.append(f"{counted.examples:,.0f} examples per epoch, ")
    text.append(f"~{counted.mean_length:,.0f} tokens each, {counted.scored_share:.0%} in the loss")
    if counted.looked_at is not None:
        text.append(f"  (estimated from {counted.looked_at:,} of {counted.records:,})", style="dim")
    return text


def _microbatches(plan: Plan) -> str:
    count, limit = plan.steps.microbatches, plan.recipe.train.microbatch_limit(plan.machine.device)
    passes = "one forward pass" if count == 1 else f"about {count} forward passes"
    saved = f"; beginnings in common save ~{plan.steps.saved:.0%} (estimated)" if plan.steps.saved >= 0.005 else ""
    return f"{passes} per step, the largest {plan.steps.largest:,} tokens (limit {limit:,}){saved}"


def _memory(plan: Plan) -> Text:
    free = plan.machine.memory_free
    text = Text(f"{gigabytes(plan.memory.peak)} at the peak", style="bold" if plan.fits else "bold red")
    where = "GPU memory" if plan.machine.device == "cuda" else "memory"
    text.append(f" of {gigabytes(free)} free {where}", style="default")
    return text


def _bar(plan: Plan) -> Text:
    """The share of each part in the free memory, or in the peak when that is larger."""
    whole = max(plan.machine.memory_free, plan.memory.peak)
    sizes = plan.memory.to_json()
    bar, filled, reached = Text(), 0, 0.0
    for name, (_, colour) in PARTS.items():
        reached += BAR * sizes[name] / whole
        width = round(reached) - filled
        bar.append("█" * width, style=colour)
        filled += width
    bar.append("░" * (BAR - filled), style="dim")
    return bar


def _legend(plan: Plan) -> Text:
    text = Text()
    sizes = plan.memory.to_json()
    for name, (word, colour) in PARTS.items():
        if sizes[name] >= 0.5e6:
            text.append("■" + HARD_SPACE, style=colour)
            text.append(f"{word} {gigabytes(sizes[name])}".replace(" ", HARD_SPACE) + "  ", style="dim")
    return text


def _recompute(plan: Plan) -> str:
    chosen, layers = plan.checkpointing, plan.inventory.layers
    words = {"selective": "gate and up", "full": "whole", "offloaded": "whole, inputs offloaded"}
    counts = [f"{words[name]} of {count}" for name, count in chosen.to_json().items() if count]
    why = "to fit into memory" if plan.recipe.train.activation_checkpointing == "auto" else "asked for"
    cost = f"{plan.again / plan.flops:.0%} of the work, {duration(plan.seconds_again)}"
    return f"{', '.join(counts)} of {layers} layers, {cost}, {why}"


def _trunk(plan: Plan, trunk: TrunkPlan) -> str:
    first = f"the {trunk.layers} lowest of {plan.inventory.layers} layers once, ~{duration(plan.trunk_seconds)}"
    return f"{first}; {gigabytes(trunk.bytes)} {WHERE[trunk.where]}; the steps save ~{duration(plan.trunk_saving)}"


def _time(plan: Plan) -> Text:
    text = Text(f"about {duration(plan.seconds)}", style="bold")
    rate = plan.speed.flops / plan.flops
    work = f"{plan.flops / 1e9:.2f} GFLOP per token, {rate:,.0f} tokens/s"
    source = "a guess until the first run here" if plan.speed.is_guess else f"as {plan.speed.runs} earlier run(s) here"
    text.append(f"  ({work}: {source})", style="dim not bold")
    return text


def duration(seconds: float) -> str:
    """`95` as `1.6 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
