"""A job on a real Slurm of three nodes under random faults ends bit-identical to an untouched one (make chaos)."""

import shutil
import signal
import subprocess
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from helpers import chaos
from helpers.chaos import Fault, Undo
from helpers.program import small_run
from helpers.slurm_cluster import ENDED, NODES, SHAPE, TRAIN, Cluster
from helpers.wandb_server.server import WandbServer

COUNT, PAUSE = 6, 12.0  # faults in a round, and at most so many seconds between them; an attempt starts in 7 s
KILLED = ("rank", "srun", "slurm_script", "slurmstepd", "mirror", "wandb-core")


class Job:
    """A job of two nodes with two ranks each, submitted again whenever it ends before the run is finished.

    Args:
        cluster: where.
        arguments: of train.sbatch.
        run: the run folder.
        log: file for the output of all jobs.
    """

    def __init__(self, cluster: Cluster, arguments: list[str], run: Path, log: Path):
        self.cluster, self.arguments, self.run, self.log = cluster, arguments, run, log
        self.mark = uuid.uuid4().hex
        self.environ = {"CHAOS": self.mark, "WANDB_MODE": "offline", "SLURM_WAIT": "30"}
        self.jobs: list[str] = []
        self.controller_down = False

    def submit(self, _: int = 0) -> None:
        """Submit the run; a controller that is down refuses it."""
        command = ["sbatch", "--parsable", "--partition=preempt", "--open-mode=append", *SHAPE, f"--output={self.log}"]
        job = self.cluster.run(*command, *self.arguments, check=False, **self.environ).strip()
        if job:
            self.jobs.append(job)

    def states(self) -> dict[str, str]:
        """State of each job; only of those that the controller answers for."""
        found = {}
        for job in self.jobs:
            with suppress(AssertionError, KeyError):
                shown = self.cluster.show(job)
                state, reason = shown["JobState"], shown["Reason"]
                if reason.startswith("launch"):  # launch failed requeued held
                    state = "HELD"
                # Slurm shows how a requeued job ended until it may start again.
                elif reason == "BeginTime" and state != "CANCELLED":
                    state = "PENDING"
                found[job] = state
        return found

    def finished(self) -> bool:
        """Submit the run again if all its jobs have ended; returns whether it is finished and all have ended."""
        if self.controller_down:  # to ask would take 40 s
            return False
        for job, state in (states := self.states()).items():
            if state == "HELD":  # by Slurm, which took a job for pending that it had started before it was killed
                self.cluster.run("scontrol", "release", job, check=False)
        if len(states) < len(self.jobs) or any(state not in ENDED for state in states.values()):
            return False
        if (self.run / "DONE").exists():
            return True
        self.submit()
        return False

    def processes(self) -> dict[str, psutil.Process]:
        """Processes of the jobs on all nodes, and the daemons that started them, which do not have the mark."""
        found = chaos.marked(self.mark)
        for name, process in list(found.items()):
            with suppress(psutil.Error):
                parents = process.parents()
                found |= {f"slurmstepd of {name}": p for p in parents if p.name().startswith("slurmstepd")}
        return found

    def faults(self) -> dict[str, Fault]:
        return {
            **{f"a {of} killed": chaos.signalling([signal.SIGKILL], self.processes, of) for of in KILLED},
            "scancel --signal=USR1": lambda _: self.each("scancel", "--signal=USR1"),
            "scancel --signal=TERM": lambda _: self.each("scancel", "--signal=TERM"),
            "scancel": lambda _: self.each("scancel"),
            "scontrol requeue": lambda _: self.each("scontrol", "requeue"),
            "suspended": self.suspend,
            "preempted": self.preempt,
            "end of its time": self.ends_soon,
            "second submission": self.submit,
            "power off": partial(self.on_a_node, "node-kill", "node-start"),
            "cable pulled": partial(self.on_a_node, "net-down", "net-up"),
            "slurmd killed": partial(self.on_a_node, "slurmd-kill", "slurmd-start"),
            "slurmctld killed": self.controller,
        }

    def each(self, *command: str) -> None:
        """Run a command on each job."""
        for job in self.jobs:
            self.cluster.run(*command, job, check=False)

    def suspend(self, _: int) -> Undo:
        self.each("scontrol", "suspend")
        return partial(self.each, "scontrol", "resume")

    def preempt(self, _: int) -> None:
        with suppress(AssertionError):  # the controller is down
            self.cluster.take_all_nodes()

    def ends_soon(self, _: int) -> Undo:
        """Slurm warns and kills up to 30 s late, and keeps the limit for later attempts."""
        for job, state in self.states().items():
            if state == "RUNNING":
                with suppress(AssertionError):
                    self.cluster.ends_soon(job, 30)
        return self.restore_time

    def restore_time(self) -> None:
        for job in self.jobs:
            self.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60", check=False)

    def on_a_node(self, command: str, repair: str, choice: int) -> Undo:
        node = NODES[choice % len(NODES)]
        chaos.say(f"          {command} {node}")
        self.control(command, node)
        return partial(self.control, repair, node)

    def controller(self, _: int) -> Undo:
        self.control("ctld-kill")
        self.controller_down = True
        return self.start_controller

    def start_controller(self) -> None:
        self.control("ctld-start")
        self.controller_down = False

    def control(self, *command: str) -> None:
        """Run cluster.sh, which fails if an earlier fault has done the same."""
        with suppress(AssertionError):
            self.cluster.control(*command)

    def repair(self) -> None:
        """Do what an administrator does: start what is down, and resume nodes that Slurm drained."""
        self.start_controller()
        for node in NODES:
            self.control("node-start", node)
            self.control("net-up", node)
            self.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)


def test_a_job_on_slurm(disk: Path, cluster: Cluster, tiny_data: Path, tmp_path: Path) -> None:
    arguments = small_run(tiny_data, disk / "run", **chaos.LONG)
    arguments = [arguments[0].removeprefix("--config="), *arguments[1:]]
    untouched = tmp_path / "untouched"
    command = ["sbatch", "--parsable", *SHAPE, f"--output={tmp_path}/log", TRAIN, *arguments, f"--run.dir={untouched}"]
    assert cluster.end(cluster.run(*command).strip()) == "COMPLETED", (tmp_path / "log").read_text()
    for seed in chaos.rounds():
        chaos.say(f"\njob, seed {seed}")
        play_round(seed, Job(cluster, [TRAIN, *arguments], disk / "run", tmp_path / f"log-{seed}"), untouched)
        shutil.rmtree(disk / "run")


def play_round(seed: str, job: Job, untouched: Path) -> None:
    faults = job.faults() | chaos.file_faults(job.run)
    job.submit()
    try:
        chaos.play(chaos.draw(seed, faults, COUNT, PAUSE), faults, job.finished, job.repair)
        chaos.say(f"        {job.states()}")
        job.submit()
        assert job.cluster.end(job.jobs[-1]) == "COMPLETED" and "is finished" in job.log.read_text()
        with WandbServer() as server:
            chaos.assert_lost_nothing(untouched, job.run, server)
    finally:
        job.repair()
        job.each("scancel")
        job.cluster.wait(lambda: not job.cluster.run("squeue", "--noheader"), 60, "the end of all jobs")
        subprocess.run(["rm", "-f", job.run.parent / "filler"], check=True)
    chaos.say(f"        bit-identical after {len(job.jobs) - 1} submissions")
