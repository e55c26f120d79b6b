"""X4, X6, X10: exchanges that do not match, launchers that say something wrong, and who listens where."""

import os
import socket
import time

import pytest
import torch
from tests.distributed.crew import LOOPBACK, Forked, evidence_of, launch, outcome, own_listeners

from tunesmith.distributed.ending import last_word
from tunesmith.distributed.launched import FOLDER
from tunesmith.distributed.mesh import join_world
from tunesmith.distributed.rendezvous import listening
from tunesmith.errors import TunesmithError


def in_a_later_step(mesh):
    mesh.heart.begin(1)
    mesh.heart.end()
    mesh.heart.begin(2)


@pytest.mark.row("X4")
def test_x04_a_left_out_exchange_is_a_mismatch_with_both_stacks(tmp_path):
    def work(mesh):
        in_a_later_step(mesh)
        if mesh.rank == 0:
            mesh.sum([1.0])
        mesh.gather(torch.ones(3, 2))
        mesh.barrier()

    ended = launch(tmp_path / "ranks", work, hang_seconds=3).run()
    assert ended.code == 8 or (ended.code in (1, 7) and "SIGABRT" in str(ended.error))
    told = evidence_of(ended)
    assert "exchange 1: sum of 1" in told
    assert "exchange 1: gather of 2" in told
    assert "mismatch: ranks meant one exchange as different things" in told


@pytest.mark.row("X4")
def test_x04_another_shape_is_a_mismatch(tmp_path):
    def work(mesh):
        in_a_later_step(mesh)
        mesh.sum([1.0] * (100_000 if mesh.rank == 0 else 4))

    ended = launch(tmp_path / "ranks", work, hang_seconds=3).run()
    assert ended.code in (7, 8)
    told = evidence_of(ended)
    assert "sum of 100,000" in told
    assert "sum of 4" in told
    assert "mismatch: ranks meant one exchange as different things" in told


def joining(folder, rank: int, **given: object) -> Forked:
    """A process that joins the world which another launcher describes, and leaves its error in the folder."""

    def work():
        described = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "TUNESMITH_JOIN_SECONDS": 2, **given}
        os.environ.update({name: str(value) for name, value in described.items()})
        error = None
        begun = time.monotonic()
        try:
            mesh = join_world(30)
            assert mesh.sum([1.0]) == [2.0]
            (folder / f"rank{rank}.listeners").write_text(" ".join(own_listeners(os.getpid())))
            mesh.close()
        except TunesmithError as caught:
            assert time.monotonic() - begun < 20
            error = caught
        os.environ[FOLDER] = str(folder)  # only now, so that it does not count as ours
        if error is not None:
            raise error

    return Forked(lambda: os._exit(outcome(work)), folder / f"rank{rank}.log")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def errors(folder, *processes: Forked) -> list[str]:
    """What the processes told, each with its exit code."""
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
    found = [last_word(folder, rank) for rank in range(3)]
    return [f"{error.exit_code} {error.diagnostic.code} {error.diagnostic.message}" for error in found if error]


@pytest.mark.row("X6")
def test_x06_a_port_that_is_taken(tmp_path):
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        told = errors(tmp_path, joining(tmp_path, 0, MASTER_PORT=port))
    assert told == [f"5 E501 port {port} on 127.0.0.1 cannot be used: Address already in use"]


@pytest.mark.row("X6")
def test_x06_an_address_that_is_wrong(tmp_path):
    port = free_port()
    assert errors(tmp_path, joining(tmp_path, 1, MASTER_PORT=port)) == [f"5 E503 nothing answers at 127.0.0.1:{port}"]
    (tmp_path / "rank1.error").unlink()
    told = errors(tmp_path, joining(tmp_path, 0, MASTER_PORT=port, MASTER_ADDR="192.0.2.1"))
    assert told == ["5 E503 rank 0 runs on this machine, which does not have the address MASTER_ADDR=192.0.2.1"]
    told = errors(tmp_path, joining(tmp_path, 0, MASTER_PORT=port, MASTER_ADDR="no.such.host.invalid"))
    assert told == ["5 E503 MASTER_ADDR=no.such.host.invalid has no address"]


@pytest.mark.row("X6")
def test_x06_a_number_of_ranks_that_is_wrong(tmp_path):
    port = free_port()
    processes = [joining(tmp_path, rank, MASTER_PORT=port, WORLD_SIZE=3) for rank in (0, 1)]
    missing = "2 E502 rank 2 did not come: WORLD_SIZE=3, 2 are here"
    told = errors(tmp_path, *processes)
    assert missing in told
    assert len(told) == 2
    told = errors(tmp_path, joining(tmp_path, 2, WORLD_SIZE=2))
    assert "2 E502 RANK=2 but WORLD_SIZE=2: ranks are counted from 0 to 1" in told


@pytest.mark.row("X6")
def test_x06_two_processes_with_one_rank(tmp_path):
    port, other = free_port(), tmp_path / "other"
    other.mkdir()
    processes = joining(tmp_path, 0, MASTER_PORT=port), joining(tmp_path, 1, MASTER_PORT=port, WORLD_SIZE=3)
    again = joining(other, 1, MASTER_PORT=port, WORLD_SIZE=3)
    told = [*errors(tmp_path, *processes), *errors(other, again)]
    assert "2 E502 two processes say that they are rank 1 of 3" in told


@pytest.mark.row("X10", "S19")
def test_x10_ranks_that_find_each_other_by_an_address_listen_on_it_alone(tmp_path):
    port = free_port()
    assert errors(tmp_path, *(joining(tmp_path, rank, MASTER_PORT=port) for rank in (0, 1))) == []
    listeners = [(tmp_path / f"rank{rank}.listeners").read_text().split() for rank in (0, 1)]
    assert f"0100007F:{port:04X}" in listeners[0]
    assert len(listeners[0]) >= 2, "the store's and the one for exchanges"
    assert all(address.startswith(LOOPBACK) for found in listeners for address in found)


@pytest.mark.row("X10", "S19")
def test_x10_ranks_of_the_launcher_listen_on_loopback_alone(tmp_path, evidence):
    def work(mesh):
        assert mesh.sum([1.0]) == [2.0]
        (tmp_path / f"{mesh.rank}.listeners").write_text(" ".join(own_listeners(os.getpid())))
        (tmp_path / f"{mesh.rank}.launcher").write_text(" ".join(own_listeners(os.getppid())))
        mesh.barrier()

    assert launch(tmp_path / "ranks", work).run().code == 0
    found = [(tmp_path / f"{rank}.listeners").read_text().split() for rank in (0, 1)]
    assert all(found), "ranks that exchange numbers listen somewhere"
    everywhere = [address for one in found for address in one if not address.startswith(LOOPBACK)]
    assert everywhere == []
    assert [(tmp_path / f"{rank}.launcher").read_text() for rank in (0, 1)] == ["", ""]
    evidence("X10", claim="listeners of two ranks outside 127.0.0.1", figure=str(len(everywhere)), seed=0)


def test_a_listener_on_every_address_would_be_found():
    with listening("0.0.0.0", 0) as every:
        addresses = own_listeners(os.getpid())
        assert f"00000000:{every.getsockname()[1]:04X}" in addresses
        assert not all(address.startswith(LOOPBACK) for address in addresses)


def test_texts_of_all_ranks_arrive_whole_and_in_order(tmp_path):
    def work(mesh):
        assert mesh.gather_texts("ä" * mesh.rank) == ["", "ä"]
        assert mesh.sum(mesh.only_mine(mesh.rank + 1.5)) == [1.5, 2.5]

    assert launch(tmp_path / "ranks", work).run().code == 0
