"""Jobs of every shape on a real Slurm: whether each rank gets the job's GPUs, and what a job inherits or refuses."""

import re
import sys
from pathlib import Path

import pytest

from helpers.slurm_cluster import ONE_RANK, TRAIN, environments, failing_rank, probe

pytestmark = pytest.mark.usefixtures("nodes_are_up")


def submit(cluster, tmp_path: Path, *options: str, script: str = TRAIN, **environment: str) -> str:
    """Submit a job whose ranks only save their environment, and return its id; the log is tmp_path/JOB.log."""
    if "VIRTUAL_ENV" not in environment:
        environment["VIRTUAL_ENV"] = str(tmp_path / "venv") if (tmp_path / "venv").exists() else probe(tmp_path)
    command = ["sbatch", "--parsable", f"--output={tmp_path}/%j.log", *options, script, "configs/smoke.yaml"]
    return cluster.run(*command, f"--run.dir={tmp_path}/run", **environment).strip()


def log(tmp_path: Path, job: str) -> str:
    """Return the log of a job of `submit`."""
    return (tmp_path / f"{job}.log").read_text()


# ---- GPUs -------------------------------------------------------------------------------------------------------

WAYS = [
    "--gpus-per-node=2 --cpus-per-gpu=1",
    "--gres=gpu:2 --ntasks=2",
    "--ntasks=2 --gpus-per-task=1",
    "--gpus=2 --ntasks-per-gpu=1",
    "--gpus-per-node=2 --ntasks=2 --gpu-bind=single:1",
    "--gpus-per-node=2 --ntasks=2 --gpu-bind=none",
]


def test_beside_another_job_each_rank_sees_the_gpus_of_its_own(cluster, tmp_path) -> None:
    cluster.run("sbatch", "--nodelist=n1", "--gpus-per-node=2", "--output=/dev/null", "--wrap=sleep 300")
    jobs = {way: submit(cluster, tmp_path, "--nodes=1", "--nodelist=n1", *way.split()) for way in WAYS}
    assert [cluster.end(job) for job in jobs.values()] == ["COMPLETED"] * len(WAYS)
    seen = {way: [rank["CUDA_VISIBLE_DEVICES"] for rank in environments(tmp_path, job)] for way, job in jobs.items()}
    assert seen == {way: ["2,3", "2,3"] for way in WAYS}


def test_the_gpus_of_an_exclusive_node_reach_its_ranks(cluster, tmp_path) -> None:
    job = submit(cluster, tmp_path, "--nodes=1", "--exclusive")
    assert cluster.end(job) == "COMPLETED"
    assert [rank.get("CUDA_VISIBLE_DEVICES") for rank in environments(tmp_path, job)] == ["0,1,2,3"] * 4


def test_gpus_that_torch_does_not_see_are_named(cluster, tiny_config, tmp_path) -> None:
    job = cluster.sbatch(*ONE_RANK, TRAIN, tiny_config, f"--run.dir={tmp_path}/run", "--train.epochs=1",
                         log=tmp_path / "log")  # fmt: skip
    assert cluster.end(job) == "COMPLETED"
    assert "torch sees no GPU on node n1, where the job has 1" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "shape, sentence",
    [
        ("--nodes=2 --gpus=4", "uneven allocation (3,1); use --gpus-per-node"),
        ("--nodes=2 --gpus=4 --cpus-per-gpu=2", "uneven allocation (3,1); use --gpus-per-node"),
        ("--nodes=2 --ntasks=3", "uneven allocation (2,1); use --ntasks-per-node"),
        ("--nodes=2 --gpus-per-node=2", "a node of this job has 1 CPUs for 2 processes; use --cpus-per-gpu"),
    ],
)
def test_a_shape_that_would_leave_a_part_idle_is_refused(cluster, tmp_path, shape, sentence) -> None:
    job = submit(cluster, tmp_path, *shape.split())
    assert cluster.end(job) == "FAILED"
    assert f"error: {sentence}" in log(tmp_path, job) and "exit code 2; not requeued" in log(tmp_path, job)
    assert not environments(tmp_path, job)


