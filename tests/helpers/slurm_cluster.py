"""A real Slurm of three nodes on this machine, for tests/cluster; needs root (make test-cluster)."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.program import REPO
from helpers.trainings import last_step, metrics
from tinyimnet.launch.submit import snapshot

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
NODES = ("n1", "n2", "n3")
TRAIN = "slurm/train.sbatch"
SHORT = "--train.epochs=2"  # 12 steps
SHAPE = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=1"]
ONE_RANK = ["--nodes=1", "--gpus-per-node=1"]
# 180 steps of a small network: 12 s on 2 nodes x 2 ranks, long enough to interrupt and resume.
CONFIG = """\
data: {{root: {root}, source: synthetic}}
model: {{block: basic, widths: [16, 16], depths: [1, 1], width: 1.0, drop_path: 0.2}}
augment: {{cutmix_probability: 0.5}}
optim: {{lr: 0.1, warmup_epochs: 1}}
train: {{epochs: 30, global_batch_size: 32, precision: fp32}}
run: {{log_every: 2, eval_every: 10, save_every: 20}}
"""

# sitecustomize.py that slows down the first attempt of a job from step 40 on, because Slurm checks time limits only
# every 30 s. It does not change the results.
SLOW_FIRST_ATTEMPT = f"""
import os, sys
if "SLURM_PROCID" in os.environ and not {{"SLURM_RESTART_COUNT", "PREDECESSORS"}} & os.environ.keys():
    sys.path.insert(0, {str(REPO)!r})
    import time
    from tinyimnet.training import optim
    decay_at = optim.ema_decay_at
    def slow(step, decay):
        if step >= 40:
            time.sleep(0.3)
        return decay_at(step, decay)
    optim.ema_decay_at = slow
"""


# A Python that, instead of training, saves the environment of its rank and ends.
PROBE = """\
#!/bin/bash
[[ $1 == train.py ]] || exec "{python}" "$@"
env >"{folder}/$SLURM_JOB_ID.$SLURM_PROCID"
{then}
"""


def probe(folder: Path, then: str = "") -> str:
    """Return a VIRTUAL_ENV for jobs whose ranks only save their environment, for `environments`, and then do `then`."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PROBE.format(python=sys.executable, folder=folder, then=then))
    python.chmod(0o755)
    return str(folder / "venv")


def environments(folder: Path, job: str) -> list[dict[str, str]]:
    """Return the environment of each rank of a job that ran with `probe`."""
    files = sorted(folder.glob(f"{job}.[0-9]*"), key=lambda file: int(file.suffix[1:]))
    return [dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line) for file in files]


def attempts(run: Path) -> list[dict]:
    """Return the attempts of a run: where each ran, and from which step."""
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


def slow_first_attempt(folder: Path) -> str:
    """Return a PYTHONPATH that slows down the first attempt of a job from step 40 on."""
    (folder / "slow").mkdir()
    (folder / "slow" / "sitecustomize.py").write_text(SLOW_FIRST_ATTEMPT)
    return str(folder / "slow")


def failing_rank(folder: Path, step: int, how: str) -> str:
    """Return a PYTHONPATH with which rank 3 fails after this many steps of its job's first attempt."""
    (folder / "sitecustomize.py").write_text(f"""
import os, sys
if os.environ.get("SLURM_PROCID") == "3" and "SLURM_RESTART_COUNT" not in os.environ:
    sys.path.insert(0, {str(REPO)!r})
    from tinyimnet.training import optim
    decay_at = optim.ema_decay_at
    def failing(step, decay):
        if step == {step}:
            {how}
        return decay_at(step, decay)
    optim.ema_decay_at = failing
""")
    return str(folder)


def checkout(folder: Path, site_env: str) -> Path:
    """Return a new git checkout of this repository with this text as slurm/site.env."""
    snapshot(REPO, folder)
    (folder / "slurm" / "site.env").write_text(site_env)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return folder


