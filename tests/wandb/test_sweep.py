"""Sweeps as slurm/sweep.sbatch runs them, with the real wandb agent, real trainings and the W&B test server.

Only Slurm is fake: srun runs its command here, scontrol reports a job that is running undisturbed, and squeue fails.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.program import REPO, SMALL
from helpers.wandb_server.clients import wait_until
from helpers.wandb_server.records import StoredRun
from helpers.wandb_server.server import WandbServer
from tinyimnet.data import writer
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import STEP

SHARED = {**SMALL, "model.stem_stride": 2, "train.global_batch_size": 16}  # 0.4 s per epoch
COMMANDS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "squeue": "exit 1",
    "scontrol": 'echo "$*" >> "$ELEMENT/scontrol"; echo JobState=RUNNING PreemptTime=None',
    # The agent asks for work every 0.5 s instead of every 5 s.
    "wandb": 'exec python -c "from wandb import wandb_agent; wandb_agent.Agent.POLL_INTERVAL = 0.5; '
    'from wandb.cli.cli import cli; cli()" "$@"',
}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 8 single-colour classes, which a network learns in three epochs of 4 steps."""
    root = tmp_path_factory.mktemp("data") / "colours"
    labels = np.arange(64) % 8
    images = np.stack([labels & 1, labels >> 1 & 1, labels >> 2], axis=1).astype(np.uint8)[:, None, None] * 255
    with writer.new_folder(root, bytes_needed=10**7) as folder:
        for split in ("train", "val", "test"):
            shape = (len(labels), 64, 64, 3)
            writer.save_array(folder, f"{split}_images", np.broadcast_to(images, shape).copy())
            if split != "test":
                writer.save_array(folder, f"{split}_labels", labels)
        classes = [(f"n{i}", f"colour {i}") for i in range(8)]
        writer.finish(folder, classes=classes, test_files=[f"{i}.png" for i in labels], origin="colours")
    return root


class Site:
    """A sweep, and the elements of a Slurm array that work on it."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data
        (folder / "bin").mkdir()
        for name, text in COMMANDS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        self.environ = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": "active",
            "RUNS_ROOT": str(folder),
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",  # seconds; the default is 15
            "OMP_NUM_THREADS": "1",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_CPUS_ON_NODE": "1",
        }

    def create(self, file: str, parameters: dict[str, list], **changes: object) -> None:
        """Create the sweep of a file as its comment describes, but with small runs and these parameter values."""
        # The tuning split of 64 images would have one image per class: too few to tell trials apart.
        shared = {**SHARED, "data.root": str(self.data), "data.tune_split": False}
        values = {**{key: [value] for key, value in shared.items()}, **parameters}
        sweep = yaml.safe_load((REPO / "configs/sweep" / file).read_text()) | changes
        sweep["parameters"] = {key: {"values": some} for key, some in values.items() if some}
        (self.folder / file).write_text(yaml.safe_dump(sweep))
        command = ["wandb", "sweep", "--project", "t", str(self.folder / file)]
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True)
        found = re.search(r"wandb agent (\S+/(\S+))", done.stderr)
        assert found, done.stderr
        self.sweep, self.runs = found[1], self.folder / f"sweep-{found[2]}"

    def start(self, element: int = 0, attempt: int = 1) -> subprocess.Popen[str]:
        """Start an element of the array, or start it again after a requeue."""
        place = self.folder / f"element{element}"
        place.mkdir(exist_ok=True)
        more = {"ELEMENT": str(place), "SLURM_ARRAY_TASK_ID": str(element), "SLURM_JOB_ID": f"{70 + element}"}
        more |= {"SLURM_RESTART_COUNT": str(attempt - 1)} if attempt > 1 else {}
        return subprocess.Popen(
            ["bash", "slurm/sweep.sbatch", self.sweep], cwd=REPO, env=self.environ | more,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def end(self, element: subprocess.Popen[str]) -> str:
        """Wait until an element has ended, and return its output."""
        try:
            output, _ = element.communicate(timeout=240)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the element did not end: {(error.output or b'').decode()}") from None
        assert element.returncode == 0, output
        return output

    def processes(self, name: str = "") -> list[int]:
        """Return the ids of running processes of elements whose command line contains `name`."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"RUNS_ROOT={self.folder}\0" in (entry / "environ").read_text(errors="replace")
                if ours and name in (entry / "cmdline").read_text(errors="replace").replace("\0", " "):
                    found.append(int(entry.name))
            except OSError:  # the process has ended
                continue
        return found

    def requeues(self, element: int = 0) -> int:
        """Return how often an element requeued itself."""
        return (self.folder / f"element{element}" / "scontrol").read_text().count("requeue")

    def until_step(self, step: int) -> Path:
        """Wait until the only trial has logged a step, and return its folder."""

        def there() -> list[Path]:
            files = self.runs.glob("*/metrics.jsonl")
            return [file for file in files if any(line[STEP] >= step for line in read_lines(file))]

        wait_until(there, seconds=60)
        return there()[0].parent


