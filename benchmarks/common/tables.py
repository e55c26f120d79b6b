"""A result as a table in Markdown, for the terminal and for the docs."""

from common.report import OURS

GIB = 2**30
COLUMNS = {  # figure: heading, digits, unit
    "tokens_per_second": ("tokens/s", 0, 1),
    "scored_tokens_per_second": ("scored/s", 0, 1),
    "later_epochs_tokens_per_second": ("later epochs", 0, 1),
    "tokens_per_cpu_second": ("per CPU-s", 0, 1),
    "cpu_seconds": ("CPU-s", 0, 1),
    "peak_bytes": ("GiB", 2, GIB),
    "peak_less_import_bytes": ("less imports", 2, GIB),
    "share_of_floor": ("of floor", 2, 1),
    "first_step_seconds": ("first step, s", 1, 1),
}
LAST = ("first loss", "loss apart", "speed", "memory")


def table(report: dict) -> str:
    """Medians of each row, its first loss, how far it is from ours, and ours divided by it in speed and peak memory."""
    medians = {name: side["median"] for name, side in report["sides"].items()}
    shown = {key: column for key, column in COLUMNS.items() if any(key in median for median in medians.values())}
    headings = ["row", *(heading for heading, _, _ in shown.values()), *LAST]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for name, median in medians.items():
        cells = [
            f"{median[key] / unit:,.{digits}f}" if key in median else "" for key, (_, digits, unit) in shown.items()
        ]
        ratio = report["ratios"].get(name, {})
        against = [f"{ratio[key]:.2f}" if key in ratio else "" for key in ("tokens_per_second", "peak_bytes")]
        losses = [f"{report['loss']['first'][name]:.4f}", far(report, name)]
        lines.append("| " + " | ".join([name, *cells, *losses, *against]) + " |")
    return "\n".join(lines)


ANSWERS = {"batch": "8 prompts of 30 to 300 tokens", "samples": "16 answers to one prompt of 300 tokens"}
GENERATION = ("row", "tokens/s", "per CPU-s", "first token, s", "GiB", "tokens as transformers", "speed")


def generation_table(report: dict) -> str:
    """Medians of each row; `speed` is that of the row divided by that of transformers."""
    medians = {name: side["median"] for name, side in report["sides"].items()}
    lines = ["| " + " | ".join(GENERATION) + " |", "|---" * len(GENERATION) + "|"]
    base = medians.get("transformers", {}).get("tokens_per_second")
    for name, one in medians.items():
        speed = "" if base is None or name == "transformers" else f"{one['tokens_per_second'] / base:.2f}"
        cells = (
            f"{one['tokens_per_second']:,.0f}",
            f"{one['tokens_per_cpu_second']:,.0f}",
            f"{one['first_token_seconds']:.2f}",
            f"{one['peak_bytes'] / GIB:.2f}",
            f"{one['same_tokens']:.0%}",
            speed,
        )
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def generation_title(report: dict) -> str:
    work = report["work"]
    threads = "one thread" if work["threads"] == 1 else f"{work['threads']} threads"
    asked = ANSWERS.get(work["work"], "one answer to one prompt of 120 tokens")
    return f"Answers, {work['model']}, {asked}, {threads}"


def generation_notes(report: dict) -> str:
    work, machine = report["work"], report["machine"]
    busy = report["load_allowed"] and max(report["busy_cores_before"] or [0.0]) > 0.3
    proof = f" In fp32 the first {report['proven_tokens']} tokens of all rows but int8 are equal." * (
        report["proven_tokens"] > 0
    )
    return (
        f"{report['date'][:10]}, commit {report['commit']}, {machine['cores']} cores ({machine['cpu']}), "
        f"{work['threads']} threads, {work['dtype']}, {work['tokens']} tokens an answer, {runs_of(work['repeats'])}."
        f"{proof}{' Other processes were at work.' if busy else ''}"
    )


def show_generation(report: dict) -> None:
    print(f"{generation_title(report)}\n{generation_table(report)}\n{generation_notes(report)}")


def show_serving(report: dict) -> None:
    work = report["work"]
    print(f"Server, {work['model']} in {work['dtype']}, {work['products']}, {work['tokens']} tokens an answer")
    print(serving_table(report))
    for name, side in report["sides"].items():
        if work["seconds"] and (curve := side["runs"][-1]["memory"]):
            told = ", ".join(f"{seconds:.0f} s {size / 2**20:.0f}" for seconds, size in curve)
            print(f"{name}: {side['runs'][-1]['requests']} requests; MiB after {told}")
    loaded = " Other processes were at work." if report["load_allowed"] else ""
    print(f"{report['date'][:10]}, {report['machine']['cores']} cores, {work['threads']} threads.{loaded}")


