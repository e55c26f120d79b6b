"""No figure without equal work: small steps of every program in fp32, whose losses have to agree."""

import dataclasses

from common.sides import Side


def prove(sides: list[Side], settings: dict, tolerance: float, start: float | None = None) -> dict[str, list[float]]:
    """The losses of the steps of each program in fp32, where rounding hides nothing.

    The first side of each program is run. The loss of a second step agrees only where gradients and updates do.
    `start` is the loss of the first step where it is known. Stops when losses are further apart than `tolerance`.
    """
    first: dict[str, Side] = {}
    for side in sides:
        first.setdefault(side.script, side)
    losses = {}
    for side in first.values():
        small = dataclasses.replace(side, settings={**side.settings, **settings})
        losses[side.name] = small.train({})["losses"]
        if len(losses[side.name]) != settings["steps"]:
            raise SystemExit(f"{side.name} took {len(losses[side.name])} steps of {settings['steps']}: too few records")
    apart = {step: max(found) - min(found) for step, found in enumerate(zip(*losses.values(), strict=True))}
    for step, difference in apart.items():
        if difference > tolerance:
            raise SystemExit(f"the losses of step {step} differ by more than {tolerance}: not the same work: {losses}")
    if start is not None and any(abs(found[0] - start) > tolerance for found in losses.values()):
        raise SystemExit(f"the first loss is not {start:.4f}: a policy differs from its reference: {losses}")
    return losses
