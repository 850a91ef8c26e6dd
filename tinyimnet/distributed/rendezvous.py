"""The rendezvous: all processes of a run meet ahead of the process group, over the store that will form it.

A collective operation waits ten minutes for a process that never started, and then says that something failed. Here
the missing process is named with its node, and an error of one node becomes the same sentence on all of them.
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
from tinyimnet.errors import UserError, one_line

T = TypeVar("T")
# Seconds that the processes of a job may start apart: torch from a cold network file system takes minutes.
PATIENCE = 300.0
GOODBYE = 5.0  # seconds that rank 0 keeps the store for processes that have not left yet


class Rendezvous:
    """The processes of a run, before they are a process group; one alone meets nobody.

    Address, port and rank come from the environment, which launcher.map_environment completes.

    Args:
        timeout: seconds after which a process is missing, where that is less than PATIENCE.
        environ: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        store: what they share; None for one process.
        hosts: host name of each rank.
        core_sharers: processes of this node with the same cores as this one, itself included.

    Raises:
        UserError: a process did not arrive in time; names its rank and node.
    """

    def __init__(self, timeout: float = PATIENCE, environ: Mapping[str, str] = os.environ):
        self.rank, self.world_size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
        self.patience = min(timeout, PATIENCE)
        self.store = _store(environ, self.rank, self.patience) if self.world_size > 1 else None
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
        """The host names, each once, in the order of the ranks."""
        return list(dict.fromkeys(self.hosts))

    def gather(self, name: str, value: Any, patience: float = 0.0) -> list[Any]:
        """The values of all ranks, in the order of the ranks, on each of them.

        Args:
            name: another one for each call.
            value: what JSON can carry.
            patience: seconds to wait for the slowest; 0: as long as for the start.

        Raises:
            UserError: a process is missing; on every rank.
        """
        if not self.store:
            return [value]
        patience = patience or self.patience
        self.store.set(f"{name}/{self.rank}", json.dumps(value))
        if self.is_main:
            # Rank 0 collects, so that there are 2 requests for each process and not one for each pair.
            self.store.set(f"{name}/all", json.dumps(self._collect(name, time.monotonic() + patience)))
        elif not _arrives(self.store, f"{name}/all", time.monotonic() + patience + 10):
            raise UserError(f"rank 0 did not answer within {patience:.0f} s; see its log.", every_rank=True)
        values, missing = json.loads(self.store.get(f"{name}/all"))
        if missing:
            self.leave()
            raise UserError(
                f"{_ranks(missing)} did not arrive within {patience:.0f} s; look at that node and whether it reaches "
                "MASTER_ADDR (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME choose the network interface)."
            )
        return values

    def on_all_ranks(self, name: str, make: Callable[[], T], patience: float = 0.0) -> T:
        """What `make` gives on this rank, once it has succeeded on all; arguments as for `gather`.

        Raises:
            UserError: `make` raised one somewhere; on every rank, with the name of the node.
        """
        made, sentence = None, ""
        try:
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
        """Leave after an error that all know of; rank 0, which keeps the store, is the last to go."""
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


def _store(environ: Mapping[str, str], rank: int, patience: float) -> Store:
    """The store at MASTER_ADDR, which rank 0 keeps, or the agent of torchrun and accelerate launch."""
    host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    keeper = rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if not keeper:
            _wait_for_port(host, port, time.monotonic() + patience)
        store = TCPStore(host, port, is_master=keeper, timeout=timedelta(seconds=patience), wait_for_workers=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{socket.gethostname()} cannot {'open' if keeper else 'reach'} the port of rank 0, MASTER_ADDR {host} "
            f"and MASTER_PORT {port} ({one_line(error)}); check that rank 0 runs there and that the nodes reach each other.",
            every_rank=True,
        ) from error
    # An agent that starts its processes again keeps the store, and in it what the last ones said.
    return PrefixStore(f"tinyimnet-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _wait_for_port(host: str, port: int, deadline: float) -> None:
    """Wait until rank 0 listens; TCPStore's own tries print a C++ stack trace each.

    Raises:
        OSError: the last try, after the deadline.
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
    """Whether the key is set before the deadline; asks, because `Store.wait` warns on time-outs and stops Ctrl-C."""
    pause = 0.005
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)
    return True


def _ranks(ranks: list[int]) -> str:
    """'rank 2 (n2), rank 3 (n2)': with the nodes where Slurm tells them, as if each had as many processes as this one."""
    nodes = slurm.step_hosts(os.environ)
    tasks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    named = [f"rank {r} ({nodes[r // tasks]})" if r // tasks < len(nodes) else f"rank {r}" for r in ranks]
    return ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
