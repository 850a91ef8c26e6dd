"""The processes of a run meet ahead of the process group; who is missing or failed is named on all of them."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable

import pytest

from tinyimnet import meeting
from tinyimnet.errors import UserError
from tinyimnet.meeting import Meeting


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def together(
    action: Callable[[Meeting], object], world_size: int, ranks: list[int] | None = None, timeout: float = 20
):
    """What `action` gives on each of these ranks, or the text of its UserError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def run(rank: int) -> None:
        try:
            met = Meeting(timeout, environment(rank, world_size, port))
            answers.put((rank, action(met)))
            met.part()  # rank 0 has the store
        except UserError as error:
            answers.put((rank, str(error)))
        answers.close()
        answers.join_thread()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in ranks or range(world_size)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(10)
    return [found[rank] for rank in sorted(found)]


def test_one_process_meets_nobody() -> None:
    alone = Meeting(environ={})
    assert (alone.rank, alone.world_size, alone.store, alone.hosts) == (0, 1, None, [socket.gethostname()])
    assert alone.from_main("x", lambda: 7) == 7


def test_each_rank_gets_the_values_of_all_in_their_order() -> None:
    assert together(lambda m: m.gather("x", 10 * m.rank), 3) == [[0, 10, 20]] * 3


def test_each_rank_gets_what_rank_0_made() -> None:
    assert together(lambda m: m.from_main("x", lambda: m.rank + 5), 3) == [5] * 3


def test_an_error_of_one_rank_is_raised_on_all_without_waiting_for_a_timeout() -> None:
    def fail(m: Meeting) -> None:
        if m.rank == 1:
            raise UserError("rank 1 has no disk.")

    started = time.monotonic()
    assert together(lambda m: m.everyone("x", lambda: fail(m)), 3) == ["rank 1 has no disk."] * 3
    assert time.monotonic() - started < 10


def test_processes_that_do_not_come_are_named() -> None:
    sentences = together(lambda m: None, 4, ranks=[0, 2], timeout=1)
    assert all(sentence.startswith("rank 1, rank 3 did not arrive within 1 s") for sentence in sentences)


def test_without_rank_0_its_address_is_named() -> None:
    (sentence,) = together(lambda m: None, 2, ranks=[1], timeout=1)
    assert (
        "cannot reach the port of rank 0, MASTER_ADDR 127.0.0.1" in sentence
        and "Connection refused" in sentence
    )


def test_missing_ranks_are_named_with_the_nodes_that_slurm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setattr(meeting.slurm, "step_hosts", lambda environ: ["n1", "n2"])
    assert meeting._ranks([2, 3]) == "rank 2 (n2), rank 3 (n2)"


def test_processes_with_the_same_cores_know_of_each_other() -> None:
    def share(m: Meeting) -> int:
        return m.core_sharers

    assert together(share, 3) == [3, 3, 3]
