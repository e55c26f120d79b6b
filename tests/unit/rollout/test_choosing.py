"""The sampler row by row: penalties, top-k, top-p and min-p by hand, and rows that do not know each other."""

import pytest
import torch

from tunesmith.rollout.choosing import Chooser, Sampling, adjusted, choose, choose_each, narrowed

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.0], [0.0, 3.0, 1.0, -2.0]])


def penalised(prompt: list[int], made: list[int], **settings) -> list[float]:
    return adjusted(LOGITS[:1], [Chooser(Sampling(1, **settings), None, prompt, made)])[0].tolist()


def test_penalties_by_hand():
    assert penalised([0], [1, 1, 3], repetition=2.0) == [1.0, -2.0, 0.5, 0.5]
    assert penalised([0], [1, 1, 3], presence=0.5) == [2.0, -1.5, 0.5, 0.5]
    assert penalised([0], [1, 1, 3], frequency=0.5) == [2.0, -2.0, 0.5, 0.5]
    assert penalised([0], [], presence=0.5, frequency=0.5) == LOGITS[0].tolist()
    assert penalised([], [], bias=((2, 1.5), (0, -100.0))) == [-98.0, -1.0, 2.0, 1.0]
    assert LOGITS[0, 0] == 2.0  # the model's own stay


def test_what_is_not_allowed_is_not_chosen():
    allowed = torch.tensor([False, True, True, False])
    rows = [Chooser(Sampling(1), None, allowed=allowed), Chooser(Sampling(1), None)]
    assert choose_each(LOGITS, rows) == [2, 1]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"min_p": 0.3}, [0.5, 0.3, 0.15, 0]),
        ({"min_p": 0.31}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.6}, [0.5, 0.3, 0, 0]),
        ({"top_k": 3, "top_p": 0.52}, [0.5, 0, 0, 0]),  # 0.5 of 0.95 is more
        ({"top_k": 3, "min_p": 0.5}, [0.5, 0.3, 0, 0]),
    ],
)
def test_what_stays_to_be_drawn(settings, kept):
    found = narrowed(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), Sampling(1, temperature=1.0, **settings))
    wanted = torch.tensor([kept])
    assert torch.allclose(found / found.sum(), wanted / wanted.sum(), atol=1e-6)


def test_a_row_is_chosen_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator) * 3
    kinds = [
        Sampling(1),
        Sampling(1, temperature=0.7, top_p=0.9),
        Sampling(1, temperature=1.3, top_k=20, min_p=0.05),
        Sampling(1, temperature=0.7, top_p=0.9, presence=1.0, seed=5),
    ]
    rows = []
    for at in range(40):
        kind = kinds[at % 4]
        draw = torch.rand((), generator=generator, dtype=torch.float64) if kind.temperature else None
        rows.append(Chooser(kind, draw, [1, 2], [3, at]))
    together = choose_each(logits, rows)
    assert together == [choose_each(logits[at : at + 1], [rows[at]])[0] for at in range(40)]
    plain = [at for at in range(40) if at % 4 == 1]
    draws = torch.stack([rows[at].draw for at in plain])
    assert [together[at] for at in plain] == choose(logits[plain], kinds[1], draws).tolist()
