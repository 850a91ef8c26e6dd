"""The processes of a run meet ahead of the process group; who is missing or failed is named on all of them."""

import socket
import time

import pytest
from conftest import together

from tinyimnet import meeting
from tinyimnet.errors import UserError
from tinyimnet.meeting import Meeting


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
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(meeting.slurm, "step_hosts", lambda environ: ["n1", "n2"])
    assert meeting._ranks([2, 3]) == "rank 2 (n2), rank 3 (n2)"


def test_processes_with_the_same_cores_know_of_each_other() -> None:
    def share(m: Meeting) -> int:
        return m.core_sharers

    assert together(share, 3) == [3, 3, 3]
