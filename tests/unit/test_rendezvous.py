"""A single process waits for nobody; missing ranks are named with their nodes."""

import socket

import pytest

from tinyimnet.distributed import rendezvous
from tinyimnet.distributed.rendezvous import Rendezvous


def test_a_single_process_waits_for_nobody() -> None:
    alone = Rendezvous(environ={})
    assert (alone.rank, alone.world_size, alone.store, alone.hosts) == (0, 1, None, [socket.gethostname()])
    assert alone.on_all_ranks("x", lambda: 7) == 7


def test_missing_ranks_are_named_with_the_nodes_that_slurm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(rendezvous.slurm, "step_hosts", lambda environ: ["n1", "n2"])
    assert rendezvous._ranks([2, 3]) == "rank 2 (n2), rank 3 (n2)"
