"""Every equation against numbers computed by hand, and the same numbers through whole objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith.data.packing import batch_of
from tunesmith.objectives import DPO, KTO, Classify, Objective, ProcessReward, RankingReward, Reward
from tunesmith.objectives.anchored import BCO, NCA, SPPO, APODown, APOZero, apo_down, apo_zero, bco, nca, sppo
from tunesmith.objectives.distributional import AOT, transport
from tunesmith.objectives.feedback import APOZeroUnpaired, BCOUnpaired, kto_bad, kto_good
from tunesmith.objectives.logratios import log1mexp
from tunesmith.objectives.preference import (
    EXO,
    IPO,
    RPO,
    ConservativeDPO,
    DivergenceDPO,
    Hinge,
    LengthDesensitisedDPO,
    LengthNormalisedDPO,
    RobustDPO,
    cdpo,
    divergence_slope,
    dpo,
    exo,
    hinge,
    ipo,
    robust_dpo,
)
from tunesmith.objectives.reference_free import CPO, ORPO, SimPO, cpo, log_odds_ratio, simpo
from tunesmith.objectives.reward_modeling import (
    Regress,
    bradley_terry,
    centering,
    pairwise,
    plackett_luce,
)
from tunesmith.types import Batch, Context, Example, Scores

CHOSEN, REJECTED = (-3.0, -2.5, -4.0, -1.5), (-5.0, -3.5, -6.0, -2.5)
REF_CHOSEN, REF_REJECTED = (-2.8, -2.3, -3.8, -1.4), (-3.2, -2.7, -4.2, -1.8)
CHOSEN_LENGTH, REJECTED_LENGTH = (4, 5, 8, 2), (6, 3, 8, 5)
RANKED = (2.0, 1.0, 0.5, -1.0)
BETTER = torch.ones(4, 4, dtype=torch.bool).triu(1)


class Given:
    """The fixed log-probabilities in one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.pc, self.pr = self.of(CHOSEN), self.of(REJECTED)
        self.rc, self.rr = self.of(REF_CHOSEN), self.of(REF_REJECTED)
        self.rw, self.rl = self.pc - self.rc, self.pr - self.rr
        self.margin = self.rw - self.rl
        chosen, rejected = self.of(CHOSEN_LENGTH), self.of(REJECTED_LENGTH)
        self.mean_margin = self.rw / chosen - self.rl / rejected

    def of(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype)


def orpo_terms(given: Given) -> Tensor:
    return dpo(log_odds_ratio(given.pc, given.pr))


def forward_kl(given: Given) -> Tensor:
    return dpo(0.1 * (divergence_slope(given.rw, "forward_kl", 0) - divergence_slope(given.rl, "forward_kl", 0)))


def jensen_shannon(given: Given) -> Tensor:
    return dpo(0.1 * (divergence_slope(given.rw, "js", 0) - divergence_slope(given.rl, "js", 0)))


def aot_unpaired(given: Given) -> Tensor:
    return dpo(0.1 * (given.rw.sort().values - given.rl.sort().values))


def aot_paired(given: Given) -> Tensor:
    own, reference = given.pc - given.pr, given.rc - given.rr
    return transport(own, own, reference, 0.1).sort(descending=True).values


Row = tuple[str, Callable[[Given], Tensor], list[float]]


def twice(*values: float) -> list[float]:
    return [*values, *values]


def thrice(value: float, last: float) -> list[float]:
    return [value, value, value, last]