def serving_table(report: dict) -> str:
    lines = ["| | requests/s | tokens/s | per CPU-s | first token p50, p95, s | GiB |", "|---|---|---|---|---|---|"]
    for name, side in report["sides"].items():
        found = side["median"]
        first = f"{found['first_token_p50']:.2f}, {found['first_token_p95']:.2f}"
        speeds = [f"{found['requests_per_second']:.2f}", f"{found['tokens_per_second']:.0f}"]
        speeds += [f"{found['tokens_per_cpu_second']:.0f}", first, f"{found['peak_bytes'] / 2**30:.2f}"]
        lines.append(f"| {' | '.join([name, *speeds])} |")
    return "\n".join(lines)


HARNESS = ("task", "CPU-s", "hf backend, CPU-s", "its batch", "speed", "figures", "hf backend", "log-likelihoods apart")


def harness_table(report: dict) -> str:
    """Processor seconds of each task, what the harness tells of it, and how far the answers are apart."""
    lines = ["| " + " | ".join(HARNESS) + " |", "|---" * len(HARNESS) + "|"]
    for name, task in report["tasks"].items():
        (ours, own), (theirs, other) = task["median"].items()
        cells = (
            f"{own['cpu_seconds']:.2f}",
            f"{other['cpu_seconds']:.2f}",
            str(task["batch"]),
            f"{task['speed']:.2f}",
            told(task["told"][ours]),
            told(task["told"][theirs]),
            f"{task['apart']:.0e}",
        )
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def told(figures: dict) -> str:
    """The harness's figures, with its own four digits."""
    named = {name.removesuffix(",none"): value for name, value in figures.items() if name.endswith(",none")}
    return ", ".join(f"{name} {value:.4f}" for name, value in named.items() if "stderr" not in name)


def harness_title(report: dict) -> str:
    return f"Named tasks, {report['work']['model']}, {report['work']['work']} exercises, {report['work']['dtype']}"


def harness_notes(report: dict) -> str:
    work, machine = report["work"], report["machine"]
    busy = report["load_allowed"] and max(report["busy_cores_before"] or [0.0]) > 0.3
    return (
        f"{report['date'][:10]}, commit {report['commit']}, {machine['cores']} cores ({machine['cpu']}), "
        f"{work['threads']} threads, {work['count']} exercises of each task, {runs_of(work['repeats'])}, "
        f"lm-eval {report['versions'].get('lm_eval', '?')}.{' Other processes were at work.' if busy else ''}"
    )


def show_harness(report: dict) -> None:
    print(f"{harness_title(report)}\n{harness_table(report)}\n{harness_notes(report)}")


def far(report: dict, name: str) -> str:
    """The largest difference of a row's losses from ours, over all steps."""
    if name == OURS or OURS not in report["sides"]:
        return ""
    ours, theirs = (report["sides"][side]["runs"][0]["losses"] for side in (OURS, name))
    return f"{max(abs(one - other) for one, other in zip(ours, theirs, strict=True)):.0e}"


def title(report: dict) -> str:
    work = report["work"]
    kind = work.get("method", "sft") if report["benchmark"] == "preference" else work.get("tuning", "lora")
    kind = {"lora": "SFT with LoRA", "full": "SFT of all weights"}.get(kind, kind.upper())
    epochs = f", {work['epochs']} epochs" if work.get("epochs", 1) > 1 else ""
    return f"{kind}, {work['model']}, {work.get('work', 'short')} sequences{epochs}"


def notes(report: dict) -> str:
    """What has to be known beside the table: machine, work, and how far the losses are apart."""
    work, machine = report["work"], report["machine"]
    # Result files of schema 1 kept the proof under other names.
    proof = report.get("losses_float32") or report.get("first_losses_float32") or report.get("first_loss_float32") or {}
    per_step = work.get("sequences") or work.get("pairs_per_step")
    unit = "sequences" if "sequences" in work else "pairs"
    parts = [
        f"{report['date'][:10]}, commit {report['commit']}, {machine['cores']} cores ({machine['cpu']}), "
        f"{work['threads']} threads, {work['dtype']}, {per_step} {unit} a step, {runs_of(work['repeats'])}.",
        f"Losses of a step are at most {report['loss']['largest_difference']:.1e} apart"
        + (", in fp32 at most " + f"{apart(proof):.1e}." if len(proof) > 1 else "."),
    ]
    versions = {
        f"{package} {version}"
        for name, side in report["sides"].items()
        for package, version in side["versions"].items()
        if name != OURS and package in ("trl", "peft", "llamafactory", "unsloth", "torchtune")
    }
    if report.get("load_allowed") and max(report.get("busy_cores_before") or [0.0]) > 0.3:
        parts.append("Other processes were at work.")
    return " ".join([*parts, *([", ".join(sorted(versions)) + "."] if versions else [])])


def runs_of(repeats: int) -> str:
    return f"medians of {repeats} runs" if repeats > 1 else "one run"


def apart(proof: dict[str, list[float] | float]) -> float:
    """The largest difference of the losses of a step; a bare number stands for one step."""
    losses = [one if isinstance(one, list) else [one] for one in proof.values()]
    return max(max(step) - min(step) for step in zip(*losses, strict=True))


def show(report: dict) -> None:
    print(f"{title(report)}\n{table(report)}\n{notes(report)}\nspeed, memory: {OURS} divided by that row")
