"""What a plan tells of a new model, and what is doubtful about it."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.inventory import Inventory
from tunesmith.planning.counting import Counted
from tunesmith.recipe import Recipe

ENOUGH = 20  # tokens per parameter, as arXiv:2203.15556 found it for a given amount of computing
FEW = 1.0  # tokens per parameter below which texts are learned by heart
LARGE = 2 / 3  # share of the parameters from which it is worth a word that a vocabulary takes it
TIED, EMBEDDING = "model.fresh.tied_embeddings", "model.fresh.embedding"


def told_fresh(recipe: Recipe) -> list[tuple[str, str]]:
    """Lines on its sizes and its first weights, each with its name."""
    fresh = recipe.model.fresh
    if fresh is None:
        return []
    seed = recipe.train.seed if fresh.seed is None else fresh.seed
    return [("new model", fresh.told()), ("begins", fresh.told_beginning(seed))]


def fresh_problems(recipe: Recipe, inventory: Inventory, counted: Counted) -> Iterator[Diagnostic]:
    """Doubts about sizes; what cannot be is a contradiction of the recipe."""
    fresh = recipe.model.fresh
    if fresh is None:
        return
    tokens = counted.examples * counted.mean_length
    if tokens < FEW * inventory.total:
        yield Diagnostic(
            "W390",
            f"{tokens:,.0f} tokens for {inventory.total:,} parameters: the model can learn them by heart",
            "warning",
            Where(field="data.train"),
            (f"about {ENOUGH} tokens per parameter make the most of a computer's time",),
            (Fix("give more texts"), Fix("make the model smaller: model.fresh.layers, model.fresh.hidden")),
        )
    matrices = 1 if fresh.tied_embeddings else 2
    taken = matrices * inventory.vocabulary * inventory.hidden
    if taken > LARGE * inventory.total:
        tied = {TIED: True, EMBEDDING: "plain"}
        one = Fix(f"{TIED}=true {EMBEDDING}=plain", tied, effect="one matrix for embedding and head")
        yield Diagnostic(
            "W391",
            f"{inventory.vocabulary:,} tokens of the vocabulary take {taken / inventory.total:.0%} of the parameters",
            "warning",
            Where(field="model.fresh.tokenizer"),
            fixes=(*(() if fresh.tied_embeddings else (one,)), Fix("take a tokenizer with a smaller vocabulary")),
        )