ROWS: list[Row] = [
    ("dpo 0.01", lambda g: dpo(0.01 * g.margin), twice(0.685179, 0.690152)),
    ("dpo 0.1", lambda g: dpo(0.1 * g.margin), twice(0.616344, 0.663597)),
    ("dpo 0.1 mean", lambda g: dpo(0.1 * g.margin).mean(), 0.639970),
    ("dpo 0.5", lambda g: dpo(0.5 * g.margin), twice(0.371101, 0.554355)),
    ("dpo 1", lambda g: dpo(g.margin), twice(0.183901, 0.437488)),
    ("cdpo 0.1", lambda g: cdpo(0.1 * g.margin, 0.1), twice(0.632344, 0.669597)),
    ("cdpo 0.2", lambda g: cdpo(0.1 * g.margin, 0.2), twice(0.648344, 0.675597)),
    ("cdpo 0.3", lambda g: cdpo(0.1 * g.margin, 0.3), twice(0.664344, 0.681597)),
    ("cdpo 0.5", lambda g: cdpo(0.1 * g.margin, 0.5), twice(0.696344, 0.693597)),
    ("cdpo 0.5 flipped", lambda g: cdpo(-0.1 * g.margin, 0.5), twice(0.696344, 0.693597)),
    ("robust 0.1", lambda g: robust_dpo(0.1 * g.margin, 0.1), twice(0.596344, 0.656097)),
    ("robust 0.2", lambda g: robust_dpo(0.1 * g.margin, 0.2), twice(0.563010, 0.643597)),
    ("robust 0.3", lambda g: robust_dpo(0.1 * g.margin, 0.3), twice(0.496344, 0.618597)),
    ("hinge", lambda g: hinge(0.1 * g.margin), twice(0.84, 0.94)),
    ("ipo sum", lambda g: ipo(g.margin, 0.1), twice(11.56, 19.36)),
    ("ipo mean", lambda g: ipo(g.mean_margin, 0.1), [22.562500, 22.784711, 23.040000, 24.108100]),
    ("ln_dpo", lambda g: dpo(0.1 * g.mean_margin), [0.680725, 0.681878, 0.683197, 0.688657]),
    ("exo 1e-3", lambda g: exo(0.1 * g.margin, 1e-3), twice(2.488738, 2.658110)),
    ("exo 0.1", lambda g: exo(0.1 * g.margin, 0.1), twice(0.426313, 0.478327)),
    ("nca", lambda g: nca(0.1 * g.rw, 0.1 * g.rl), [1.348392, 1.371769, 1.348392, 1.371619]),
    ("bco 0", lambda g: bco(0.1 * g.rw, 0.1 * g.rl, 0.0), [1.310389, 1.357144, 1.310389, 1.356919]),
    ("bco batch", lambda g: bco(0.1 * g.rw, 0.1 * g.rl, -0.0725), [1.308083, 1.356646, 1.308083, 1.356783]),
    ("sppo", lambda g: sppo(g.rw, g.rl, 0.1), [37.28, 44.68, 37.28, 44.50]),
    ("apo_zero", lambda g: apo_zero(0.1 * g.rw, 0.1 * g.rl), [0.960121, 0.985010, 0.960121, 0.985007]),
    ("apo_down", lambda g: apo_down(0.1 * g.rw, 0.1 * g.rl), [0.955085, 0.980005, 0.955085, 0.982505]),
    ("aot paired", aot_paired, [0.663597, 0.663597, 0.616344, 0.616344]),
    ("aot unpaired", aot_unpaired, [0.616344, 0.616344, 0.663597, 0.663597]),
    ("simpo 0.1, 0.5", lambda g: simpo(g.pc, g.pr, 0.1, 0.5), twice(0.854355, 0.913015)),
    ("simpo 2, 1", lambda g: simpo(g.pc, g.pr, 2.0, 1.0), twice(0.048587, 0.313262)),
    ("cpo", lambda g: cpo(g.pc, g.pr, 0.1), twice(0.598139, 0.644397)),
    ("orpo odds", orpo_terms, [0.121748, 0.298768, 0.125034, 0.271058]),
    ("orpo", lambda g: 0.1 * orpo_terms(g) - g.pc, [3.012175, 2.529877, 4.012503, 1.527106]),
    ("f-dpo forward", forward_kl, [0.480596, 0.644200, 0.480596, 0.648750]),
    ("f-dpo js", jensen_shannon, [0.637071, 0.674673, 0.637071, 0.675369]),
    ("kto good 0", lambda g: kto_good(g.rw, 0.0, 0.1), thrice(0.505000, 0.502500)),
    ("kto good 0.5", lambda g: kto_good(g.rw, 0.5, 0.1), thrice(0.517493, 0.514996)),
    ("kto bad 0", lambda g: kto_bad(g.rl, 0.0, 0.1), [0.455121, 0.480011, 0.455121, 0.482507]),
    ("kto bad 0.5", lambda g: kto_bad(g.rl, 0.5, 0.1), [0.442752, 0.467546, 0.442752, 0.470036]),
    ("reward", lambda g: bradley_terry(g.of((1.2,)), g.of((0.3,))), [0.341154]),
    ("reward margin", lambda g: bradley_terry(g.of((1.2,)), g.of((0.3,)), 0.5), [0.513015]),
    (
        "reward center",
        lambda g: bradley_terry(g.of((1.2,)), g.of((0.3,))) + 0.01 * centering(g.of((1.2,)), g.of((0.3,))),
        [0.363654],
    ),
    ("k-wise", lambda g: pairwise(g.of(RANKED), BETTER / 6), 0.227613),
    ("plackett-luce", lambda g: plackett_luce(g.of(RANKED), BETTER), 1.251552),
    ("plackett-luce of two", lambda g: plackett_luce(g.of((1.2, 0.3)), BETTER[:2, :2]), 0.341154),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("equation", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_equation(equation, expected, dtype, tolerance):
    found = equation(Given(dtype))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype), atol=tolerance, rtol=0)


