"""tinyimnet submit, status, logs, cancel and seeds on a real Slurm."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.program import REPO
from helpers.slurm_cluster import attempts, failing_rank, slow_first_attempt
from helpers.trainings import assert_same_end, last_step

pytestmark = pytest.mark.usefixtures("nodes_are_up")
PROFILE = "{nodes: 2, gpus_per_node: 2, cpus_per_task: 1, timeout: 30, signal_delay: 30, sbatch: {partition: %s}}\n"


def submit(cluster, config: str, run: Path, *options: str, partition: str = "main", **environment: str) -> str:
    """Submit a run as a user does, and return the job id."""
    profile = run.parent / "profile.yaml"
    profile.write_text(PROFILE % partition)
    cluster.run("python", "-m", "tinyimnet", "submit", "--config", config, "--profile", str(profile),
                f"--run.dir={run}", *options, **environment)  # fmt: skip
    return json.loads((run / "job.json").read_text())["job"]


def submit_slow(cluster, config: str, run: Path, **options: str) -> str:
    return submit(cluster, config, run, PYTHONPATH=slow_first_attempt(run.parent), **options)


def output(run: Path) -> str:
    return Path(json.loads((run / "job.json").read_text())["output"]).read_text(encoding="utf-8")


@pytest.mark.versions
def test_a_job_trains_with_the_code_of_its_submission(cluster, tiny_config, untouched, tmp_path) -> None:
    broken, trainer = tmp_path / "trainer.py", REPO / "tinyimnet" / "training" / "trainer.py"
    broken.write_text("raise SystemExit('edited after the submission')\n")
    bind = ("--bind", str(broken), str(trainer))
    with cluster.mounted("n1", *bind), cluster.mounted("n2", *bind):
        job = submit(cluster, tiny_config, tmp_path / "run", SBATCH_TIMELIMIT="5")
        assert cluster.show(job)["TimeLimit"] == "00:30:00"  # the profile's
        assert cluster.end(job) == "COMPLETED", output(tmp_path / "run")
    assert_same_end(untouched, tmp_path / "run")
    (code,) = (tmp_path / "run").glob("submit-*/code")
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    tracked = [name for name in listed.splitlines() if (REPO / name).exists()]
    files = {
        str(path.relative_to(code)) for path in code.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == {*tracked, "COMMIT", "UNCOMMITTED.diff"}


def test_warned_of_its_time_limit_it_is_requeued_to_the_same_end(cluster, tiny_config, untouched, tmp_path) -> None:
    run = tmp_path / "run"
    job = submit_slow(cluster, tiny_config, run)
    cluster.until_step(run, 40, job)
    cluster.ends_soon(job)
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", output(run)
    assert "stopped by SIGUSR2, checkpoint saved; requeued as attempt 2" in output(run)
    assert_same_end(untouched, run)


def test_preempted_it_saves_and_comes_back_to_the_same_end(cluster, tiny_config, untouched, tmp_path) -> None:
    run = tmp_path / "run"
    job = submit_slow(cluster, tiny_config, run, partition="preempt")
    cluster.until_step(run, 40, job)
    cluster.take_all_nodes()
    assert cluster.end(job) == "COMPLETED", output(run)
    assert "stopped by SIGTERM: saved" in output(run) and "preempted; requeued as attempt 2" in output(run)
    assert_same_end(untouched, run)


def test_after_a_lost_node_it_goes_on_elsewhere_to_the_same_end(cluster, tiny_config, untouched, tmp_path) -> None:
    run = tmp_path / "run"
    job = submit_slow(cluster, tiny_config, run)
    cluster.until_step(run, 40, job)
    cluster.control("node-kill", "n2")
    assert cluster.end(job, 240) == "COMPLETED", output(run)
    assert [attempt["nodes"] for attempt in attempts(run)] == [["n1", "n2"], ["n1", "n3"]]
    assert_same_end(untouched, run)


def test_after_a_killed_process_it_resumes_bit_identically(cluster, tiny_config, untouched, tmp_path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, tiny_config, run, PYTHONPATH=failing_rank(tmp_path, 58, "os.kill(os.getpid(), 9)"))
    assert cluster.end(job) == "COMPLETED", output(run)
    assert len(attempts(run)) == 2
    assert_same_end(untouched, run)


def test_status_shows_a_run_and_cancel_ends_it_saved(cluster, tiny_config, tmp_path) -> None:
    run = tmp_path / "run"
    job = submit_slow(cluster, tiny_config, run)
    cluster.until_step(run, 42, job)
    table = cluster.run("python", "-m", "tinyimnet", "status", str(tmp_path), COLUMNS="160")
    assert re.search(r"run .* running .* n\[1-2\] .* 1 .* 4\d / 180 \(2\d %\)", table), table
    assert "step 42/180" in cluster.run("python", "-m", "tinyimnet", "logs", str(run))
    cluster.run("python", "-m", "tinyimnet", "cancel", str(run))
    assert cluster.end(job) == "CANCELLED"
    assert f"stopped by SIGTERM: saved at step {last_step(run)}" in output(run)
    assert last_step(run) >= 42 and len(attempts(run)) == 1
    table = cluster.run("python", "-m", "tinyimnet", "status", str(tmp_path), COLUMNS="160")
    assert re.search(r"run .* stopped .*\(cancelled\)", table), table  # as the run itself called it


def test_cancel_ends_both_jobs_of_a_run_that_was_submitted_twice(cluster, tiny_config, tmp_path) -> None:
    held = [submit(cluster, tiny_config, tmp_path / "run", partition="main, hold: true") for _ in range(2)]
    assert [cluster.show(job)["JobState"] for job in held] == ["PENDING", "PENDING"]
    cluster.run("python", "-m", "tinyimnet", "cancel", str(tmp_path / "run"))
    assert [cluster.end(job) for job in held] == ["CANCELLED", "CANCELLED"]


def test_an_array_that_is_cancelled_before_it_starts_is_cancelled(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "profile.yaml").write_text("{sbatch: {partition: main, hold: true}}\n")
    cluster.run("python", "-m", "tinyimnet", "submit", "--config", tiny_config, "--profile",
                str(tmp_path / "profile.yaml"), f"--run.dir={tmp_path}/runs/a", "--seeds=0-2")  # fmt: skip
    runs = sorted(path for path in (tmp_path / "runs").iterdir() if "seed" in path.name)
    cluster.run("python", "-m", "tinyimnet", "cancel", *map(str, runs))

    def table() -> str:
        return cluster.run("python", "-m", "tinyimnet", "status", str(tmp_path / "runs"), COLUMNS="160")

    cluster.wait(lambda: table().count("cancelled") == 3, 120, "accounting of the cancelled array")


def test_more_runs_than_an_array_may_have_are_two_arrays(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "profile.yaml").write_text("{sbatch: {partition: main, hold: true}}\n")
    done = subprocess.run(
        ["python", "-m", "tinyimnet", "submit", "--config", tiny_config, "--profile", str(tmp_path / "profile.yaml"),
         f"--run.dir={tmp_path}/runs/a", "--seeds=0-6"],
        cwd=REPO, env=cluster.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert "7 runs in 2 arrays, because MaxArraySize of this cluster is 5; of each array 8 run" in done.stderr
    jobs = [json.loads((tmp_path / f"runs/a-seed{seed}/job.json").read_text())["job"] for seed in range(7)]
    first, second = jobs[0].removesuffix("_0"), jobs[5].removesuffix("_0")
    assert jobs == [f"{first}_{i}" for i in range(5)] + [f"{second}_{i}" for i in range(2)]
    waiting = cluster.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    assert sorted(waiting) == sorted(f"{job} PENDING" for job in jobs)


def test_a_run_in_an_allocation_is_stopped_without_the_allocation(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", (tmp_path / "log").open("w")
    command = f"python train.py --config {tiny_config} --run.dir={run}; sleep 600"
    salloc = ["salloc", "--partition=main", "--nodes=1", "srun", "--ntasks=1", "bash", "-c", command]
    process = subprocess.Popen(salloc, cwd=REPO, env=cluster.environ, stdout=log, stderr=log)
    try:
        cluster.wait(lambda: (run / "metrics.jsonl").exists() and last_step(run) >= 4, 120, "the first steps")
        (job,) = {attempt["job"] for attempt in attempts(run)}
        assert "created the file STOP" in cluster.run("python", "-m", "tinyimnet", "cancel", str(run))
        cluster.wait(lambda: "stopped by a STOP file" in (tmp_path / "log").read_text(), 120, "the stop")
        assert cluster.show(job)["JobState"] == "RUNNING"
        table = cluster.run("python", "-m", "tinyimnet", "status", str(tmp_path), COLUMNS="160")
        assert re.search(r"run .* stopped", table), table
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("profile", "options", "reason"),
    [
        ("partition: nope", [], "invalid partition specified: nope"),
        ("partition: main, tme: 3", [], "unrecognized option '--tme=3'"),
        ("partition: main, gres: 'gpu:99'", ["--seeds=0-1"], "Requested node configuration is not available"),
        ("partition: main, array: 0-99999999", [], "Invalid job array specification"),
        ("partition: main, time: soon", [], "Invalid --time specification"),
    ],
)
def test_a_job_that_slurm_refuses_is_one_sentence(profile, options, reason, cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "profile.yaml").write_text(f"{{sbatch: {{{profile}}}}}\n")
    done = subprocess.run(
        ["python", "-m", "tinyimnet", "submit", "--config", tiny_config, "--profile", str(tmp_path / "profile.yaml"),
         f"--run.dir={tmp_path}/runs/a", *options],
        cwd=REPO, env=cluster.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: nothing was submitted, because sbatch failed \(.*{reason}.*\); .*\.\n", done.stderr)
    assert not (tmp_path / "runs").exists()


def test_an_array_over_seeds_and_its_summary(cluster, tiny_config, tmp_path) -> None:
    run = tmp_path / "run"
    (tmp_path / "profile.yaml").write_text("{gpus_per_node: 1, cpus_per_task: 1, timeout: 30}\n")
    cluster.run(
        "python", "-m", "tinyimnet", "submit", "--config", tiny_config, "--profile", str(tmp_path / "profile.yaml"),
        f"--run.dir={run}", "--seeds=0-1", "--train.epochs=2", "--parallel=1",
    )  # fmt: skip
    runs = [tmp_path / f"run-seed{seed}" for seed in (0, 1)]
    jobs = [json.loads((path / "job.json").read_text())["job"] for path in runs]
    assert jobs[0].removesuffix("_0") == jobs[1].removesuffix("_1")
    assert [cluster.end(job) for job in jobs] == ["COMPLETED", "COMPLETED"]
    seeds = ["python", "-m", "tinyimnet", "seeds", *map(str, runs), f"--out={tmp_path}/summary.md"]
    table = cluster.run(*seeds, COLUMNS="160")
    values = [json.loads((path / "DONE").read_text())["val/ema_top1"] for path in runs]
    assert f"{sum(values) / 2:.2f}" in table and f"{sum(values) / 2:.2f}" in (tmp_path / "summary.md").read_text()


def test_an_error_fails_the_job_with_its_message_in_the_log(cluster, tiny_config, tmp_path) -> None:
    nowhere = tmp_path / "nowhere"
    # Tiny ImageNet is downloaded only into a folder of its own name.
    tree = yaml.safe_load(Path(tiny_config).read_text(encoding="utf-8"))
    tree["data"] = {"root": str(nowhere), "source": "tiny-imagenet"}
    (tmp_path / "nowhere.yaml").write_text(yaml.safe_dump(tree))
    job = submit(cluster, str(tmp_path / "nowhere.yaml"), tmp_path / "run")
    assert cluster.end(job, 60) == "FAILED"
    assert f"UserError: node n1: data.root {nowhere} holds no prepared data set; run " in output(tmp_path / "run")
