"""The lock of a run folder: a lease that its holder renews, so that two jobs never write to one run.

The LOCK file is created exclusively and names its holder, which updates its modification time every BEAT seconds. A
process that finds LOCK checks whether the holder is alive: on the same machine by process id, otherwise by whether the
lease is renewed within LEASE seconds on the clock of the checking process, so clocks need not be synchronised.

flock and fcntl are not used. On Lustre they need the mount option `flock` (with `localflock` they only work within a
node), and an NFSv3 server keeps the lock of a dead node. Exclusive creation, rename and modification times work on all
of these file systems.
"""

import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyimnet.distributed import slurm
from tinyimnet.errors import UserError
from tinyimnet.files import read_text

logger = logging.getLogger(__name__)
BEAT = 5.0  # seconds between renewals
LEASE = 30.0  # seconds without a renewal after which a lock holder on another machine counts as dead
ENDING = 15.0  # seconds to wait for the end of a lock holder on this machine, which may be stopping
SETTLE = 1.0  # seconds to wait after a takeover; of several concurrent takeovers, the last writer wins


class RunLock:
    """Exclusive right to write to a run folder, acquired on rank 0; a context manager that releases it on exit.

    A holder that is suspended for longer than LEASE can lose the lock to another job. `check` detects that and is
    called before each checkpoint.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / "LOCK"
        self._me = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "machine": _machine(),
            "job": slurm.job_name(),
            "restart": slurm.restarts(),
        }
        self._released = threading.Event()
        self._held = self._made_folder = False

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, if needed from a dead holder, and keep it renewed; creates the folder if it is missing.

        Raises:
            UserError: the lock holder is another process that is alive.
            OSError: the folder cannot be written.
        """
        self._made_folder = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("x", encoding="utf-8") as file:
                json.dump(self._me, file)
        except FileExistsError:
            if earlier := self._is_earlier_attempt(_read(self.path)):
                logger.warning("taking over %s from an earlier attempt of this job.", self.path)
            else:
                self._wait_for_a_dead_holder()
            mine = self.path.with_name(f".LOCK.{self._me['token']}")
            mine.write_text(json.dumps(self._me), encoding="utf-8")
            os.replace(mine, self.path)
            # If the earlier attempt is still alive, it notices within BEAT seconds that the lock is gone, and stops.
            time.sleep(2 * BEAT if earlier else SETTLE)
        except OSError:  # such as a full disk; an empty LOCK would make the next start wait for its lease
            self.path.unlink(missing_ok=True)
            raise
        self._held = True
        self.check()
        threading.Thread(target=self._renew, name="run lock", daemon=True).start()

    def check(self) -> None:
        """Raise a UserError if another process has taken the lock or its file was removed."""
        if self._held and (holder := _read(self.path)).get("token") != self._me["token"]:
            taker = _name(holder) if holder else "no process (its LOCK file was removed)"
            raise UserError(
                f"run.dir {self.path.parent} is now locked by {taker}; this process no longer writes to it."
            )

    def release(self) -> None:
        """Release the lock if this process holds it."""
        self._released.set()
        with suppress(OSError, UserError):
            self.check()
            if self._held:
                self.path.unlink()
            if self._made_folder:
                self.path.parent.rmdir()  # fails unless empty, that is, unless the start was refused
        self._held = False

    def _is_earlier_attempt(self, holder: dict[str, Any]) -> bool:
        """Whether the holder is an earlier attempt of this Slurm job, on a node that Slurm considers lost."""
        same_job = bool(self._me["job"]) and holder.get("job") == self._me["job"]
        return same_job and holder.get("restart", 0) < self._me["restart"]

    def _wait_for_a_dead_holder(self) -> None:
        holder, renewed = _read(self.path), _renewed(self.path)
        alive = _is_alive(holder)
        if alive is None:
            logger.warning("%s is held by %s: waiting up to %.0f s for a renewal.", self.path, _name(holder), LEASE)
            deadline = time.monotonic() + LEASE
            while (now := _renewed(self.path)) == renewed and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
            alive = now not in (renewed, 0)  # 0: released in the meantime
        elif alive:
            logger.warning("%s is held by %s: waiting up to %.0f s for its end.", self.path, _name(holder), ENDING)
            deadline = time.monotonic() + ENDING
            while (alive := _is_alive(holder) and self.path.exists()) and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
        taker = _read(self.path)  # another process may have taken the lock during the wait
        if alive or taker not in ({}, holder):
            raise UserError(
                f"run.dir {self.path.parent} is in use by {_name(taker or holder)}; "
                "wait for it to end, or choose another --run.dir."
            )

    def _renew(self) -> None:
        while not self._released.wait(BEAT):
            try:
                self.check()
                os.utime(self.path)
            except OSError as error:  # a full or slow file system: the next renewal follows in BEAT seconds
                logger.debug("%s was not renewed: %s", self.path, error)
            except UserError:
                if self._released.is_set():  # by `release`, since the wait
                    return
                # SIGTERM is an ordinary stop request. The save that follows calls `check`, which reports the reason.
                os.kill(os.getpid(), signal.SIGTERM)
                return


def is_held(run_dir: Path) -> bool:
    """Whether the lock holder of a run folder is alive.

    If it ran on another machine: whether it renewed the lock within LEASE seconds; unreliable if clocks differ by that
    much.
    """
    lock, alive = run_dir / "LOCK", None
    try:
        with suppress(PermissionError):  # of another user
            alive = _is_alive(_read(lock))
        return alive if alive is not None else time.time() - _renewed(lock) / 1e9 < LEASE
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """The lock holder; empty if there is none or the file is still being written."""
    try:
        holder = json.loads(read_text(path))
    except (FileNotFoundError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _renewed(path: Path) -> int:
    """Time of the last renewal in ns, 0 without a lock; the file is opened because NFS revalidates only on open."""
    try:
        with suppress(PermissionError), path.open("rb"):  # of another user
            pass
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _name(holder: dict[str, Any]) -> str:
    job = f" (Slurm job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}{job}"


def _machine() -> str:
    """Identifier of this kernel boot and pid namespace, within which a process id is meaningful."""
    try:
        boot = read_text(Path("/proc/sys/kernel/random/boot_id")).strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _start_of(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty if it is dead or a zombie, or /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the lock holder is alive; None if it ran on another machine, where its process id means nothing here."""
    if not holder.get("machine") or holder["machine"] != _machine():
        return None
    return _start_of(holder["pid"]) == holder["started"]
