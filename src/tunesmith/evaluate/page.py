"""The report as one HTML page that needs nothing else: tables, plots, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tunesmith.evaluate.comparison import Change, Report, Summary
from tunesmith.evaluate.paired import Difference
from tunesmith.evaluate.plots import Mark, interval_plot
from tunesmith.evaluate.told import (
    PLAIN,
    SCORES,
    SEEN,
    WORDS,
    explain_differences,
    headline,
    interval,
    named,
    number,
    overlap_sentence,
    probability,
    score_rows,
    shortened,
)

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2933;--soft:#5b6773;--line:#e1e6eb;--panel:#f6f8fa;--m0:#5b6773;
--m1:#2563eb;--m2:#b45309;--m3:#7c3aed;--m4:#0f766e;--m5:#be185d;--worse:#c62828;--better:#1b7f3b;--open:#66727e}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e4e9ee;--soft:#9aa7b3;--line:#2c343c;--panel:#1c2229;
--m0:#9aa7b3;--m1:#6ea8fe;--m2:#f0a84b;--m3:#b79cf9;--m4:#4fc3b5;--m5:#f788b9;--worse:#ff7b72;--better:#56d364;
--open:#8b98a5}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:66rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
h3{font-size:1rem;margin:1.5rem 0 .25rem}
p,li{max-width:46rem}.soft{color:var(--soft)}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .9rem .3rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top;
min-width:5.5rem;overflow-wrap:break-word}
th{color:var(--soft);font-weight:600}td.r,th.r{text-align:right;white-space:nowrap;min-width:0}
.note{background:var(--panel);border-left:3px solid var(--m2);padding:.5rem .75rem;margin:.5rem 0}
.worse{--c:var(--worse)}.better{--c:var(--better)}.open{--c:var(--open)}
.m0{--c:var(--m0)}.m1{--c:var(--m1)}.m2{--c:var(--m2)}.m3{--c:var(--m3)}.m4{--c:var(--m4)}.m5{--c:var(--m5)}
td.worse,td.better,td.open,.key{color:var(--c);font-weight:600}td.worse,td.better,td.open{white-space:nowrap}
svg{width:100%;height:auto;max-width:47rem;display:block;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .tick{fill:var(--soft);font-size:11px}.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.front{stroke:var(--m1);stroke-width:1.5;fill:none;opacity:.5}.chosen{stroke:var(--ink);stroke-width:2}
.whisker{stroke:var(--c);stroke-width:2;stroke-linecap:round}.dot{fill:var(--c)}
.plot{max-width:52rem;margin:.5rem 0 1rem;font-size:.8125rem;line-height:1.3}
.row{display:grid;grid-template-columns:minmax(0,14rem) minmax(0,1fr) 4rem;column-gap:.9rem;min-height:22px}
.row .label{text-align:right}.row .label,.row .value{align-self:center;padding:.1rem 0}
.row .value{font-variant-numeric:tabular-nums}
.track{position:relative;min-height:22px}
.track svg{position:absolute;top:0;left:0;height:100%;max-width:none;overflow:visible}
details{border-bottom:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer}
pre{white-space:pre-wrap;background:var(--panel);padding:.5rem .75rem;margin:.25rem 0;font-size:.8125rem}
@media (max-width:40rem){table{width:max-content;font-size:.8125rem}th,td{padding-right:.7rem;min-width:0}
td{max-width:14rem}
.row{grid-template-columns:minmax(0,1fr) 3.5rem}.row .label{grid-column:1/-1;text-align:left;padding-top:.35rem}
.row.scale .label{display:none}}
@media print{body{max-width:none;padding:0;font-size:10pt}.wide{overflow:visible}table,.plot{font-size:8pt}
th,td{padding-right:.4rem;min-width:0}tr,.row,details,.note{break-inside:avoid}h2,h3{break-after:avoid}}
"""
COLOURS = 6
TITLE = 90  # characters of a question beside its task
RIGHT = {"value", "interval", "n", "change", "p", "values", "better / worse", "without seen ones"}
RIGHT |= {"learned, %", "general, %", "change, %", "summary", "base", "now"}


