"""What single objectives promise beside their equation: gradients, ranges, selection, ties and memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.objectives.given import batch, examples, given, mismatched, step
from tests.unit.models.architectures import build

from tunesmith.data.packing import batch_of
from tunesmith.distributed.mesh import Mesh
from tunesmith.models.adapters import trainable
from tunesmith.objectives import DPO, KTO, OBJECTIVES, SFT, Reward
from tunesmith.objectives.anchored import BCO, apo_down, apo_zero, bco, nca, sppo
from tunesmith.objectives.distributional import AOT, same_rank, transport
from tunesmith.objectives.feedback import BCOUnpaired, kto_bad, kto_good, kto_z0
from tunesmith.objectives.logratios import log1mexp
from tunesmith.objectives.preference import (
    DivergenceDPO,
    LengthDesensitisedDPO,
    bounded_exp,
    cdpo,
    discopop,
    divergence_slope,
    dpo,
    excess_share,
    exo,
    hinge,
    ipo,
    robust_dpo,
)
from tunesmith.objectives.reference_free import cpo, log_odds_ratio, simpo
from tunesmith.objectives.reward_modeling import bradley_terry, centering, pairwise, plackett_luce, process_reward
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.step import compute_step
from tunesmith.types import Context, Scores

BETTER = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
ONE = {
    "dpo": dpo,
    "cdpo": lambda u: cdpo(u, 0.2),
    "robust": lambda u: robust_dpo(u, 0.2),
    "ipo": lambda u: ipo(u, 0.1),
    "hinge": hinge,
    "exo": lambda u: exo(u, 1e-3),
    "discopop": lambda u: discopop(u, 0.05),
    "forward_kl": lambda u: divergence_slope(u, "forward_kl", 0),
    "js": lambda u: divergence_slope(u, "js", 0),
    "alpha": lambda u: divergence_slope(u, "alpha", 0.4),
    "log1mexp": lambda u: log1mexp(-u.abs() - 0.01),
    "kto good": lambda u: kto_good(u, 0.3, 0.5),
    "kto bad": lambda u: kto_bad(u, 0.3, 0.5),
    "pairwise": lambda u: pairwise(u, BETTER / 5),
    "plackett-luce": lambda u: plackett_luce(u, BETTER),
    "process": lambda u: process_reward(u, torch.tensor([1.0, 0.0, 0.5, 0.25])),
    "transport": lambda u: transport(u, u, torch.tensor([0.3, -2.0, 0.1, 4.0], dtype=u.dtype), 0.4),
}
TWO = {
    "nca": nca,
    "sppo": lambda w, r: sppo(w, r, 0.1),
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "bco": lambda w, r: bco(w, r, 0.2),
    "simpo": lambda w, r: simpo(w, r, 2.0, 1.0),
    "cpo": lambda w, r: cpo(w, r, 0.1),
    "odds": lambda w, r: log_odds_ratio(-w.abs() - 0.01, -r.abs() - 0.01),
    "bradley_terry": lambda w, r: bradley_terry(w, r, 0.2),
    "centering": centering,
}


def inputs(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (2 * torch.randn(4, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("equation", ONE.values(), ids=ONE.keys())
def test_gradient_of_one(equation):
    assert torch.autograd.gradcheck(equation, inputs(1))


@pytest.mark.parametrize("equation", TWO.values(), ids=TWO.keys())
def test_gradient_of_two(equation):
    assert torch.autograd.gradcheck(equation, (inputs(2), inputs(3)))


def numbers() -> list[tuple]:
    """Every number among the settings of every objective."""
    return [
        (objective, name)
        for objective in OBJECTIVES
        for name, field in objective.model_fields.items()
        if isinstance(field.default, float)
    ]


@pytest.mark.parametrize(
    ("objective", "name"), numbers(), ids=lambda one: one if isinstance(one, str) else one.__name__
)
def test_numbers_out_of_range_are_refused(objective, name):
    for wrong in (math.nan, math.inf, -math.inf, -0.5):
        with pytest.raises(ValidationError):
            objective(**{name: wrong})
    if name == "beta":
        for wrong in (0.0, 1e-5, 1e4):
            with pytest.raises(ValidationError):
                objective(beta=wrong)


def test_extreme_settings_give_finite_losses():
    for objective in (kind(beta=beta) for kind in OBJECTIVES if "beta" in kind.model_fields for beta in (1e-4, 100.0)):
        one = batch(objective, given(objective))
        logprobs = torch.linspace(-30, 0, len(one.target)).requires_grad_()
        scores = Scores(logprobs, torch.zeros(0))
        context = Context()
        if objective.looks_ahead and one.mismatched is None:
            context = Context(objective.glance(scores, one))
        elif objective.looks_ahead:
            context = Context(torch.tensor([[3.0], [-1.0]]))
        loss = objective(scores, one, context)
        loss.sum.backward()
        assert torch.isfinite(loss.sum)
        assert torch.isfinite(logprobs.grad).all()


def test_smoothed_labels_of_one_half_do_not_care_which_answer_was_chosen():
    margin = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(cdpo(margin, 0.5), cdpo(-margin, 0.5))


def test_likelihood_trains_the_best_and_the_good_answers():
    pairs, ranked, judged = (batch_of(examples(kind)) for kind in ("pair", "ranking", "feedback"))
    best = [sequence for sequence in range(len(ranked.group)) if ranked.group[sequence] not in ranked.group[:sequence]]
    for one, kept in (
        (pairs, pairs.sequence % 2 == 0),
        (ranked, torch.isin(ranked.sequence, torch.tensor(best))),
        (judged, judged.labels[judged.sequence] == 1),
    ):
        logprobs = torch.linspace(-3, -1, len(one.target)).requires_grad_()
        loss = SFT()(Scores(logprobs, torch.zeros_like(one.weight)), one)
        loss.sum.backward()
        assert torch.equal(logprobs.grad != 0, kept)
        assert SFT().count(one) == kept.sum()


def test_tokens_beyond_the_shorter_answer_count_less():
    one = batch_of(examples("pair"))
    share = excess_share(one, 0.25)
    lengths = torch.bincount(one.sequence)
    for pair in range(len(lengths) // 2):
        shorter = int(lengths[2 * pair : 2 * pair + 2].min())
        for sequence in (2 * pair, 2 * pair + 1):
            of_answer = share[one.sequence == sequence].tolist()
            assert of_answer == [1.0] * shorter + [0.25] * (len(of_answer) - shorter)


def test_length_desensitised_figures_are_of_the_whole_answers():
    objective = LengthDesensitisedDPO(alpha=0.0)
    one = batch(objective, given(objective))
    scores = Scores(torch.linspace(-3, -1, len(one.target)), torch.zeros(0))
    ours, plain = objective(scores, one).metrics, DPO()(scores, one).metrics
    for name in ("logps/chosen", "logps/rejected", "kl", "length/chosen"):
        assert ours[name] == plain[name]
    assert ours["rewards/chosen"] != plain["rewards/chosen"]


def test_pairs_that_the_policy_would_not_say_weigh_less():
    one = batch(DPO(), given(DPO()))
    likely, unlikely = (Scores(torch.full((len(one.target),), value), torch.zeros(0)) for value in (-0.1, -2.0))
    for scores, factor in ((likely, math.exp(-0.2)), (unlikely, math.exp(-4.0))):
        plain, weighted = DPO()(scores, one).sum, DPO(wpo=True)(scores, one).sum
        assert math.isclose(weighted.item(), factor * plain.item(), rel_tol=1e-5)


def test_a_far_log_ratio_keeps_a_finite_gradient():
    power = torch.tensor([-5.0, 0.0, 29.0, 31.0, 1e4], requires_grad=True)
    bounded_exp(power).sum().backward()
    torch.testing.assert_close(power.grad[:3], power[:3].detach().exp())
    assert torch.equal(power.grad[3:], torch.full((2,), math.exp(30.0)))
    ratio = torch.tensor([-200.0], requires_grad=True)
    dpo(0.1 * (divergence_slope(ratio, "forward_kl", 0) - divergence_slope(torch.zeros(1), "forward_kl", 0))).backward()
    assert ratio.grad.item() < 0


def test_displacement_counts_pairs_whose_answers_both_fell():
    one = batch(DPO(), given(DPO()))
    shift = torch.where(one.sequence < 6, -0.1, torch.where(one.sequence % 2 == 0, 0.1, -0.1))
    scores = Scores(one.streams["ref_logprobs"] + shift, torch.zeros(0))
    assert DPO()(scores, one).metrics["displacement"].item() == 3


def test_equal_margins_share_their_ranks():
    own, other = torch.tensor([2.0, 1.0, 2.0]), torch.tensor([0.1, 0.5, 0.9])
    assert same_rank(own, own).tolist() == [[False, True, True], [True, False, False], [False, True, True]]
    tied = (dpo(torch.tensor(1.5)) + dpo(torch.tensor(1.1))) / 2
    torch.testing.assert_close(transport(own, own, other, 1.0), torch.stack([tied, dpo(torch.tensor(0.9)), tied]))
    rounded = own + torch.tensor([1e-6, -1e-6, 1e-6])
    assert same_rank(rounded[1:2], own).tolist() == [[True, False, False]]


def test_aot_sorts_over_the_whole_step_and_equals_dpo_for_one_pair():
    made = given(AOT())
    assert math.isclose(
        step(AOT(), [batch(AOT(), made[:1])]).loss, step(DPO(), [batch(DPO(), made[:1])]).loss, rel_tol=1e-6
    )
    assert not math.isclose(
        step(AOT(), [batch(AOT(), made)]).loss, step(DPO(), [batch(DPO(), made)]).loss, rel_tol=1e-4
    )


def test_the_gradient_of_unpaired_transport_is_that_of_the_sorted_sum():
    objective = AOT(pairing="unpaired", beta=0.5)
    one = batch(objective, given(objective))
    logprobs = torch.linspace(-3, -1, len(one.target)).square().neg().requires_grad_()
    scores = Scores(logprobs, torch.zeros(0))
    objective(scores, one, Context(objective.glance(scores, one))).sum.backward()
    found, logprobs.grad = logprobs.grad, None
    ratios = torch.zeros(12).index_add(0, one.sequence, logprobs - one.streams["ref_logprobs"])
    dpo(0.5 * (ratios[0::2].sort().values - ratios[1::2].sort().values)).sum().backward()
    torch.testing.assert_close(found, logprobs.grad)


def test_the_point_of_reference_is_never_negative():
    assert kto_z0(torch.tensor([-1.0, -3.0])).item() == 0.0
    assert kto_z0(torch.tensor([1.0, 0.0])).item() == 0.5
    assert kto_z0(torch.zeros(0)).item() == 0.0


def test_kto_reads_the_mismatched_answers():
    made = given(KTO())
    one = batch(KTO(), made)
    other = batch_of([mismatched(made[0], made[3]), mismatched(made[1], made[2])])
    other = replace(other, streams={"ref_logprobs": torch.full((len(other.target),), -3.0)})
    rows = KTO().glance(Scores(torch.full((len(other.target),), -2.5), torch.zeros(0)), other)
    lengths = torch.bincount(other.sequence)
    torch.testing.assert_close(rows, 0.5 * lengths[:, None].float())
    scores = Scores(one.streams["ref_logprobs"], torch.zeros(0))
    metrics = KTO()(scores, one, Context(rows)).metrics
    assert math.isclose(metrics["kto/z0"].item() / KTO().count(one), rows.mean().item(), rel_tol=1e-6)


def test_means_per_class_are_right_however_the_step_is_split():
    objective = BCOUnpaired()
    made = given(objective)
    whole = step(objective, [batch(objective, made)]).metrics
    parts = step(objective, [batch(objective, made[:1]), batch(objective, made[1:])]).metrics
    good = step(objective, [batch(objective, [one for one in made if one.labels == (1.0,)])]).metrics
    bad = step(objective, [batch(objective, [one for one in made if one.labels == (0.0,)])]).metrics
    assert whole == pytest.approx(parts)
    assert math.isclose(whole["rewards/good"], good["rewards/good"], rel_tol=1e-5)
    assert math.isclose(whole["rewards/bad"], bad["rewards/bad"], rel_tol=1e-5)
    assert math.isclose(whole["rewards/margin"], good["rewards/good"] - bad["rewards/bad"], rel_tol=1e-5)
    assert math.isclose(whole["bco/mean"], (good["rewards/good"] + bad["rewards/bad"]) / 2, rel_tol=1e-5)
    assert "rewards/bad" not in good
    assert "bco/mean" not in good


def test_the_shift_is_a_running_mean_of_earlier_steps():
    memory = {"other": 1.0}
    for mean in (1.0, 2.0):
        memory = BCO(decay=0.9).remember(memory, {"bco/mean": mean})
    assert memory == pytest.approx({"other": 1.0, "bco/shift": 0.9 * 0.1 + 0.1 * 2.0})
    assert BCOUnpaired().remember(memory, {"rewards/good": 1.0}) == memory


def test_a_pair_reward_counts_only_pairs_with_both_values():
    made = examples("pair", "values")
    half = replace(made[0], weights=made[0].weights * (made[0].weights.cumsum() <= 1))
    one = batch_of([half, *made[1:]], "values")
    assert Reward().count(one) == 5
    assert Reward()(Scores(torch.zeros(0), torch.zeros(0), torch.ones(11, 1)), one).sum.item() == pytest.approx(
        5 * math.log(2)
    )


def test_the_alpha_divergence_lies_between_its_ends():
    ratio = torch.linspace(-1, 1, 5)
    start = divergence_slope(torch.zeros(1), "alpha", 0.9999)
    torch.testing.assert_close(divergence_slope(ratio, "alpha", 0.9999) - start, ratio, atol=1e-2, rtol=0)
    forward = DivergenceDPO(divergence="alpha", alpha=0.0)
    one = batch(forward, given(forward))
    scores = Scores(torch.linspace(-4.4, -4.2, len(one.target)), torch.zeros(0))
    assert math.isclose(forward(scores, one).sum.item(), DivergenceDPO()(scores, one).sum.item(), rel_tol=1e-6)


def test_log_ratios_of_long_answers_are_not_lost_in_the_rounding_of_their_sums():
    torch.manual_seed(0)
    tokens, weights = long_answers()
    made = batch_of([replace(given(DPO())[0], tokens=tokens, weights=weights, cuts=(2, 9000))])
    policy = -2 * torch.rand(len(made.target))
    reference = policy + 0.02 * torch.randn(len(made.target))
    made = replace(made, streams={"ref_logprobs": reference})
    exact = torch.zeros(2, dtype=torch.float64).index_add(0, made.sequence, policy.double() - reference.double())
    metrics = DPO(beta=1.0)(Scores(policy, torch.zeros(0)), made).metrics
    assert math.isclose(metrics["rewards/chosen"], exact[0], abs_tol=1e-5)
    assert math.isclose(metrics["rewards/rejected"], exact[1], abs_tol=1e-5)


def long_answers() -> tuple[np.ndarray, np.ndarray]:
    weights = np.ones(18_000, dtype=np.float32)
    weights[:2] = 0
    return np.arange(18_000, dtype=np.int32) % 90, weights


def test_several_objectives_are_added_each_by_its_own_count():
    objectives = [DPO(), SFT(coefficient=0.2)]
    batches = [batch(DPO(), given(DPO())[:4]), batch(DPO(), given(DPO())[4:])]
    optimizer = Optimizer(trainable(model := build("llama")), AdamW())
    both = compute_step(model, batches, objectives, optimizer, Mesh())
    dpo_alone, sft_alone = step(DPO(), batches), step(SFT(), batches)
    assert both.counts == (dpo_alone.count, sft_alone.count)
    assert math.isclose(both.loss, dpo_alone.loss + 0.2 * sft_alone.loss, rel_tol=1e-6)
    assert math.isclose(both.metrics["loss/sft"], sft_alone.loss, rel_tol=1e-6)
    for name in ("rewards/margin", "accuracy"):
        assert math.isclose(both.metrics[name], (dpo_alone.metrics | sft_alone.metrics)[name], rel_tol=1e-5)
