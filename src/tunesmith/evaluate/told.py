"""A report in words: Markdown, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.evaluate.comparison import Change, Report, Summary
from tunesmith.evaluate.contamination import Overlap
from tunesmith.evaluate.metrics import Score
from tunesmith.evaluate.paired import Difference

LOSSES = ("", "word_", "byte_")
PLAIN = {"bits_per_byte", *(f"{unit}{word}" for unit in LOSSES for word in ("loss", "perplexity"))}  # others are shares
LONGEST = 240  # characters of an answer
SEEN = 10
WORDS = {"worse": "worse", "better": "better", "open": "no difference shown"}


def number(value: float, measure: str, *, signed: bool = False) -> str:
    """A share in percent with one decimal, anything else with three; nothing has no sign."""
    shown, places = (value, 3 if abs(value) < 1000 else 0) if measure in PLAIN else (100 * value, 1)
    rounded = round(shown, places) + 0.0  # a zero of either sign becomes 0
    return f"{rounded:{'+' if signed and rounded else ''},.{places}f}"


def interval(score: Score, measure: str, *, signed: bool = False) -> str:
    low, high = (number(end, measure, signed=signed) for end in (score.low, score.high))
    return f"{low} to {high}"


def named(measure: str) -> str:
    return measure.replace("_", " ") + ("" if measure in PLAIN else ", %")


def probability(one: Difference) -> str:
    """The adjusted p."""
    return f"{one.p_adjusted:.3f}" if one.p_adjusted >= 0.001 else "< 0.001"


def headline(report: Report) -> list[str]:
    """What a reader should know first, in a sentence for each pair of models."""
    base, *others = report.models
    said: list[str] = []
    for model in others:
        main = [one for one in report.differences if one.model == model and one.main]
        groups = {word: [one.task for one in main if one.verdict == word] for word in WORDS}
        parts = [f"{word}: {', '.join(groups[word])}" for word in ("worse", "better") if groups[word]]
        if groups["open"]:
            parts.append(f"no difference shown: {', '.join(groups['open'])}")
        said.append(f"{model} against {base}: {'; '.join(parts)}")
    return said


def markdown(report: Report) -> str:
    """The whole report as one page."""
    parts = [f"# Evaluation: {report.suite}", ""]
    parts += [f"- {line}" for line in headline(report)]
    parts += [f"- **{one.code}** {one.message}" for one in report.warnings]
    parts += ["", "95 % intervals. Shares are in percent.", "", *scores_table(report.summaries)]
    if report.differences:
        parts += ["", "## Differences", "", explain_differences(), "", *differences_table(report.differences)]
    categories = [one for one in report.summaries if one.categories]
    if categories:
        parts += ["", "## By category", "", *categories_table(categories)]
    if report.overlaps:
        parts += ["", "## Contamination", "", *overlap_lines(report)]
    if report.changes:
        lost = [one for one in report.changes if one.change < 0]
        gained = [one for one in report.changes if one.change > 0]
        for title, changes in (("Lost", lost), ("Gained", gained)):
            if changes:
                parts += ["", f"## {title}", "", *changes_list(changes)]
    return "\n".join(parts) + "\n"


def explain_differences() -> str:
    return (
        "Second model minus first on the same exercises, turned so that more is better; regressions first. "
        "The interval is a bootstrap over exercises. p is McNemar's exact test for right and wrong, the sign test "
        "elsewhere, adjusted for how many main figures, other figures or categories are compared at once (Holm). A "
        "verdict needs both."
    )


SCORES = ("task", "measure", "model", "value", "interval", "n", "without seen ones")


def score_rows(summaries: Sequence[Summary], main: str) -> list[list[str]]:
    """The cells under SCORES, a task's main figure first; `main` shows the name of that one."""
    return [
        [
            one.task,
            main.format(named(one.measure)) if one.main else named(one.measure),
            one.model,
            number(one.score.value, one.measure),
            interval(one.score, one.measure),
            str(one.score.n),
            "" if one.clean is None else f"{number(one.clean.value, one.measure)} (n = {one.clean.n})",
        ]
        for one in sorted(summaries, key=lambda one: (one.task, not one.main, one.measure))
    ]


def scores_table(summaries: Sequence[Summary]) -> list[str]:
    return table(SCORES, score_rows(summaries, main="**{}**"))


def differences_table(differences: Iterable[Difference]) -> list[str]:
    rows = [
        [
            WORDS[one.verdict],
            one.task,
            named(one.measure),
            one.category or "all",
            f"{one.base} → {one.model}",
            f"{number(one.first, one.measure)} → {number(one.second, one.measure)}",
            number(one.change.value, one.measure, signed=True),
            interval(one.change, one.measure, signed=True),
            f"{one.better} / {one.worse} of {one.n}",
            probability(one),
        ]
        for one in differences
    ]
    titles = ["", "task", "measure", "category", "models", "values", "change", "interval", "better / worse", "p"]
    return table(titles, rows)


def categories_table(summaries: Sequence[Summary]) -> list[str]:
    rows = [
        [one.task, name, one.model, number(score.value, one.measure), interval(score, one.measure), str(score.n)]
        for one in summaries
        for name, score in one.categories.items()
    ]
    return table(["task", "category", "model", "value", "interval", "n"], sorted(rows, key=lambda row: row[:2]))


def overlap_sentence(one: Overlap) -> str:
    short = f", {one.too_short} too short to look for" if one.too_short else ""
    return f"{one.task}: {len(one.seen)} of {one.checked} seen in {one.records:,} records{short}"


def overlap_lines(report: Report) -> list[str]:
    lines: list[str] = []
    for one in report.overlaps:
        lines.append(f"- {overlap_sentence(one)}")
        lines += [f"  - {seen.name}, {seen.share:.0%} of it, at `{seen.record}`" for seen in one.seen[:SEEN]]
    return lines


def changes_list(changes: Sequence[Change]) -> list[str]:
    lines: list[str] = []
    for one in changes:
        lines.append(f"- {one.task}, {one.name}: {quoted(one.prompt)}")
        lines.append(
            f"  wanted {quoted(one.reference)}; {one.base}: {quoted(one.before)}; {one.model}: {quoted(one.after)}"
        )
    return lines


def quoted(text: str) -> str:
    """The beginning of a text on one line of code."""
    flat = " ".join(shortened(text).split()).replace("`", "'")
    return f"`{flat}`" if flat else "(nothing)"


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(titles), "|" + "---|" * len(titles), *map(line, rows)]