def pairs(lengths: bool = True) -> tuple[Batch, Scores]:
    """Four pairs whose answers have the fixed log-probabilities, spread evenly over tokens."""
    chosen_length, rejected_length = (CHOSEN_LENGTH, REJECTED_LENGTH) if lengths else ((1,) * 4, (1,) * 4)
    counts = [n for both in zip(chosen_length, rejected_length, strict=True) for n in both]
    batch = answers([counts[i : i + 2] for i in range(0, 8, 2)], [(0.0, 0.0)] * 4)
    policy = spread([v for both in zip(CHOSEN, REJECTED, strict=True) for v in both], counts)
    reference = [v for both in zip(REF_CHOSEN, REF_REJECTED, strict=True) for v in both]
    batch.streams["ref_logprobs"] = spread(reference, counts)
    return batch, Scores(policy, torch.zeros_like(policy))


def feedback(good: bool) -> tuple[Batch, Scores]:
    """The four chosen answers, found good, or the four rejected ones, found bad."""
    batch, scores = pairs()
    labels = [(float(good),)] * 4
    counts = [[n] for n in (CHOSEN_LENGTH if good else REJECTED_LENGTH)]
    wanted = [index for index, s in enumerate(batch.sequence.tolist()) if s % 2 == (0 if good else 1)]
    single = answers(counts, labels)
    single.streams["ref_logprobs"] = batch.streams["ref_logprobs"][wanted]
    return single, Scores(scores.logprobs[wanted], torch.zeros(0))


def answers(lengths: list[list[int]], labels: list[tuple[float, ...]]) -> Batch:
    """One-token prompts with answers of these lengths."""
    examples = []
    for line, (each, label) in enumerate(zip(lengths, labels, strict=True)):
        weights = np.array([0, *[1] * sum(each)], dtype=np.float32)
        cuts = tuple(1 + n for n in accumulate([0, *each[:-1]]))
        examples.append(Example(np.arange(len(weights), dtype=np.int32), weights, "given", line, cuts, label))
    return batch_of(examples)


def spread(totals: list[float], counts: list[int]) -> Tensor:
    return torch.cat([torch.full((n,), total / n) for total, n in zip(totals, counts, strict=True)])


