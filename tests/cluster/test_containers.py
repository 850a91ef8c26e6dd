"""CONTAINER in slurm/site.env on a real Slurm: trainings in bubblewrap, whose data is nowhere else."""

import json
import re
from pathlib import Path

import pytest

from helpers.slurm_cluster import ONE_RANK, SHORT, TRAIN, attempts, checkout, slow_first_attempt
from helpers.trainings import assert_same_end

pytestmark = pytest.mark.usefixtures("nodes_are_up")
DATA = "/mnt/data"  # only in the container, so a run that reads it is inside
# Own users, processes, mounts and /tmp, as in an unprivileged container; it can write only to the folders of the tests.
CONTAINER = """\
CONTAINER=(bwrap --unshare-user --unshare-pid --ro-bind / / --dev-bind /dev /dev --proc /proc
  --tmpfs /tmp --bind "{tests}" "{tests}" --tmpfs /mnt --ro-bind "{data}" {inside})
"""


@pytest.fixture
def container(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a site.env with a container that has the data in DATA."""
    assert not Path(DATA).exists()
    return CONTAINER.format(tests=tmp_path_factory.getbasetemp(), data=tiny_data, inside=DATA)


def test_preempted_in_a_container_it_saves_and_comes_to_the_same_end(
    cluster, tiny_config, container, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    (tmp_path / "site.env").write_text(container)
    job = cluster.sbatch("--partition=preempt", TRAIN, tiny_config, f"--run.dir={run}", f"--data.root={DATA}", log=log,
                         site_env=str(tmp_path / "site.env"), PYTHONPATH=slow_first_attempt(tmp_path))  # fmt: skip
    cluster.until_step(run, 40, job)
    cluster.take_all_nodes()
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert re.search("stopped by SIG(TERM|USR1): saved", log.read_text())
    assert "preempted; requeued as attempt 2" in log.read_text() and attempts(run)[1]["step"] >= 40
    assert_same_end(untouched, run)


def test_a_submission_by_submitit_trains_in_the_container(cluster, tiny_config, container, tmp_path) -> None:
    clone, run = checkout(tmp_path / "checkout", container), tmp_path / "run"
    cluster.run("env", "-C", str(clone), "python", "-m", "tinyimnet", "submit", "--config", tiny_config,
                "--profile=configs/cluster/cpu.yaml", f"--run.dir={run}", SHORT)  # fmt: skip
    sent = json.loads((run / "job.json").read_text())
    assert cluster.end(sent["job"]) == "COMPLETED", Path(sent["output"]).read_text(encoding="utf-8")
    assert (run / "DONE").exists()


# Replaces `wandb agent`, which needs a server: gives out one trial.
AGENT = """\
#!/bin/bash
export WANDB_SWEEP_ID=abc WANDB_RUN_ID=trial
mkdir {folder}/given || exit 0
exec python -m tinyimnet.launch.trial --config {config} {options}
"""


def test_the_trials_of_a_sweep_run_in_the_container(cluster, tiny_config, container, tmp_path) -> None:
    (tmp_path / "site.env").write_text(container)
    agent = tmp_path / "bin" / "wandb"
    agent.parent.mkdir()
    agent.write_text(AGENT.format(folder=tmp_path, config=tiny_config, options=f"--data.root={DATA} {SHORT}"))
    agent.chmod(0o755)
    job = cluster.sbatch(
        *ONE_RANK, "--array=0", "slurm/sweep.sbatch", "me/tiny/abc", log=tmp_path / "log", RUNS_ROOT=str(tmp_path),
        PATH=f"{agent.parent}:{cluster.environ['PATH']}", site_env=str(tmp_path / "site.env"), VIRTUAL_ENV="active",
    )  # fmt: skip
    assert cluster.end(f"{job}_0") == "COMPLETED", (tmp_path / "log").read_text()
    assert (tmp_path / "sweep-abc" / "trial" / "DONE").exists(), (tmp_path / "log").read_text()
