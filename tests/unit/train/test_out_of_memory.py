"""Memory that runs out in a step is noticed by every rank; other errors are left alone."""

import threading
from types import SimpleNamespace

import pytest
import torch

from tunesmith.distributed.mesh import Mesh
from tunesmith.train.out_of_memory import TooLarge, is_out_of_memory, smaller, within_memory


class Meeting:
    """A mesh of threads, as far as `within_memory` needs one."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.values: list[float] = []

    def largest(self, value: float) -> float:
        self.values.append(value)
        self.barrier.wait()
        return max(self.values)


@pytest.mark.row("P9")
def test_memory_that_runs_out_on_one_rank_is_noticed_by_all_without_a_hang():
    mesh, told = Meeting(3), [""] * 3

    def work(rank: int) -> int:
        if rank == 1:
            raise MemoryError("no room")
        return rank

    def body(rank: int) -> None:
        try:
            within_memory(mesh, lambda: work(rank))
        except TooLarge as error:
            told[rank] = str(error)

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert told == ["memory ran out on another rank", "no room", "memory ran out on another rank"]


def test_other_errors_pass_and_results_come_back():
    assert within_memory(Mesh(), lambda: [1]) == [1]

    def broken() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(Mesh(), broken)


def test_what_torch_says_when_it_has_no_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_only_microbatches_of_several_examples_can_be_split():
    batches = [SimpleNamespace(tokens=range(size), examples=range(count)) for size, count in ((90, 1), (61, 3))]
    assert smaller(batches, Mesh()) == 30
    assert smaller(batches[:1], Mesh()) == 0
    assert smaller([], Mesh()) == 0
