"""The lock of a run folder: a lease that its holder renews, so that two jobs never write into one run.

The file LOCK is created exclusively and names its holder, which renews its modification time every BEAT seconds. A
process that finds it looks whether the holder is alive: on the same machine by its process id, from another one by a
lease that is renewed or not within LEASE seconds of its own clock, so clocks need not agree.

Not flock or fcntl: on Lustre they need the mount option `flock` (with `localflock` they end at the node), and an NFSv3
server keeps the lock of a node that died. Creating exclusively, renaming and modification times work on all of them.
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

logger = logging.getLogger(__name__)
BEAT = 5.0  # seconds between two renewals
LEASE = 30.0  # seconds without one after which a holder on another machine is taken for dead
SETTLE = 1.0  # seconds to wait after a take-over: of several at once the last writer wins


class RunLock:
    """The right to write into a run folder; rank 0 acquires it. A context manager that releases it.

    A holder that is suspended for longer than LEASE can lose it to another job: `check` tells, before each checkpoint.
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
        """Take the lock, from a dead holder too, and keep it renewed; makes the folder where it is missing.

        Raises:
            UserError: another process holds it and is alive.
            OSError: the folder cannot be written.
        """
        self._made_folder = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("x") as file:
                json.dump(self._me, file)
        except FileExistsError:
            if earlier := self._is_earlier_attempt(_read(self.path)):
                logger.warning("%s is taken over from an earlier attempt of this job.", self.path)
            else:
                self._wait_for_a_dead_holder()
            mine = self.path.with_name(f".LOCK.{self._me['token']}")
            mine.write_text(json.dumps(self._me))
            os.replace(mine, self.path)
            # By then an earlier attempt has seen it and stopped, should it still be alive.
            time.sleep(2 * BEAT if earlier else SETTLE)
        except OSError:  # a full disk: an empty LOCK would keep the next start waiting
            self.path.unlink(missing_ok=True)
            raise
        self._held = True
        self.check()
        threading.Thread(target=self._renew, name="run lock", daemon=True).start()

    def check(self) -> None:
        """Raise a UserError where another process has taken the lock, or somebody removed it."""
        if self._held and (holder := _read(self.path)).get("token") != self._me["token"]:
            taker = _name(holder) if holder else "nobody: its file LOCK was removed"
            raise UserError(
                f"the run folder {self.path.parent} now belongs to {taker}; this process writes nothing more into it."
            )

    def release(self) -> None:
        """Give the lock back, where it is held."""
        self._released.set()
        with suppress(OSError, UserError):
            self.check()
            if self._held:
                self.path.unlink()
            if self._made_folder:
                self.path.parent.rmdir()  # works where it is empty: the start was refused
        self._held = False

    def _is_earlier_attempt(self, holder: dict[str, Any]) -> bool:
        """Whether Slurm started the job of the holder again, as this process: it took the holder's node for lost."""
        same_job = bool(self._me["job"]) and holder.get("job") == self._me["job"]
        return same_job and holder.get("restart", 0) < self._me["restart"]

    def _wait_for_a_dead_holder(self) -> None:
        holder, renewed = _read(self.path), _renewed(self.path)
        alive = _is_alive(holder)
        if alive is None:
            logger.warning("%s names %s: waiting up to %.0f s for a sign of life.", self.path, _name(holder), LEASE)
            deadline = time.monotonic() + LEASE
            while (now := _renewed(self.path)) == renewed and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
            alive = now not in (renewed, 0)  # 0: given back meanwhile
        if alive:
            raise UserError(
                f"run.dir {self.path.parent} is in use by {_name(holder)}; "
                "wait for its end, or choose another --run.dir."
            )

    def _renew(self) -> None:
        while not self._released.wait(BEAT):
            try:
                self.check()
                os.utime(self.path)
            except OSError as error:  # a full or slow file system: the next renewal is soon
                logger.debug("%s was not renewed: %s", self.path, error)
            except UserError:
                # Stop as on any request: the save at the end meets `check`, which says why.
                os.kill(os.getpid(), signal.SIGTERM)
                return


def is_held(run_dir: Path) -> bool:
    """Whether somebody renews the lock of a run folder; one look, which a clock that is LEASE off makes a wrong one."""
    try:
        return time.time() - _renewed(run_dir / "LOCK") / 1e9 < LEASE
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """The holder, empty where there is none or the file is being written."""
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _renewed(path: Path) -> int:
    """Time of the last renewal in ns, 0 without a lock; opened first, because NFS asks its server anew only then."""
    try:
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def _name(holder: dict[str, Any]) -> str:
    job = f" (Slurm job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}{job}"


def _machine() -> str:
    """What tells whether a process id means something here: this boot of the kernel and this pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _start_of(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty where it is dead, not yet reaped, or /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder is alive; None: it ran on another machine, so that its process id says nothing."""
    if not holder.get("machine") or holder["machine"] != _machine():
        return None
    return _start_of(holder["pid"]) == holder["started"]
