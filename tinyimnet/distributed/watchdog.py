"""Ends this process if it waits for another one that is gone, which the main thread may be unable to notice.

A collective operation of NCCL never returns if a process of the group is dead. The main thread then sits in C, where
Python runs no signal handler. Two threads take over: one exchanges heartbeats through the store of the rendezvous and
may block there; the other decides and never blocks. They cost the training one request per second.
"""

import logging
import select
import signal
import socket
import threading
import time

from torch.distributed import Store

from tinyimnet.distributed.preemption import SIGNALS, StopRequest
from tinyimnet.distributed.process_group import exit_process
from tinyimnet.distributed.rendezvous import Rendezvous

logger = logging.getLogger(__name__)
BEAT = 1.0  # seconds between two heartbeats
LEASE = 30.0  # seconds without a heartbeat after which a process counts as lost; networks can pause for several
GRACE = 3.0  # seconds in which the main thread can report a lost process itself, as it does with gloo
# Seconds from a stop request during which the loop may show no sign of life, or three times its longest pause so far.
# torchrun and Slurm kill after 30 s by default.
STUCK = 10.0


class Watchdog:
    """Watches the other processes and the response to stop requests; a context manager, a no-op for one process.

    Rank 0 watches all ranks, and the others watch rank 0.

    Args:
        rendezvous: the processes of the run and their store.
        stop: stop requests of this process, and when its loop was last alive.
    """

    def __init__(self, rendezvous: Rendezvous, stop: StopRequest):
        self.rank, self.world_size, self.stop = rendezvous.rank, rendezvous.world_size, stop
        self.agent_keeps_store = rendezvous.agent_keeps_store
        # A connection of its own; torch's stubs lack the method.
        self.store: Store | None = rendezvous.store.clone() if rendezvous.store else None  # type: ignore[attr-defined]
        self._watched = dict.fromkeys(range(1, rendezvous.world_size) if self.rank == 0 else [0], (0, time.monotonic()))
        self._failure, self._failed_at = "", float("inf")
        self._exchanged_at, self._requested_at = time.monotonic(), float("inf")
        self._left, self._told = threading.Event(), threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.store:
            # The C part of a signal handler writes the signal's number here, whatever the main thread is doing.
            self._signals, end = socket.socketpair()
            end.setblocking(False)
            self._wakeup = end
            signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
            self._exchanging = threading.Thread(target=self._exchange, name="watchdog exchange", daemon=True)
            self._exchanging.start()
            threading.Thread(target=self._watch, name="watchdog watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.leave(failed=kind is not None)

    def leave(self, *, failed: bool) -> None:
        """Stop watching: this process takes part in no further collective operation."""
        if self.store and not self._left.is_set():
            signal.set_wakeup_fd(-1)
            if failed:
                self._fail(f"rank {self.rank} failed")
            self._left.set()
            self._exchanging.join(2 * GRACE)

    # ---- the thread that talks to the store -----------------------------------------------------------------

    def _exchange(self) -> None:
        assert self.store
        try:
            while not self._left.wait(BEAT):
                self._expect_store()
                self.store.add(f"beats/{self.rank}", 1)
                if not self._failure and self.store.check(["failed"]):
                    self._fail(self.store.get("failed").decode())
                if self._failure:  # this process ends soon
                    break
                self._look_at_others()
                self._exchanged_at = time.monotonic()
            self._expect_store()
            if self._failure:
                self._announce()
            else:
                self.store.add(f"left/{self.rank}", 1)
            self._wait_for_others()
        except RuntimeError:  # the connection is closed
            if self.agent_keeps_store:  # the launcher is gone: the ranks agree to stop
                self._exchanged_at, self._requested_at = float("inf"), time.monotonic()
            else:
                self._fail("rank 0 is gone")
        self._told.set()

    def _wait_for_others(self) -> None:
        """Let rank 0 leave last if it hosts the store, whose end makes the others print a C++ stack trace."""
        assert self.store
        self.store.add("gone", 1)
        deadline = time.monotonic() + GRACE
        hosts = self.rank == 0 and not self.agent_keeps_store
        while hosts and self.store.add("gone", 0) < self.world_size and time.monotonic() < deadline:
            time.sleep(0.02)

    def _expect_store(self) -> None:
        """Raise a RuntimeError, as the store does itself, but after 30 lines of C++ stack trace."""
        if self.agent_keeps_store and self.stop.launcher_gone():
            raise RuntimeError("the launcher is gone, and the store with it")

    def _look_at_others(self) -> None:
        assert self.store
        now = time.monotonic()
        suspended = now - self._exchanged_at > LEASE / 2  # so the others were suspended too, perhaps
        for rank, (count, since) in list(self._watched.items()):
            beats = self.store.add(f"beats/{rank}", 0)
            if beats != count or suspended:
                self._watched[rank] = beats, now
            elif now - since > LEASE:
                del self._watched[rank]
                if not self.store.add(f"left/{rank}", 0):
                    self._fail(f"rank {rank} sent no heartbeat for {LEASE:.0f} s")

    def _announce(self) -> None:
        assert self.store
        if self.store.add("failures", 1) == 1:  # the first failure is the cause of the others
            self.store.set("failed", self._failure)
        self._told.set()

    # ---- the thread that decides ----------------------------------------------------------------------------

    def _watch(self) -> None:
        woke_at = time.monotonic()
        while not self._left.is_set():
            requested = bool(self.stop.code)
            if select.select([self._signals], [], [], BEAT)[0]:
                requested = requested or bool(set(self._signals.recv(64)).intersection(SIGNALS))
            now = time.monotonic()
            if now - woke_at > LEASE / 2:  # suspended
                self._exchanged_at = min(now, self._exchanged_at + now - woke_at)
            woke_at = now
            if requested:
                self._requested_at = min(self._requested_at, now)
            if now - self._exchanged_at > LEASE:
                self._fail(f"the store of rank 0 did not answer for {LEASE:.0f} s")
            if self.stop.ignored_for(self._requested_at, now, at_least=STUCK):
                self._fail(f"rank {self.rank} does not respond to a stop request, because it waits for another process")
                self._told.wait(2 * BEAT)
                self._end()
            if now - self._failed_at > GRACE:
                self._end()

    def _fail(self, failure: str) -> None:
        if not self._failure:
            self._failure, self._failed_at = failure, time.monotonic()

    def _end(self) -> None:
        if not self._left.is_set():
            logger.error(
                "rank %d: another process of the group is gone or stuck (%s); see logs/rank_*.log of the run folder "
                "for the first failure, and the launcher's output for a killed process.", self.rank, self._failure,
            )  # fmt: skip
            exit_process(1)
