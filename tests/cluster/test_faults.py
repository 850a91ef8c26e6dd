"""Faults of a job on a real Slurm: time limits, preemption, lost nodes, scancel, failed and killed processes."""

import re

import pytest

from helpers.slurm_cluster import TRAIN, attempts, failing_rank
from helpers.trainings import assert_same_end, last_step
from tinyimnet.run import checkpoint

pytestmark = pytest.mark.usefixtures("nodes_are_up")


# ---- time limits -----------------------------------------------------------------------------------------------


def test_warned_of_its_time_limit_it_saves_and_is_requeued_to_the_same_end(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 40, job)
    cluster.ends_soon(job)
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert "stopped by SIGUSR1, checkpoint saved; requeued as attempt 2" in log.read_text()
    assert len(attempts(run)) == 2 and attempts(run)[1]["step"] >= 40
    assert_same_end(untouched, run)


def test_without_a_signal_it_stops_ahead_of_the_end_of_its_time(cluster, tiny_config, untouched, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # The run stops 20 s before its limit of 60 s. It has 40 s to start, which takes 7 s on an idle machine and 23 s on
    # a busy one. URG has no effect, and Slurm may send it a minute early.
    options = ["--run.stop_before_end=20", "--run.max_attempts=9"]
    job = cluster.sbatch_slow("--time=1", "--signal=URG@1", TRAIN, tiny_config, f"--run.dir={run}", *options, log=log)
    assert cluster.end(job, 400) == "COMPLETED", log.read_text()
    assert "stopped by the job's time limit, checkpoint saved; requeued as attempt 2" in log.read_text()
    assert_same_end(untouched, run)


def test_a_job_without_attempts_left_says_so_and_ends(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", "--run.max_attempts=1", log=log)
    cluster.until_step(run, 10, job)
    cluster.ends_soon(job)
    assert cluster.end(job) == "FAILED"
    assert "not requeued after attempt 1 (run.max_attempts is 1): submit it again to resume" in log.read_text()
    assert last_step(run) >= 10


def test_a_job_that_does_not_get_on_is_not_requeued(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", "--run.stop_before_end=999999", log=log)
    assert cluster.end(job) == "FAILED"
    assert "but attempt 1 completed no step; not requeued" in log.read_text()


def test_a_killed_slurmstepd_costs_an_attempt_and_the_end_is_the_same(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    """srun never hears of the end of the processes of that node."""
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", log=log, SLURM_WAIT="10")
    cluster.until_step(run, 10, job)
    # On its node: at the same time, the cluster of another worker may run a job with this number.
    cluster.control("exec", attempts(run)[0]["nodes"][0], "pkill", "-KILL", "-f", rf"\[{job}.0\]")
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert len(attempts(run)) == 2
    assert_same_end(untouched, run)


# ---- preemption and lost nodes ----------------------------------------------------------------------------------


@pytest.mark.versions
def test_preempted_it_saves_in_its_grace_time_and_comes_to_the_same_end(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow("--partition=preempt", TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 40, job)
    cluster.take_all_nodes()
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert re.search("stopped by SIG(TERM|USR1): saved", log.read_text())  # the job script turns TERM into USR1
    assert "preempted; requeued as attempt 2" in log.read_text()
    # The second attempt is not marked as preempted, so an error in it would not count as preemption.
    assert cluster.show(job).get("PreemptTime", "None") == "None"
    assert_same_end(untouched, run)


@pytest.mark.parametrize(
    "node, fault",
    [("n1", "node-kill"), ("n2", "node-kill"), ("n2", "net-down")],
    # In the second case, the processes on the other node notice the loss before Slurm does.
    ids=["power cut, first node", "power cut, second node", "cable pulled"],
)
def test_a_lost_node_is_replaced_and_the_end_is_the_same(
    cluster, tiny_config, untouched, tmp_path, node, fault
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 40, job)
    cluster.control(fault, node)
    assert cluster.end(job, 240) == "COMPLETED", log.read_text()
    first, second = attempts(run)
    assert first["nodes"] == ["n1", "n2"] and second["nodes"] == [n for n in ("n1", "n2", "n3") if n != node]
    assert second["step"] >= 20
    assert_same_end(untouched, run)


# ---- cancellation and errors -----------------------------------------------------------------------------------


def test_scancel_saves_and_the_job_stays_cancelled(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 10, job)
    cluster.run("scancel", job)
    assert cluster.end(job) == "CANCELLED"
    step = checkpoint.load_newest(run / "checkpoints")["step"]
    assert re.search(f"stopped by SIG(TERM|USR1): saved at step {step}", log.read_text())
    assert step >= 10 and len(attempts(run)) == 1


def test_a_rank_failing_before_any_save_ends_the_job_with_its_traceback(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    failing = failing_rank(tmp_path, 18, "raise ZeroDivisionError('on purpose')")
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", log=log, PYTHONPATH=failing)
    cluster.until_step(run, 16, job)
    assert cluster.end(job, 15) == "FAILED"
    assert "ZeroDivisionError: on purpose" in log.read_text()
    assert "ended with exit code" in log.read_text() and "not requeued" in log.read_text()
    assert len(attempts(run)) == 1


@pytest.mark.parametrize(
    "how", ["os.kill(os.getpid(), 9)", "raise ZeroDivisionError('on purpose')"], ids=["killed", "fails"]
)
def test_a_rank_lost_after_a_save_costs_an_attempt_and_the_end_is_the_same(
    cluster, tiny_config, untouched, tmp_path, how
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    failing = failing_rank(tmp_path, 58, how)
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", log=log, PYTHONPATH=failing)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    why = r"ended with exit code \d+, newest checkpoint at step [24]0; requeued as attempt 2"
    assert re.search(why, log.read_text())
    assert len(attempts(run)) == 2
    assert_same_end(untouched, run)
