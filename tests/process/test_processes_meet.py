"""The processes of a run meet before the process group forms; a missing or failed one is named on all of them."""

import time

import pytest

from helpers.rendezvous import together
from tinyimnet.distributed import rendezvous
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import UserError


def test_each_rank_gets_the_values_of_all_in_rank_order() -> None:
    assert together(lambda m: m.gather("x", 10 * m.rank), 3) == [[0, 10, 20]] * 3


def test_each_rank_keeps_its_result_once_all_have_succeeded() -> None:
    assert together(lambda m: m.on_all_ranks("x", lambda: m.rank + 5), 3) == [5, 6, 7]


def test_an_error_of_one_rank_is_raised_on_all_at_once() -> None:
    def fail(m: Rendezvous) -> None:
        if m.rank == 1:
            raise UserError("rank 1 has no disk.")

    started = time.monotonic()
    assert together(lambda m: m.on_all_ranks("x", lambda: fail(m)), 3) == ["rank 1 has no disk."] * 3
    assert time.monotonic() - started < 10


def test_processes_that_do_not_arrive_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "GOODBYE", 0.5)
    sentences = together(lambda m: None, 4, ranks=[0, 2], timeout=1)
    assert all(sentence.startswith("rank 1, rank 3 did not arrive within 1 s") for sentence in sentences)


def test_without_rank_0_its_address_is_named() -> None:
    (sentence,) = together(lambda m: None, 2, ranks=[1], timeout=1)
    assert "cannot reach the port of rank 0, MASTER_ADDR 127.0.0.1" in sentence and "Connection refused" in sentence


def test_processes_on_the_same_cores_are_counted() -> None:
    def share(m: Rendezvous) -> int:
        return m.core_sharers

    assert together(share, 3) == [3, 3, 3]