@pytest.fixture
def site(wandb_server: WandbServer, tmp_path: Path, colours: Path) -> Iterator[Site]:
    site = Site(tmp_path, colours)
    yield site
    left = site.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a process outlived its element"


def trials(server: WandbServer) -> list[StoredRun]:
    """Return the trials of the sweep in the order of their start."""
    return server.store.trials(server.sweeps[0])


def assert_complete(run: StoredRun, site: Site) -> None:
    """Assert that W&B has each line of metrics.jsonl once and that the run is finished."""
    steps = [row[STEP] for row in run.history if STEP in row]
    assert steps == [line[STEP] for line in read_lines(site.runs / run.id / "metrics.jsonl")]
    assert (run.state, run.exit_code) == ("finished", 0)


def test_two_elements_share_a_grid_and_run_each_trial_once(wandb_server: WandbServer, site: Site) -> None:
    site.create("lr.yaml", {"optim.lr": [0.1, 0.2, 0.3]})
    outputs = [site.end(element) for element in [site.start(0), site.start(1)]]
    runs = trials(wandb_server)
    assert sorted(run.config["optim"]["lr"] for run in runs) == [0.1, 0.2, 0.3]
    for run in runs:
        assert_complete(run, site)
        assert run.resumed == 0 and (site.runs / run.id / "DONE").exists()
        assert sum(f"trial {run.id}: finished" in output for output in outputs) == 1
    assert not list(site.runs.glob(".trial-*"))


def test_a_trial_resumes_under_its_id_after_a_requeue_and_a_lost_node(wandb_server: WandbServer, site: Site) -> None:
    site.create("lr.yaml", {"train.epochs": [60]})
    first = site.start()
    run_dir = site.until_step(12)
    (agent,) = site.processes("cli() agent")
    os.kill(agent, signal.SIGUSR1)  # as Slurm does before the time limit
    assert "stopped by SIGUSR1, checkpoint saved; requeued as attempt 2" in site.end(first)
    assert site.requeues() == 1
    (run,) = trials(wandb_server)
    # Otherwise W&B would give the trial to another agent as well.
    assert (run.state, run.was_preempting) == ("finished", False)

    second = site.start(attempt=2)
    site.until_step(40)
    wait_until(lambda: run.resumed == 1, seconds=30)
    for pid in site.processes():
        os.kill(pid, signal.SIGKILL)
    second.wait()

    output = site.end(site.start(attempt=3))
    assert f"trial {run.id}: finished" in output and "no trial started" in output
    assert trials(wandb_server) == [run] and run.id == run_dir.name
    assert_complete(run, site)
    attempts = [json.loads(line) for line in (run_dir / "attempts.jsonl").read_text().splitlines()]
    assert len(attempts) == 3 and attempts[1]["step"] >= 12 and attempts[2]["step"] > attempts[1]["step"]
    assert run.resumed == 2


def test_hyperband_ends_a_trial_that_falls_behind_and_the_next_one_runs(wandb_server: WandbServer, site: Site) -> None:
    parts = {"good": (0.1, 6), "bad": (1e-8, 1000), "later": (0.2, 6)}
    for name, (lr, epochs) in parts.items():
        part = {"optim": {"lr": lr}, "train": {"epochs": epochs}}
        (site.folder / f"{name}.yaml").write_text(yaml.safe_dump(part))
    files = [str(site.folder / f"{name}.yaml") for name in parts]
    # One bracket, after two evaluations: a trial is judged there however far it is when its rows arrive.
    early = {"type": "hyperband", "max_iter": 6, "s": 1, "eta": 3}
    parameters = {"config": files, "optim.lr": [], "train.epochs": []}
    site.create("hyperband.yaml", parameters, method="grid", early_terminate=early)
    output = site.end(site.start())
    good, bad, later = trials(wandb_server)
    for run in (good, bad, later):
        assert_complete(run, site)
        assert run.resumed == 0
    assert (good.summary[STEP], later.summary[STEP]) == (24, 24)
    assert 12 <= bad.summary[STEP] < 4000 and bad.summary["val/ema_top1"] < good.summary["val/ema_top1"]
    assert f"trial {bad.id}: stopped by W&B" in output and site.requeues() == 0
    assert (site.runs / bad.id / "STOP").exists() and not (site.runs / bad.id / "REQUEUE").exists()
