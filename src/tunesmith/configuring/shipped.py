"""The recipes that come with the package, found from anywhere."""

from __future__ import annotations

from pathlib import Path

from tunesmith.configuring.catalogue import stored_schema
from tunesmith.errors import Fix, UsageError, Where, nearest

FOLDER = Path(__file__).parent.parent / "recipes"
# recipes of objectives that have none of their own; what is not named here learns from pairs, as dpo does
BESIDE_PAIRS = {
    "cpo": "orpo",
    "apo_zero_unpaired": "kto",
    "bco_unpaired": "kto",
    "ranking_reward": "reward",
    "process_reward": "reward",
    "regress": "classify",
    "kl_to_reference": "sft",
    "k3_to_reference": "sft",
}


def shipped() -> dict[str, Path]:
    """Name to file, sorted by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def recipe_for(objective: str) -> str | None:
    """The shipped recipe to train with an objective of this name; None when there is no such objective."""
    names = stored_schema()["properties"]["objective"]["discriminator"]["mapping"]
    return BESIDE_PAIRS.get(objective, "dpo") if objective in names else None


def find_recipe(name: str) -> Path:
    """The user's file when there is one, else the shipped recipe `NAME` or `recipes/NAME.yaml`; E015 otherwise."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    known = shipped()
    if path.stem in known and str(path) in (path.stem, f"{path.stem}.yaml", f"recipes/{path.stem}.yaml"):
        return known[path.stem]
    recipe = recipe_for(name)
    if recipe is not None:
        command = f"tunesmith train {recipe} objective.name={name}"
        fixes = [Fix(f"train with it: {command}", command=command)]
        message = f"{name} is an objective; the recipe {name} does not exist"
        raise UsageError("E015", message, where=Where(name), fixes=fixes)
    like = nearest(path.stem, known)
    fixes = [Fix(f"did you mean {like}?", command=f"tunesmith recipes show {like}")] if like else []
    fixes.append(Fix("list the shipped recipes", command="tunesmith recipes"))
    raise UsageError("E015", f"the recipe {name} does not exist", where=Where(name), fixes=fixes)


def summary(path: Path) -> str:
    """The first comment line of a recipe: what it is for."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()
