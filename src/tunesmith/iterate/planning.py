"""The plan of a recipe, with or without rounds: one round is planned before there is an answer to train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.evaluate.labelling import check_choice
from tunesmith.iterate.rounds import all_prompts, settings_of, target_of
from tunesmith.models.cache import Progress
from tunesmith.plan import Plan, make_plan
from tunesmith.planning.counting import CHOSEN, Counted, SourceCount
from tunesmith.planning.inputs import find_inputs
from tunesmith.recipe import Recipe


def plan_any(recipe: Recipe, *, ranks: int = 1, file: str = "RECIPE", progress: Progress | None = None) -> Plan:
    """`make_plan`; of a recipe with rounds the first round, as if every answer were as long as it may be."""
    if recipe.online is None:
        return make_plan(recipe, ranks=ranks, file=file, progress=progress)
    check_choice(recipe.online.label)
    tokenizer = load_tokenizer(find_inputs(recipe, progress), recipe.model.new_tokens)
    plan = make_plan(recipe, counted=count_round(recipe, tokenizer), ranks=ranks, file=file)
    return replace(plan, recipe=recipe.sized(plan.inventory.body, plan.machine.device))


def count_round(recipe: Recipe, tokenizer: Tokenizer) -> Counted:
    """What a round will train on, from the lengths of its prompts; no record is left out."""
    online, to = settings_of(recipe), target_of(recipe)
    prompts = all_prompts(recipe)
    spread = np.linspace(0, len(prompts) - 1, min(CHOSEN, len(prompts))).astype(int)
    lengths = np.array([len(prompts[at].tokens(tokenizer)) for at in spread])
    answers = {"pairs": 2, "rankings": online.sampling.answers}.get(to, 1)
    room = np.maximum(recipe.data.max_length - lengths, 1)
    scored = answers * np.minimum(online.sampling.max_new_tokens, room)
    records = min(online.prompts or len(prompts), len(prompts)) * (2 if to == "feedback" else 1)
    source = SourceCount(records, float(records), float(records), lengths + scored, scored)
    return Counted((source,), len(spread) if len(spread) < len(prompts) else None, 0.0)