# objective, whether the answers have the lengths of the table (else one token), sum of the four losses
WHOLE: list[tuple[Objective, bool, float]] = [
    (DPO(), True, 2 * (0.616344 + 0.663597)),
    (DPO(beta=0.5), True, 2 * (0.371101 + 0.554355)),
    (ConservativeDPO(epsilon=0.2), True, 2 * (0.648344 + 0.675597)),
    (RobustDPO(epsilon=0.3), True, 2 * (0.496344 + 0.618597)),
    (IPO(), True, 22.562500 + 22.784711 + 23.040000 + 24.108100),
    (IPO(reduction="sum"), True, 2 * (11.56 + 19.36)),
    (Hinge(), True, 2 * (0.84 + 0.94)),
    (EXO(), True, 2 * (2.488738 + 2.658110)),
    (LengthNormalisedDPO(beta=0.1), True, 0.680725 + 0.681878 + 0.683197 + 0.688657),
    (LengthDesensitisedDPO(alpha=1.0), True, 2 * (0.616344 + 0.663597)),
    (DivergenceDPO(), True, 0.480596 + 0.644200 + 0.480596 + 0.648750),
    (DivergenceDPO(divergence="js"), True, 0.637071 + 0.674673 + 0.637071 + 0.675369),
    (DivergenceDPO(divergence="reverse_kl"), True, 2 * (0.616344 + 0.663597)),
    (DivergenceDPO(divergence="alpha", alpha=0.0), True, 0.480596 + 0.644200 + 0.480596 + 0.648750),
    (NCA(), True, 1.348392 + 1.371769 + 1.348392 + 1.371619),
    (BCO(), True, 1.310389 + 1.357144 + 1.310389 + 1.356919),
    (SPPO(), True, 37.28 + 44.68 + 37.28 + 44.50),
    (APOZero(), True, 0.960121 + 0.985010 + 0.960121 + 0.985007),
    (APODown(), True, 0.955085 + 0.980005 + 0.955085 + 0.982505),
    (AOT(), True, 2 * (0.616344 + 0.663597)),
    (AOT(pairing="unpaired"), True, 2 * (0.616344 + 0.663597)),
    (SimPO(beta=2.0, gamma=1.0), False, 2 * (0.048587 + 0.313262)),
    (CPO(alpha=0.0), True, 2 * (0.598139 + 0.644397)),
    (ORPO(), False, 3.012175 + 2.529877 + 4.012503 + 1.527106),
    (RPO(alpha=1.0), False, 2 * (0.616344 + 0.663597) + 11.0),
]


@pytest.mark.parametrize(("objective", "lengths", "expected"), WHOLE, ids=[repr(row[0]) for row in WHOLE])
def test_whole_objective(objective, lengths, expected):
    batch, scores = pairs(lengths)
    context = Context(objective.glance(scores, batch)) if objective.looks_ahead else Context()
    loss = objective(scores, batch, context)
    assert objective.count(batch) == 4
    assert math.isclose(loss.sum.item(), expected, abs_tol=1e-5 * max(4, expected))
    assert math.isclose(loss.metrics["rewards/accuracy"].item(), 4)


def test_bco_reads_the_shift_of_earlier_steps():
    batch, scores = pairs()
    loss = BCO()(scores, batch, Context(memory={"bco/shift": -0.0725}))
    assert math.isclose(loss.sum.item(), 1.308083 + 1.356646 + 1.308083 + 1.356783, abs_tol=1e-5)


@pytest.mark.parametrize(
    ("good", "expected"), [(True, 3 * 0.517493 + 0.514996), (False, 0.442752 * 2 + 0.467546 + 0.470036)]
)
def test_whole_kto(good, expected):
    batch, scores = feedback(good)
    loss = KTO()(scores, replace(batch, mismatched=batch), Context(torch.tensor([[0.2], [0.8]])))
    assert math.isclose(loss.sum.item(), expected, abs_tol=1e-5)


def test_whole_losses_on_single_answers():
    good, bad = feedback(True), feedback(False)
    zero = [APOZeroUnpaired()(scores, batch).sum.item() for batch, scores in (good, bad)]
    assert math.isclose(sum(zero), 0.960121 + 0.985010 + 0.960121 + 0.985007, abs_tol=1e-5)
    context = Context(memory={"bco/shift": -0.0725})
    shifted = [BCOUnpaired()(scores, batch, context).sum.item() for batch, scores in (good, bad)]
    assert math.isclose(sum(shifted), 1.308083 + 1.356646 + 1.308083 + 1.356783, abs_tol=1e-5)


def values(rewards: list[float], sequences: list[list[float]], chained: bool = False) -> tuple[Batch, Scores]:
    """Answers of one token, whose values are given; `sequences` are the labels of each example's answers."""
    examples = [
        Example(
            np.arange(1 + len(labels), dtype=np.int32),
            np.array([0, *[1] * len(labels)], dtype=np.float32),
            "given",
            line,
            tuple(range(1, 1 + len(labels))),
            tuple(labels),
            chained,
        )
        for line, labels in enumerate(sequences)
    ]
    return batch_of(examples, "values"), Scores(torch.zeros(0), torch.zeros(0), torch.tensor(rewards)[:, None])


