"""Fails where a new result is worse against its peers than the last committed result of the same work.

Ratios are compared, never times: the machine may be another one, and then its peers are slower or faster too.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from common.report import RESULTS, SHOWN, identity

MARGIN = 0.1  # share by which a ratio may be worse; single runs of one commit were up to 8 % apart
BETTER = {  # figure: whether more of it is better
    "tokens_per_second": True,
    "scored_tokens_per_second": True,
    "pairs_per_second": True,
    "tokens_per_cpu_second": True,
    "later_epochs_tokens_per_second": True,
    "peak_bytes": False,
    "peak_less_import_bytes": False,
}


def regressions(new: dict, old: dict, margin: float = MARGIN) -> list[str]:
    """One line for each ratio that became worse by more than the margin."""
    lines = []
    for name, figures in new["ratios"].items():
        for key, more_is_better in BETTER.items():
            was, now = old["ratios"].get(name, {}).get(key), figures.get(key)
            if was is None or now is None:
                continue
            worse = was / now - 1 if more_is_better else now / was - 1
            if worse > margin:
                lines.append(f"{name}: {key} was {was:.2f} of it, now {now:.2f}: {worse:.0%} worse")
    return lines


def compared(new: dict, old: dict) -> set[str]:
    """The rows that both results hold."""
    return new["ratios"].keys() & old["ratios"].keys()


def last_of_the_same(new: dict, candidates: list[dict]) -> dict | None:
    """The newest of the results of the same work that are older than this one."""
    same = [one for one in candidates if identity(one) == identity(new) and one["date"] < new["date"]]
    return max(same, key=lambda one: one["date"], default=None)


def committed(folder: Path) -> list[dict]:
    """The results of the last commit, whatever lies in the folder now."""
    git = ["git", "-C", str(folder)]
    names = subprocess.run([*git, "ls-tree", "--name-only", "HEAD", "./"], capture_output=True, text=True, check=True)
    texts = [
        subprocess.run([*git, "show", f"HEAD:./{name}"], capture_output=True, text=True, check=True).stdout
        for name in names.stdout.splitlines()
        if name.endswith(".json")
    ]
    return [report for report in map(json.loads, texts) if report.get("benchmark") in SHOWN]


def uncommitted(folder: Path) -> list[Path]:
    """The results that git does not have in this form."""
    words = ["git", "-C", str(folder), "ls-files", "--others", "--modified", "--", "*.json"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return [folder / name for name in sorted(set(found))]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("new", type=Path, nargs="*", help="results to check; those not committed when left out")
    parser.add_argument("--old", type=Path, help="compare with this result; the last committed one when left out")
    parser.add_argument("--margin", type=float, default=MARGIN, help="share by which a ratio may be worse")
    choices = parser.parse_args(words)
    failed = False
    for path in choices.new or uncommitted(RESULTS):
        new = json.loads(path.read_text(encoding="utf-8"))
        if new.get("benchmark") not in SHOWN:
            continue
        old = json.loads(choices.old.read_text("utf-8")) if choices.old else last_of_the_same(new, committed(RESULTS))
        if old is None or not compared(new, old):
            print(f"{path.name}: no committed result of the same work and rows, nothing to compare with")
            continue
        found = regressions(new, old, choices.margin)
        rows = ", ".join(sorted(compared(new, old)))
        print(f"{path.name} against {old['date'][:10]} ({old['commit']}), {rows}: {len(found)} worse")
        print("".join(f"  {line}\n" for line in found), end="")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
