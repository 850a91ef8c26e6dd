"""A group of two ranks on this machine under random faults ends bit-identical to an untouched one (make chaos)."""

import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil

from helpers import chaos
from helpers.chaos import Fault, Undo
from helpers.program import ACCELERATE, REPO, TORCHRUN, small_run
from helpers.trainings import run_to_end
from helpers.wandb_server.server import WandbServer

LAUNCHERS = (
    [*ACCELERATE, "--multi_gpu", "--num_processes=2", "--main_process_port=0"],
    [*TORCHRUN, "--nproc_per_node=2"],
)
COUNT, PAUSE = 8, 8.0  # faults in a round, and at most so many seconds between them; an attempt starts in 6 s
KILLED = ("rank", "launcher", "mirror", "wandb-core")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Group:
    """Two ranks under a launcher, started again whenever they end before the run is finished.

    Args:
        command: the launcher with the program and its arguments.
        run: the run folder.
        log: file for the output.
        environ: the environment.
    """

    def __init__(self, command: list[str], run: Path, log: Path, environ: dict[str, str]):
        self.command, self.run, self.log = command, run, log
        self.environ = environ | {"CHAOS": uuid.uuid4().hex, "OMP_NUM_THREADS": "1"}
        self.starts = 0
        self.launcher = self.start()

    def start(self) -> subprocess.Popen:
        self.starts += 1
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, cwd=REPO, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )

    def finished(self) -> bool:
        """Start the group again if it has ended; returns whether it has ended for good, with exit code 0."""
        code = self.launcher.poll()
        if code is None:
            return False
        if code == 0 and (self.run / "DONE").exists():
            return True
        self.launcher = self.start()
        return False

    def processes(self) -> dict[str, psutil.Process]:
        return chaos.marked(self.environ["CHAOS"])

    def faults(self) -> dict[str, Fault]:
        return {
            **{f"a {of} killed": chaos.signalling([signal.SIGKILL], self.processes, of) for of in KILLED},
            **{f"a signal to a {of}": chaos.signalling(SIGNALS, self.processes, of) for of in ("rank", "launcher")},
            "power off": self.power_off,
            "a rank suspended": self.suspend,
            "second start": self.second,
            "checkpoints read-only": self.read_only,
        }

    def second(self, _: int) -> None:
        self.start()

    def power_off(self, _: int) -> None:
        for process in self.processes().values():
            process.kill()

    def suspend(self, choice: int) -> Undo | None:
        ranks = [process for name, process in sorted(self.processes().items()) if name.startswith("rank")]
        if not ranks:
            return None
        rank = ranks[choice % len(ranks)]
        rank.suspend()
        return lambda: rank.is_running() and rank.resume()

    def read_only(self, _: int) -> Undo | None:
        folder = self.run / "checkpoints"
        if not folder.exists() or os.path.ismount(folder):
            return None
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        return lambda: subprocess.run(["umount", "--lazy", folder], check=True)


def server_faults(server: WandbServer) -> dict[str, Fault]:
    """A W&B server that resets connections, hangs, or answers with an error."""

    def breaking(how: str | int) -> Fault:
        def fault(_: int) -> Undo:
            server.break_with(how)
            return server.heal

        return fault

    return {f"W&B: {how}": breaking(how) for how in ("reset", "hang", 500)}


def test_a_group_on_this_machine(disk: Path, tiny_data: Path, tmp_path: Path) -> None:
    untouched = tmp_path / "untouched"
    assert run_to_end(small_run(tiny_data, untouched, **chaos.LONG), tmp_path / "log", processes=2, timeout=600) == [
        0,
        0,
    ]
    for number, seed in enumerate(chaos.rounds()):
        chaos.say(f"\ngroup, seed {seed}")
        play_round(seed, LAUNCHERS[number % 2], untouched, disk / "run", tiny_data, tmp_path)
        shutil.rmtree(disk / "run")


def play_round(seed: str, launcher: list[str], untouched: Path, run: Path, data: Path, folder: Path) -> None:
    log = folder / f"log-{seed}"
    with WandbServer() as server:
        environ = os.environ | server.environment(folder / "home")
        group = Group([*launcher, "train.py", *small_run(data, run, **chaos.LONG)], run, log, environ)
        faults = group.faults() | chaos.file_faults(run) | server_faults(server)
        try:
            chaos.play(chaos.draw(seed, faults, COUNT, PAUSE), faults, group.finished)
            nothing_is_left(group)
            again = subprocess.run(group.command, cwd=REPO, env=group.environ, capture_output=True, text=True)
            assert again.returncode == 0 and "is finished" in again.stderr + again.stdout, again.stderr
            chaos.assert_lost_nothing(untouched, run, server)
        finally:
            group.power_off(0)
        chaos.say(f"        bit-identical after {group.starts} starts")


def nothing_is_left(group: Group) -> None:
    """Wait until every process of the group has ended."""
    deadline = time.monotonic() + 120
    while found := group.processes():
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
