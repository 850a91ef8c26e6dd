"""slurm/sweep.sbatch on a real Slurm: an array element that is requeued in the middle of a trial."""

import pytest

from helpers.slurm_cluster import attempts, slow_first_attempt

pytestmark = pytest.mark.usefixtures("nodes_are_up")

# Replaces `wandb agent`, which needs a server: gives out three trials, stops the second one early as Hyperband does,
# and then reports that there are no more. tests/wandb/test_sweep.py runs the real agent.
AGENT = """\
#!/bin/bash
[[ $* == "agent --count 1 --forward-signals me/tiny/abc" ]] || exit 9
export WANDB_SWEEP_ID=abc WANDB_RUN_ID=trial$(ls {folder}/given | wc -l)
[[ $WANDB_RUN_ID != trial3 ]] || exit 0
touch {folder}/given/$WANDB_RUN_ID
trial=(python -m tinyimnet.launch.trial --config {config} --run.seed=${{WANDB_RUN_ID#trial}})
[[ $WANDB_RUN_ID == trial1 ]] || exec "${{trial[@]}}"
"${{trial[@]}}" &
until [[ -s {folder}/sweep-abc/trial1/metrics.jsonl ]]; do sleep 0.1; done
kill $!
wait
"""


def test_a_requeued_element_resumes_its_trial_and_not_a_stopped_one(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "given").mkdir()
    agent = tmp_path / "bin" / "wandb"
    agent.parent.mkdir()
    agent.write_text(AGENT.format(folder=tmp_path, config=tiny_config))
    agent.chmod(0o755)
    job = cluster.sbatch(
        "--nodes=1", "--gpus-per-node=1", "--array=3", "slurm/sweep.sbatch", "me/tiny/abc",
        log=tmp_path / "log", RUNS_ROOT=str(tmp_path),
        PATH=f"{agent.parent}:{cluster.environ['PATH']}", PYTHONPATH=slow_first_attempt(tmp_path),
        VIRTUAL_ENV="active",  # otherwise .venv/bin, which has the real wandb, comes first
    )  # fmt: skip
    job += "_3"
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