def page(report: Report) -> str:
    """The whole page. Well-formed XML as well as HTML; no scripts, and nothing is fetched."""
    body = [f"<h1>Evaluation: {safe(report.suite)}</h1>", legend(report.models)]
    body += [f"<p>{safe(line)}</p>" for line in headline(report)]
    body += [f'<div class="note"><b>{one.code}</b> {safe(one.message)}</div>' for one in report.warnings]
    if report.differences:
        body += ["<h2>Differences</h2>", f'<p class="soft">{safe(explain_differences())}</p>']
        body += [*change_plots(report), *differences_tables(report.differences)]
    body += ["<h2>Scores</h2>", '<p class="soft">With 95 % intervals; shares in percent.</p>']
    body += [*score_plots(report), scores_table(report.summaries), *categories(report)]
    if report.overlaps:
        body += ["<h2>Contamination</h2>", *overlap_parts(report)]
    lost = [one for one in report.changes if one.change < 0]
    gained = [one for one in report.changes if one.change > 0]
    for title, changes in (("Lost", lost), ("Gained", gained)):
        if changes:
            body += [f"<h2>{title}</h2>", *map(change_part, changes)]
    return document(f"Evaluation: {report.suite}", body)


def document(title: str, body: Sequence[str]) -> str:
    """A page of these parts, with the style of all reports."""
    head = (
        f'<meta charset="utf-8"/><title>{safe(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{STYLE}</style>'
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def safe(text: str) -> str:
    """Text that is only text, without signs that no document may hold."""
    kept = (sign if sign in "\n\t" or sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return escape("".join(kept))


def colour(report: Report, model: str) -> str:
    return f"m{min(report.models.index(model), COLOURS - 1)}"


def legend(models: Sequence[str]) -> str:
    keys = (
        f'<span class="m{min(at, COLOURS - 1)}"><span class="key">●</span> {safe(one)}</span>'
        for at, one in enumerate(models)
    )
    return f"<p>{' &#160; '.join(keys)}</p>"


def change_plots(report: Report) -> list[str]:
    """Main figures; shares and losses have a plot each, as they have no scale in common."""
    main = [one for one in report.differences if one.main]
    parts: list[str] = []
    for title, group in (
        ("Change, in points", [one for one in main if one.measure not in PLAIN]),
        ("Change of bits per byte, turned so that more is better", [one for one in main if one.measure in PLAIN]),
    ):
        if group:
            several = len(report.models) > 2
            marks = [change_mark(one, several=several) for one in group]
            parts += [f"<h3>{title}</h3>", interval_plot(title, marks, zero=True)]
    return parts


def change_mark(one: Difference, *, several: bool) -> Mark:
    scale = 1.0 if one.measure in PLAIN else 100.0
    label = f"{one.task}, {one.model}" if several else one.task
    told = number(one.change.value, one.measure, signed=True)
    return Mark(safe_label(label), *scaled(one.change.value, one.change.low, one.change.high, scale), told, one.verdict)


def scaled(value: float, low: float, high: float, scale: float) -> tuple[float, float, float]:
    return value * scale, low * scale, high * scale


def safe_label(text: str) -> str:
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def score_plots(report: Report) -> list[str]:
    shares = [one for one in report.summaries if one.main and one.measure not in PLAIN]
    if not shares:
        return []
    order = list(report.about)
    shares.sort(key=lambda one: (order.index(one.task), report.models.index(one.model)))
    marks = [
        Mark(
            safe_label(one.task if len(report.models) == 1 else f"{one.task}, {one.model}"),
            *scaled(one.score.value, one.score.low, one.score.high, 100.0),
            number(one.score.value, one.measure),
            colour(report, one.model),
        )
        for one in shares
    ]
    return [
        "<h3>Main figure of each task, %</h3>",
        interval_plot("Main figures", marks, zero=False, bounds=(0.0, 100.0)),
    ]


def categories(report: Report) -> list[str]:
    parts: list[str] = []
    for task, about in report.about.items():
        summaries = [one for one in report.summaries if one.task == task and one.categories]
        if not summaries:
            continue
        plain = summaries[0].measure in PLAIN
        marks = [
            Mark(
                safe_label(name if len(report.models) == 1 else f"{name}, {one.model}"),
                *scaled(
                    one.categories[name].value, one.categories[name].low, one.categories[name].high, 1 if plain else 100
                ),
                number(one.categories[name].value, one.measure),
                colour(report, one.model),
            )
            for name in summaries[0].categories
            for one in summaries
            if name in one.categories
        ]
        title = f"{task}, by category: {named(summaries[0].measure)}"
        plot = interval_plot(title, marks, zero=False, bounds=None if plain else (0.0, 100.0))
        parts += [f"<h3>{safe(title)}</h3>", f'<p class="soft">{safe(about)}</p>' if about else "", plot]
    return parts


def scores_table(summaries: Sequence[Summary]) -> str:
    """The column of figures without seen exercises stands there when some were seen."""
    rows = score_rows(summaries, main="{}")
    wide = len(SCORES) if any(row[-1] for row in rows) else -1
    return table(SCORES[:wide], [row[:wide] for row in rows])


def differences_tables(differences: Sequence[Difference]) -> list[str]:
    """Main figures and what is better or worse; everything else folded away below them."""
    shown = [one for one in differences if one.main or one.verdict != "open"]
    others = [one for one in differences if not (one.main or one.verdict != "open")]
    if not others:
        return [differences_table(shown)]
    title = f"{len(others)} other figures and categories: {WORDS['open']}"
    return [differences_table(shown), f"<details><summary>{title}</summary>{differences_table(others)}</details>"]


def differences_table(differences: Iterable[Difference]) -> str:
    """Who is compared is told where there are several."""
    listed = list(differences)
    several = len({one.model for one in listed}) > 1
    rows, styles = [], []
    for one in listed:
        styles.append(one.verdict)
        rows.append(
            [
                one.verdict,
                one.task,
                named(one.measure),
                one.category or "all",
                *([one.model] if several else []),
                f"{number(one.first, one.measure)} → {number(one.second, one.measure)}",
                number(one.change.value, one.measure, signed=True),
                interval(one.change, one.measure, signed=True),
                f"{one.better} / {one.worse} of {one.n}",
                probability(one),
            ]
        )
    who = ["model"] if several else []
    figures = ["values", "change", "interval", "better / worse", "p"]
    return table(["verdict", "task", "measure", "category", *who, *figures], rows, styles)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> str:
    """`styles` are classes of the first cell of each row."""
    kinds = [' class="r"' if title in RIGHT else "" for title in titles]
    head = "".join(f"<th{kind}>{safe(title)}</th>" for title, kind in zip(titles, kinds, strict=True))
    lines: list[str] = []
    for at, row in enumerate(rows):
        first = [f' class="{styles[at]}"' if styles else kinds[0], *kinds[1:]]
        cells = "".join(f"<td{kind}>{safe(cell)}</td>" for cell, kind in zip(row, first, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def overlap_parts(report: Report) -> list[str]:
    parts: list[str] = []
    for one in report.overlaps:
        parts.append(f"<p>{safe(overlap_sentence(one))}</p>")
        rows = [[seen.name, f"{seen.share:.0%}", seen.record] for seen in one.seen[:SEEN]]
        if rows:
            parts.append(table(["exercise", "share of its n-grams", "first seen at"], rows))
    return parts


def change_part(one: Change) -> str:
    fields = (("wanted", one.reference), (one.base, one.before), (one.model, one.after))
    shown = "".join(f'<p class="soft">{safe(name)}</p><pre>{safe(shortened(text))}</pre>' for name, text in fields)
    asked = f'<p class="soft">asked</p><pre>{safe(shortened(one.prompt))}</pre>' if one.prompt else ""
    group = f", {one.category}" if one.category else ""
    title = f"{one.task}{group}: {' '.join(one.prompt.split())[-TITLE:] or one.name}"
    return f"<details><summary>{safe(title)}</summary>{asked}{shown}</details>"