# ---- inside another job -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outer",
    [
        "--nodes=1 --ntasks-per-node=3 --cpus-per-task=2 --gpus-per-node=1 --mem-per-gpu=100",
        "--nodes=1 --gpus=1 --cpus-per-gpu=3",
        "--nodes=1 --gpus-per-socket=1 --sockets-per-node=1 --ntasks-per-socket=1",
        "--ntasks=3 --gpus-per-task=1",
        "--nodes=1 --gpus=3 --ntasks-per-gpu=1 --distribution=cyclic",
    ],
)
def test_a_job_submitted_within_salloc_has_its_own_shape(cluster, tmp_path, outer) -> None:
    inner = ["sbatch", "--parsable", f"--output={tmp_path}/%j.log", "--nodes=2"]
    for own in ("--gpus-per-node=2 --cpus-per-gpu=1", "--ntasks=4 --ntasks-per-node=2", "--cpus-per-task=2"):
        environment = {"VIRTUAL_ENV": probe(tmp_path / own), "SLURM_TRES_PER_TASK": "gres:gpu:1"}
        command = ["salloc", "--quiet", *outer.split(), *inner, *own.split(), TRAIN, "configs/smoke.yaml"]
        job = cluster.run(*command, **environment).strip()
        assert cluster.end(job) == "COMPLETED", log(tmp_path, job)
        nodes = [rank["SLURMD_NODENAME"] for rank in environments(tmp_path / own, job)]
        assert nodes == (["n1", "n2"] if own == "--cpus-per-task=2" else ["n1", "n1", "n2", "n2"]), own


# ---- signals and requeues -----------------------------------------------------------------------------------------


def test_a_warning_to_the_batch_shell_stops_the_run_and_requeues_it(cluster, tiny_config, tmp_path) -> None:
    run, out = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(*ONE_RANK, "--signal=B:USR1@60", TRAIN, tiny_config, f"--run.dir={run}", log=out)
    cluster.until_step(run, 2, job)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    cluster.until_requeued(job)
    assert "stopped by SIGUSR1, checkpoint saved; requeued as attempt 2" in out.read_text()


@pytest.mark.parametrize("signal", ["USR2", "TERM", "HUP"])
def test_whatever_signal_the_batch_shell_gets_the_run_gets_usr1(cluster, tmp_path, signal) -> None:
    wait = f"""exec {sys.executable} -c '
import pathlib, signal
signal.signal(signal.SIGUSR1, lambda *_: exit(print("got USR1")))
pathlib.Path("{tmp_path}/ready").touch()
signal.pause()'"""
    job = submit(cluster, tmp_path, f"--signal=B:{signal}@60", VIRTUAL_ENV=probe(tmp_path, wait))
    cluster.wait((tmp_path / "ready").exists, 120, "the start")
    cluster.run("scancel", "--batch", f"--signal={signal}", job)
    assert cluster.end(job) == "COMPLETED"
    assert "got USR1" in log(tmp_path, job) and "stopped by the user; not requeued" in log(tmp_path, job)


def test_the_end_of_the_job_is_known_with_any_format_of_times(cluster, tmp_path) -> None:
    job = submit(cluster, tmp_path, "--time=30", SLURM_TIME_FORMAT="relative")
    assert cluster.end(job) == "COMPLETED" and "invalid date" not in log(tmp_path, job)
    (rank,) = environments(tmp_path, job)
    assert re.fullmatch(r"\d{10}", rank["SLURM_JOB_END_TIME"])


# ---- errors -------------------------------------------------------------------------------------------------------


def test_an_error_on_one_node_ends_the_job_with_code_2_and_names_the_rank(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "config").mkdir()
    config = tmp_path / "config" / "tiny.yaml"
    config.write_text(Path(tiny_config).read_text(encoding="utf-8"))
    with cluster.mounted("n2", "-t", "tmpfs", "none", str(config.parent)):
        job = cluster.sbatch(TRAIN, str(config), f"--run.dir={tmp_path}/run", log=tmp_path / "log")
        assert cluster.end(job) == "FAILED"
    assert re.search(r"error \(rank 2\): .*tiny.yaml", (tmp_path / "log").read_text())
    assert cluster.show(job)["ExitCode"] == "2:0"


def test_a_rank_that_fails_calls_itself_by_its_number(cluster, tiny_config, tmp_path) -> None:
    failing = failing_rank(tmp_path, 2, "raise ZeroDivisionError('on purpose')")
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={tmp_path}/run", log=tmp_path / "log", PYTHONPATH=failing)
    assert cluster.end(job) == "FAILED"
    written = (tmp_path / "log").read_text()
    assert "rank 3 failed" in written and "rank 0 failed" not in written


@pytest.mark.parametrize("option", ["--run.dir=x", "--run.seed=7"])
def test_an_array_refuses_what_its_elements_cannot_share(cluster, tmp_path, option) -> None:
    job = cluster.run(
        "sbatch",
        "--parsable",
        "--array=0",
        f"--output={tmp_path}/log",
        "slurm/array.sbatch",
        "configs/smoke.yaml",
        option,
    ).strip()
    assert cluster.end(f"{job}_0") == "FAILED"
    assert f"error: {option.split('=')[0]} is the same for all elements" in (tmp_path / "log").read_text()
