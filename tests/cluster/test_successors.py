"""Jobs that a real Slurm does not requeue (--no-requeue): each submits its successor, in the cases of a requeue."""

import json
import re
from pathlib import Path

import pytest

from helpers.slurm_cluster import ONE_RANK, SHORT, TRAIN, attempts, slow_first_attempt
from helpers.trainings import assert_same_end

pytestmark = pytest.mark.usefixtures("nodes_are_up")


def successor(log: Path) -> str:
    """Return the job that the first job of this log submitted."""
    text = log.read_text(encoding="utf-8")
    found = re.search(r"checkpoint saved; continued by attempt 2, which is job (\w+)", text)
    assert found, text
    return found[1]


def test_stopped_by_its_time_limit_its_successor_comes_to_the_same_end(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow("--no-requeue", TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 40, job)
    assert f"job {job} cannot be requeued" in log.read_text() and "then submits its successor" in log.read_text()
    cluster.ends_soon(job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert cluster.end(successor(log)) == "COMPLETED", log.read_text()
    assert [attempt["job"] for attempt in attempts(run)] == [job, successor(log)]
    assert_same_end(untouched, run)


def test_an_element_of_an_array_submits_itself_again_with_its_arguments(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "my runs" / "tiny-seed3", tmp_path / "log_3"
    array = cluster.sbatch(
        *ONE_RANK, "--no-requeue", "--array=3", "slurm/array.sbatch", tiny_config, "--train.epochs=8", "--model.widths",
        "[16, 32]", log=tmp_path / "log_%a", RUNS_ROOT=str(run.parent), PYTHONPATH=slow_first_attempt(tmp_path),
    )  # fmt: skip
    cluster.until_step(run, 40, f"{array}_3")
    cluster.run("scancel", "--signal=USR1", f"{array}_3")
    assert cluster.end(f"{array}_3") == "COMPLETED", log.read_text()
    assert cluster.end(successor(log)) == "COMPLETED", log.read_text()
    assert [attempt["job"] for attempt in attempts(run)] == [f"{array}_3", successor(log)]
    assert successor(log).endswith("_3") and (run / "DONE").exists() and "- 32" in (run / "config.yaml").read_text()


def submit(cluster, config: str, run: Path, *options: str) -> None:
    """Send a short run with `tinyimnet submit`; its first attempt is slow from step 40 of 48 on."""
    profile = run.parent / "profile.yaml"
    profile.write_text("{gpus_per_node: 1, cpus_per_task: 1, timeout: 30, sbatch: {partition: main}}\n")
    command = ["submit", "--config", config, "--profile", str(profile), f"--run.dir={run}", "--train.epochs=8"]
    cluster.run("python", "-m", "tinyimnet", *command, *options, SBATCH_NO_REQUEUE="1",
                PYTHONPATH=slow_first_attempt(run.parent))  # fmt: skip


def sent(run: Path) -> tuple[str, Path]:
    """Return the newest job of a run, and its log."""
    record = json.loads((run / "job.json").read_text())
    return record["job"], Path(record["output"])


def test_a_job_of_submit_submits_itself_again_with_its_pickle(cluster, tiny_config, tmp_path) -> None:
    run = tmp_path / "my runs" / "run"
    run.parent.mkdir()
    submit(cluster, tiny_config, run)
    job, log = sent(run)
    cluster.until_step(run, 40, job)
    assert f"job {job} cannot be requeued" in log.read_text() and "then submits its successor" in log.read_text()
    cluster.run("scancel", "--signal=USR2", job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert sent(run)[0] == successor(log)
    assert cluster.end(successor(log)) == "COMPLETED", sent(run)[1].read_text()
    assert [attempt["job"] for attempt in attempts(run)] == [job, successor(log)]
    assert f"[slurm] job {successor(log)}: finished in attempt 2" in cluster.run(
        "python", "-m", "tinyimnet", "logs", str(run)
    )


def test_an_element_of_submit_submits_itself_alone(cluster, tiny_config, tmp_path) -> None:
    submit(cluster, tiny_config, tmp_path / "run", "--seeds=5-6")
    first, second = (tmp_path / f"run-seed{seed}" for seed in (5, 6))
    (waiting, _), (job, log) = sent(first), sent(second)
    cluster.run("scancel", waiting)
    cluster.until_step(second, 40, job)
    cluster.run("scancel", "--signal=USR2", job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert successor(log).endswith("_1") and sent(second)[0] == successor(log)
    assert cluster.end(successor(log)) == "COMPLETED", sent(second)[1].read_text()
    assert [attempt["job"] for attempt in attempts(second)] == [job, successor(log)]
    assert (second / "DONE").exists() and not (first / "DONE").exists()


def test_a_successor_that_waits_is_a_job_of_its_run_for_status_and_cancel(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    all_cpus = ["--nodelist=n1", "--cpus-per-gpu=16", "--no-requeue"]
    job = cluster.sbatch(*ONE_RANK, *all_cpus, TRAIN, tiny_config, f"--run.dir={run}", log=log,
                         PYTHONPATH=slow_first_attempt(tmp_path))  # fmt: skip
    cluster.until_step(run, 2, job)
    next_in_line = ["--nodelist=n1", "--cpus-per-task=16", "--nice=-100", "--output=/dev/null", "--wrap=sleep 300"]
    cluster.run("sbatch", *next_in_line)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.end(job)
    table = cluster.run("python", "-m", "tinyimnet", "status", str(tmp_path), COLUMNS="160")
    assert re.search("run .* pending", table), table
    cluster.run("python", "-m", "tinyimnet", "cancel", str(run))
    assert cluster.end(successor(log)) == "CANCELLED"


@pytest.mark.parametrize(
    ("option", "cancelled", "said"),
    [
        (SHORT, False, "finished in attempt 1"),
        ("--run.seed=1", True, "; not requeued"),
        ("--run.stop_before_end=999999", False, "but attempt 1 completed no step; not requeued"),
    ],
    ids=["finished", "cancelled", "without a step"],
)
def test_a_job_whose_run_is_not_to_go_on_has_no_successor(
    cluster, tiny_config, tmp_path, option, cancelled, said
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch(*ONE_RANK, "--no-requeue", TRAIN, tiny_config, f"--run.dir={run}", option, log=log,
                         PYTHONPATH=slow_first_attempt(tmp_path))  # fmt: skip
    if cancelled:
        cluster.until_step(run, 2, job)
        cluster.run("scancel", job)
    cluster.end(job)
    cluster.wait(lambda: said in log.read_text(), 120, said)
    assert not cluster.run("squeue", "--noheader", "--states=pending,running")