class Cluster:
    """Commands for the cluster, and waits for the state of its jobs.

    Attributes:
        environ: the environment of its users.
    """

    def __init__(self) -> None:
        self.script = REPO / "tests" / "cluster" / "cluster.sh"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # gw0, gw1: one cluster per worker
            number = int(os.environ.get("CLUSTER_NUMBER", "0")) + int(worker.removeprefix("gw"))
            self.environ["CLUSTER_NUMBER"] = str(number)

    def control(self, *command: str) -> str:
        """Run cluster.sh."""
        return self.run(str(self.script), *command)

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command in the repository as a user does, and return its stdout."""
        result = subprocess.run(
            command, cwd=REPO, env=self.environ | environment, capture_output=True, text=True, timeout=180
        )
        assert not check or result.returncode == 0, f"{command}: {result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result.stdout

    def sbatch(self, *arguments: str, log: Path, **environment: str) -> str:
        """Submit a job, by default on two nodes with two processes each, and return its id."""
        command = ["sbatch", "--parsable", *SHAPE, f"--output={log}", *arguments]
        return self.run(*command, **environment).strip()

    def sbatch_slow(self, *arguments: str, log: Path) -> str:
        """Submit a job whose first attempt is slow from step 40 on, and return its id."""
        return self.sbatch(*arguments, log=log, PYTHONPATH=slow_first_attempt(log.parent))

    def show(self, job: str) -> dict[str, str]:
        """Return what `scontrol show job` prints."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Poll until a condition is true; fail after a deadline."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            time.sleep(0.1)

    def until_step(self, run: Path, step: int, job: str, seconds: float = 180) -> None:
        """Wait until a job's run has logged this step."""

        def there() -> bool:
            assert self.show(job)["JobState"] not in ENDED, f"job {job} ended before step {step}"
            return any(line["trainer/global_step"] >= step for line in metrics(run))

        self.wait(there, seconds, f"step {step} of {run.name}")

    def end(self, job: str, seconds: float = 300) -> str:
        """Wait until a job has ended for good, and return its state."""

        def ended() -> bool:
            shown = self.show(job)
            return shown["JobState"] in ENDED and shown["Reason"] != "BeginTime"

        self.wait(ended, seconds, f"the end of job {job}")
        return self.show(job)["JobState"]

    def take_all_nodes(self) -> None:
        """Submit an urgent job of a few seconds, for which the jobs of the partition preempt make room."""
        options = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
        self.run("sbatch", *options, "--wrap=sleep 2")

    @contextmanager
    def mounted(self, node: str, *mount: str) -> Iterator[None]:
        """Mount something on one node only; the arguments are those of mount(8), with the mount point last."""
        self.control("exec", node, "mount", *mount)
        try:
            yield
        finally:
            self.control("exec", node, "umount", mount[-1])

    def ends_soon(self, job: str, seconds: int = 40) -> None:
        """Move the end of a job close; Slurm checks every 30 s, warns at one check and kills at another."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        self.run("scontrol", "update", f"JobId={job}", f"EndTime={end}")

    def until_requeued(self, job: str) -> None:
        """Wait until a job is requeued, and restore the time limit that `ends_soon` set for all its attempts."""
        self.wait(lambda: self.show(job)["Restarts"] == "1", 240, f"the requeue of job {job}")
        self.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster with nodes n1, n2 and n3."""
    found = Cluster()
    found.control("install")
    found.control("up", "3")
    found.environ |= dict(re.findall(r"export (\w+)='?([^'\n]*)", found.control("env")))
    yield found
    found.control("down")


@pytest.fixture
def nodes_are_up(cluster: Cluster) -> Iterator[None]:
    """After a test, cancel all jobs and bring all nodes back up."""
    yield
    cluster.run("scancel", "--user=root")
    for node in NODES:  # first, because a job does not end on a node that does not answer
        cluster.control("node-start", node)
        cluster.control("net-up", node)
    cluster.wait(lambda: not cluster.run("squeue", "--noheader"), 120, "the end of all jobs")
    cluster.wait(
        lambda: cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * 3,
        120,
        "idle nodes",
    )


@pytest.fixture(scope="session")
def tiny_config(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configuration file of the run that all tests share."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.format(root=tiny_data))
    return str(path)


@pytest.fixture(scope="session")
def untouched(cluster: Cluster, tiny_config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed job on two nodes with two processes each; its log is next to it."""
    folder = tmp_path_factory.mktemp("untouched")
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={folder}/run", log=folder / "log")
    assert cluster.end(job) == "COMPLETED", (folder / "log").read_text()
    assert last_step(folder / "run") == 180
    return folder / "run"
