"""Rendezvous: all processes of a run meet before the process group forms, through the store that will form it.

A collective operation waits ten minutes for a process that never started, and then reports only that something failed.
Here the error names the missing process and its node, and an error on one node is raised with the same message on all.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore

from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError, one_line, paths_named

T = TypeVar("T")
# Maximum seconds between starts of a job's processes: loading torch from a cold network file system takes minutes.
PATIENCE = 300.0
GOODBYE = 5.0  # seconds that rank 0 keeps the store open for processes that have not left yet


class Rendezvous:
    """The processes of a run before they form a process group; with one process, all methods return at once.

    Address, port and rank come from the environment, which launcher.map_environment completes.

    Args:
        timeout: seconds after which a process counts as missing, capped at PATIENCE.
        environ: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Attributes:
        rank: rank of this process.
        world_size: number of processes.
        store: the store that they share; None for one process.
        agent_keeps_store: whether the agent of torchrun or accelerate launch hosts it, instead of rank 0.
        hosts: host name of each rank.
        core_sharers: processes on this node with the same cores as this one, including itself.

    Raises:
        UserError: a process did not arrive in time; names its rank and node.
    """

    def __init__(self, timeout: float = PATIENCE, environ: Mapping[str, str] = os.environ):
        self.rank, self.world_size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
        self.patience = min(timeout, PATIENCE)
        self.agent_keeps_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeper = self.rank == 0 and not self.agent_keeps_store
        self.store = _store(environ, keeper, self.patience) if self.world_size > 1 else None
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        here = [socket.gethostname(), cores]
        present = self.gather("present", here)
        self.hosts = [host for host, _ in present]
        self.core_sharers = present.count(here)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def nodes(self) -> list[str]:
        """Unique host names, in rank order."""
        return list(dict.fromkeys(self.hosts))

    def gather(self, name: str, value: Any, patience: float = 0.0) -> list[Any]:
        """Values of all ranks, in rank order, on every rank.

        Args:
            name: a name that is unique to this call.
            value: any value that JSON can represent.
            patience: seconds to wait for the slowest rank; 0 uses the timeout of the rendezvous.

        Raises:
            UserError: a process is missing; raised on every rank.
        """
        if not self.store:
            return [value]
        patience = patience or self.patience
        self.store.set(f"{name}/{self.rank}", json.dumps(value))
        if self.is_main:
            # Rank 0 collects, which takes 2 requests per process instead of one per pair.
            self.store.set(f"{name}/all", json.dumps(self._collect(name, time.monotonic() + patience)))
        elif not _arrives(self.store, f"{name}/all", time.monotonic() + patience + 10):
            raise UserError(f"rank 0 did not answer within {patience:.0f} s; see its log.", every_rank=True)
        values, missing = json.loads(self.store.get(f"{name}/all"))
        if missing:
            self.leave()
            raise UserError(
                f"{_ranks(missing)} did not arrive within {patience:.0f} s; check that node and whether it reaches "
                "MASTER_ADDR (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network interface)."
            )
        return values

    def on_all_ranks(self, name: str, make: Callable[[], T], patience: float = 0.0) -> T:
        """Run `make` and return its result once it has succeeded on all ranks; other arguments as for `gather`.

        Raises:
            UserError: `make` raised it on some rank; raised on every rank, with the name of the node.
        """
        made, sentence = None, ""
        try:
            with paths_named():
                made = make()
        except UserError as error:
            sentence = str(error)
        sentences = self.gather(name, sentence, patience)
        failed = next((rank for rank, text in enumerate(sentences) if text), None)
        if failed is not None:
            self.leave()
            node = f"node {self.hosts[failed]}: " if len(self.nodes) > 1 else ""
            raise UserError(node + sentences[failed])
        return made  # type: ignore[return-value]

    def leave(self) -> None:
        """Leave after an error that all ranks know of; rank 0, which hosts the store, leaves last."""
        if not self.store:
            return
        self.store.add("left", 1)
        deadline = time.monotonic() + GOODBYE
        while self.is_main and self.store.add("left", 0) < self.world_size and time.monotonic() < deadline:
            time.sleep(0.01)

    def _collect(self, name: str, deadline: float) -> tuple[list[Any], list[int]]:
        assert self.store
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        missing = [rank for rank, key in enumerate(keys) if not _arrives(self.store, key, deadline)]
        return ([] if missing else [json.loads(self.store.get(key)) for key in keys]), missing


def _store(environ: Mapping[str, str], keeper: bool, patience: float) -> Store:
    """Connect to the store at MASTER_ADDR, and host it as the keeper."""
    host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    try:
        if not keeper:
            _wait_for_port(host, port, time.monotonic() + patience)
        store = TCPStore(host, port, is_master=keeper, timeout=timedelta(seconds=patience), wait_for_workers=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{socket.gethostname()} cannot {'open' if keeper else 'reach'} the port of rank 0, MASTER_ADDR {host} "
            f"and MASTER_PORT {port} ({one_line(error)}); check that rank 0 runs there and that the nodes can reach "
            "each other.",
            every_rank=True,
        ) from error
    # An agent that restarts its processes keeps the store, with the keys of the previous ones.
    return PrefixStore(f"tinyimnet-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _wait_for_port(host: str, port: int, deadline: float) -> None:
    """Wait until rank 0 listens, because every failed attempt of TCPStore prints a C++ stack trace.

    Raises:
        OSError: the last attempt failed, after the deadline.
    """
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _arrives(store: Store, key: str, deadline: float) -> bool:
    """Whether the key is set before the deadline; polls, because `Store.wait` warns on time-outs and blocks Ctrl-C."""
    pause = 0.005
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)
    return True


def _ranks(ranks: list[int]) -> str:
    """Format ranks with the nodes that Slurm reports: 'rank 2 (n2), rank 3 (n2)'.

    Assumes that each node has as many processes as this one.
    """
    nodes = slurm.step_hosts(os.environ)
    tasks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    named = [f"rank {r} ({nodes[r // tasks]})" if r // tasks < len(nodes) else f"rank {r}" for r in ranks]
    return ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
