"""slurm/sweep.sbatch on a real Slurm: an array element that is stopped in the middle of a trial."""

import re
from pathlib import Path

import pytest

from helpers.slurm_cluster import Cluster, attempts, slow_first_attempt

pytestmark = pytest.mark.usefixtures("nodes_are_up")

# Replaces `wandb agent`, which needs a server: gives out some trials, stops the second one early as Hyperband does,
# and then reports that there are no more. tests/wandb/test_sweep.py runs the real agent.
AGENT = """\
#!/bin/bash
[[ $* == "agent --count 1 --forward-signals me/tiny/abc" ]] || exit 9
export WANDB_SWEEP_ID=abc WANDB_RUN_ID=trial$(ls {folder}/given | wc -l)
[[ $WANDB_RUN_ID != trial{trials} ]] || exit 0
touch {folder}/given/$WANDB_RUN_ID
trial=(python -m tinyimnet.launch.trial --config {config} --run.seed=${{WANDB_RUN_ID#trial}} --train.epochs={epochs})
[[ $WANDB_RUN_ID == trial1 ]] || exec "${{trial[@]}}"
"${{trial[@]}}" &
until [[ -s {folder}/sweep-abc/trial1/metrics.jsonl ]]; do sleep 0.1; done
kill $!
wait
"""


def element(cluster: Cluster, config: str, folder: Path, *options: str, trials: int, epochs: int) -> str:
    """Submit an element of a sweep, whose first attempt is slow from step 40 on, and return its id."""
    (folder / "given").mkdir()
    agent = folder / "bin" / "wandb"
    agent.parent.mkdir()
    agent.write_text(AGENT.format(folder=folder, config=config, trials=trials, epochs=epochs))
    agent.chmod(0o755)
    array = cluster.sbatch(
        "--nodes=1", "--gpus-per-node=1", "--array=3", *options, "slurm/sweep.sbatch", "me/tiny/abc",
        log=folder / "log", RUNS_ROOT=str(folder),
        PATH=f"{agent.parent}:{cluster.environ['PATH']}", PYTHONPATH=slow_first_attempt(folder),
        VIRTUAL_ENV="active",  # otherwise .venv/bin, which has the real wandb, comes first
    )  # fmt: skip
    return f"{array}_3"


def test_a_requeued_element_resumes_its_trial_and_not_a_stopped_one(cluster, tiny_config, tmp_path) -> None:
    job = element(cluster, tiny_config, tmp_path, trials=3, epochs=30)
    trials = [tmp_path / "sweep-abc" / name for name in ("trial0", "trial1", "trial2")]
    cluster.until_step(trials[0], 40, job)
    cluster.ends_soon(job)
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", (tmp_path / "log").read_text()
    assert [len(attempts(trial)) for trial in trials] == [2, 1, 1]
    assert [(trial / "DONE").exists() for trial in trials] == [True, False, True]
    said = (tmp_path / "log").read_text()
    assert "trial0: stopped by SIGUSR1, checkpoint saved; requeued as attempt 2" in said
    assert "trial1: stopped by W&B; continuing with the next trial" in said and "no trial started" in said


def test_an_element_that_is_not_requeued_leaves_its_trial_to_a_successor(cluster, tiny_config, tmp_path) -> None:
    trial, log = tmp_path / "sweep-abc" / "trial0", tmp_path / "log"
    job = element(cluster, tiny_config, tmp_path, "--no-requeue", trials=1, epochs=8)
    cluster.until_step(trial, 40, job)
    cluster.run("scancel", "--signal=USR1", job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    found = re.search(
        r"trial0: stopped by SIGUSR1, checkpoint saved; continued by attempt 2, which is job (\w+_3)", log.read_text()
    )
    assert found, log.read_text()
    assert cluster.end(found[1]) == "COMPLETED", log.read_text()
    assert [attempt["job"] for attempt in attempts(trial)] == [job, found[1]]
    assert "trial0: finished; continuing with the next trial\nno trial started" in log.read_text()