@pytest.mark.parametrize(
    ("objective", "labels", "expected"),
    [
        (Reward(), [0.0, 0.0], 0.341154),
        (Reward(margin=0.5), [0.0, 0.0], 0.513015),
        (Reward(margin=0.2, rating_margin=0.1), [4.0, 1.0], 0.513015),
        (Reward(center=0.01), [0.0, 0.0], 0.363654),
    ],
)
def test_whole_reward(objective, labels, expected):
    batch, scores = values([1.2, 0.3], [labels])
    loss = objective(scores, batch)
    assert math.isclose(loss.sum.item(), expected, abs_tol=1e-5)
    parts = loss.metrics["loss/comparison"] + loss.metrics["loss/center"]
    assert math.isclose(parts.item(), expected, abs_tol=1e-5)
    assert math.isclose(loss.metrics["rewards/margin"].item(), 0.9, rel_tol=1e-6)
    assert math.isclose(loss.metrics["rewards/mean"].item(), 0.75, rel_tol=1e-6)


def test_whole_ranking():
    batch, scores = values([*RANKED, 1.2, 0.3], [[3.0, 2.0, 1.0, 0.0], [1.0, 0.0]])
    loss = RankingReward()(scores, batch)
    assert math.isclose(loss.sum.item(), 0.227613 + 0.341154, abs_tol=1e-5)
    whole = RankingReward(comparison="plackett_luce")(scores, batch)
    assert math.isclose(whole.sum.item(), 1.251552 + 0.341154, abs_tol=1e-5)
    assert RankingReward().count(batch) == 2
    assert math.isclose(loss.metrics["rewards/mean"].item(), 2.5 / 4 + 0.75, rel_tol=1e-6)


def test_ties_of_a_ranking_are_not_compared():
    batch, scores = values([0.7, 0.2, 0.4, 1.0, -1.0], [[1.0, 0.0, 0.0], [2.0, 2.0]])
    expected = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-0.3))) / 2
    assert RankingReward().count(batch) == 1
    assert math.isclose(RankingReward()(scores, batch).sum.item(), expected, rel_tol=1e-6)
    whole = RankingReward(comparison="plackett_luce")(scores, batch).sum.item()
    assert math.isclose(whole, math.log(1 + math.exp(-0.5) + math.exp(-0.3)), rel_tol=1e-6)


def test_whole_process_reward():
    batch, scores = values([2.0, -1.0, 0.5], [[1.0, 0.0], [0.25]], chained=True)
    loss = ProcessReward()(scores, batch)
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))
    expected += 0.25 * math.log1p(math.exp(-0.5)) + 0.75 * math.log1p(math.exp(0.5))
    assert math.isclose(loss.sum.item(), expected, rel_tol=1e-6)
    assert loss.metrics["accuracy"].item() == 2
    assert ProcessReward().count(batch) == 3


def test_whole_classifier_and_regressor():
    weights = np.array([0, 1], dtype=np.float32)
    texts = [Example(np.array([4, 5]), weights, "given", line, (), (2.0 * line,)) for line in range(2)]
    batch = batch_of(texts, "values")
    scores = Scores(torch.zeros(0), torch.zeros(0), torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 1.0]]))
    loss = Classify()(scores, batch)
    expected = math.log(math.e + 2) - 1 + math.log(1 + math.exp(3) + math.e) - 1
    assert math.isclose(loss.sum.item(), expected, rel_tol=1e-6)
    assert loss.metrics["accuracy"].item() == 1
    assert math.isclose(Regress()(scores, batch).sum.item(), 1.0 + 4.0, rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_is_accurate_at_both_ends(dtype):
    for value in (-1e-7, -1e-3, -0.5, -0.7, -3.0, -40.0):
        found = log1mexp(torch.tensor(value, dtype=dtype)).item()
        assert math.isclose(found, math.log(-math.expm1(value)), rel_tol=1e-6, abs_tol=1e-17)
