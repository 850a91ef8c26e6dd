"""slurm/train.sbatch and slurm/array.sbatch on a real Slurm: two nodes with two processes each, and a spare node."""

import json
import re
from pathlib import Path

import pytest

from helpers.program import REPO
from helpers.slurm_cluster import SHORT, TRAIN, attempts, checkout, slow_first_attempt
from helpers.trainings import assert_same_end, last_step

pytestmark = pytest.mark.usefixtures("nodes_are_up")


def test_a_job_trains_on_all_its_nodes_to_the_end(untouched: Path) -> None:
    log = (untouched.parent / "log").read_text()
    assert "attempt 1, nodes n[1-2], 2 processes per node" in log
    assert "preflight: 4 processes on n1, n2: same code, versions and run folder" in log
    assert "finished in attempt 1" in log
    assert [(attempt["nodes"], attempt["processes"]) for attempt in attempts(untouched)] == [(["n1", "n2"], 4)]


def test_a_finished_run_submitted_again_on_two_nodes_ends_well(cluster, tiny_config, untouched, tmp_path) -> None:
    for i in range(10):  # the order in which the processes end varies
        log = tmp_path / f"log{i}"
        job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={untouched}", log=log)
        assert cluster.end(job) == "COMPLETED", log.read_text()
        assert "is finished" in log.read_text() and "gone" not in log.read_text()
    command = ["srun", "-N2", "--ntasks-per-node=2", "--cpus-per-task=1", "python", "train.py"]
    assert "is finished" in cluster.run(*command, "--config", tiny_config, f"--run.dir={untouched}")


def test_overrides_keep_their_spaces_and_quotes_and_no_secret_is_written(cluster, tiny_config, tmp_path) -> None:
    run, secret = tmp_path / 'a run\'s "folder" $(id) *', "0123456789abcdef" * 5 + "secret"
    job = cluster.sbatch(
        TRAIN, tiny_config, f"--run.dir={run}", "--model.widths", "[16, 32]", SHORT, "--data.stage=/dev/shm",
        log=tmp_path / "log", WANDB_MODE="offline", WANDB_API_KEY=secret,
    )  # fmt: skip
    assert cluster.end(job) == "COMPLETED", (tmp_path / "log").read_text()
    assert (run / "DONE").exists()
    assert "- 32" in (run / "config.yaml").read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".wandb", ".log", ".yaml", ".pt"} <= {path.suffix for path in written}
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert not cluster.control("exec", "n1", "ls", "/dev/shm").strip()  # no staged data is left


def test_accelerate_launch_as_in_docs_slurm_resumes_bit_identically(cluster, tiny_config, untouched, tmp_path) -> None:
    script = re.search(
        r"```bash\n(#!/bin/bash\n.*?accelerate launch.*?)```", (REPO / "docs/slurm.md").read_text(), re.S
    )
    assert script
    (tmp_path / "job.sbatch").write_text(script[1].replace("configs/tiny1m.yaml", tiny_config))
    run, log = tmp_path / Path(tiny_config).stem, tmp_path / "log"
    job = cluster.sbatch(
        str(tmp_path / "job.sbatch"), log=log, ACCELERATE_USE_CPU="true", RUNS_ROOT=str(tmp_path),
        PYTHONPATH=slow_first_attempt(tmp_path),
    )  # fmt: skip
    cluster.until_step(run, 40, job)
    cluster.run("scancel", "--signal=USR1", job)  # as Slurm does before the time limit
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert "checkpoint saved; requeued as attempt 2" in log.read_text()
    assert_same_end(untouched, run)


# sitecustomize.py that records which GPUs each process of a job sees.
WHICH_GPUS = """
import os
if "SLURM_STEP_ID" in os.environ:
    with open(f"{folder}/gpus-{{os.environ['SLURM_JOB_ID']}}-{{os.environ['SLURM_PROCID']}}", "w") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
"""


def record_gpus(folder: Path) -> str:
    """Return a PYTHONPATH with which each process of a job records the GPUs that it sees."""
    (folder / "sitecustomize.py").write_text(WHICH_GPUS.format(folder=folder))
    return str(folder)


def seen_gpus(folder: Path, job: str) -> list[str]:
    """Return the GPUs that each process of a job saw, by rank."""
    return [path.read_text() for path in sorted(folder.glob(f"gpus-{job}-*"))]


@pytest.mark.versions
def test_it_trains_with_gpus_per_task_and_within_another_job(cluster, tiny_config, tmp_path) -> None:
    inherited = {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x00000001",
        "SLURM_MEM_PER_CPU": "10",
        "SLURM_ARRAY_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_RESTART_COUNT": "3",
        "SLURM_MEM_PER_NODE": "10",
    }
    job = cluster.run(
        "sbatch", "--parsable", "--ntasks=4", "--ntasks-per-node=2", "--gpus-per-task=1", f"--output={tmp_path}/log",
        TRAIN, tiny_config, f"--run.dir={tmp_path}/run", SHORT, PYTHONPATH=record_gpus(tmp_path), **inherited,
    ).strip()  # fmt: skip
    assert cluster.end(job) == "COMPLETED", (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert f"job {job}, attempt 1, " in log and "2 processes per node" in log and "finished in attempt 1" in log
    assert seen_gpus(tmp_path, job) == ["0,1"] * 4  # a process takes the one with its local rank


@pytest.mark.versions
def test_two_jobs_on_one_node_see_the_gpus_of_their_own(cluster, tiny_config, tmp_path) -> None:
    recording = record_gpus(tmp_path)
    jobs = [
        cluster.run(
            "sbatch", "--parsable", "--nodelist=n1", "--gpus-per-node=2", "--cpus-per-gpu=1",
            f"--output={tmp_path}/log{i}", TRAIN, tiny_config, f"--run.dir={tmp_path}/run{i}", SHORT,
            PYTHONPATH=recording,
        ).strip()
        for i in range(2)
    ]  # fmt: skip
    assert [cluster.end(job) for job in jobs] == ["COMPLETED"] * 2, (tmp_path / "log0").read_text()
    assert sorted(seen_gpus(tmp_path, job) for job in jobs) == [["0,1", "0,1"], ["2,3", "2,3"]]


# A site.env that passes the job's arguments on, as sourcing conda's bin/activate does, and then replaces them.
SITE = """\
activate() { [[ $# == 0 ]] || { echo "no environment $1"; return 1; }; }
activate "$@"
set -- dropped
export RUNS_ROOT=%s
"""


@pytest.mark.parametrize("way", ["sbatch", "submitit"])
def test_a_site_env_that_changes_its_arguments_leaves_those_of_the_job(cluster, tiny_config, tmp_path, way) -> None:
    clone, run, log = checkout(tmp_path / "checkout", SITE % tmp_path), tmp_path / "run", tmp_path / "log"
    options = [f"--run.dir={run}", SHORT]
    if way == "sbatch":
        job = cluster.sbatch(f"--chdir={clone}", TRAIN, tiny_config, *options, log=log)
    else:
        shape = ["--profile=configs/cluster/cpu.yaml", "--timeout=30"]
        submit = ["python", "-m", "tinyimnet", "submit", "--config", tiny_config, *shape, *options]
        cluster.run("env", "-C", str(clone), *submit)
        sent = json.loads((run / "job.json").read_text())
        job, log = sent["job"], Path(sent["output"])
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert last_step(run) == 12


def test_an_invalid_configuration_fails_the_job_with_one_sentence(cluster, tiny_config, tmp_path) -> None:
    job = cluster.sbatch(TRAIN, tiny_config, "--optim.lrr=1", log=tmp_path / "log")
    assert cluster.end(job) == "FAILED"
    assert "optim.lrr is not a known key; did you mean optim.lr?" in (tmp_path / "log").read_text()
    assert cluster.show(job)["ExitCode"] == "2:0"


def test_an_array_trains_each_seed_and_one_failing_element_harms_no_other(cluster, tiny_config, tmp_path) -> None:
    one = ["--nodes=1", "--gpus-per-node=1", "--array=0-1%2", "slurm/array.sbatch"]
    (tmp_path / "slurm.yaml").write_text(Path(tiny_config).read_text(encoding="utf-8"))
    seeds = cluster.sbatch(*one, tiny_config, SHORT, log=tmp_path / "seed_%a", RUNS_ROOT=str(tmp_path))
    bad = tmp_path / "bad.yaml"
    bad.write_text("optim: {lr: -1}\n")
    lists = cluster.sbatch(*one, str(tmp_path / "slurm.yaml"), str(bad), SHORT, log=tmp_path / "list_%a",
                           RUNS_ROOT=str(tmp_path))  # fmt: skip
    assert [cluster.end(f"{seeds}_{i}") for i in range(2)] == ["COMPLETED", "COMPLETED"]
    weights = [(tmp_path / f"tiny-seed{i}" / "final.safetensors").read_bytes() for i in range(2)]
    assert weights[0] != weights[1]
    assert [cluster.end(f"{lists}_{i}") for i in range(2)] == ["COMPLETED", "FAILED"]
    assert (tmp_path / "slurm" / "DONE").exists()
    assert "optim.lr is -1" in (tmp_path / "list_1").read_text()


def test_an_element_with_the_id_of_its_array_counts_its_own_attempts(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "tiny-seed1", tmp_path / "log_1"
    array = cluster.sbatch(
        "--nodes=1", "--gpus-per-node=1", "--array=0-1", "slurm/array.sbatch", tiny_config, "--train.epochs=60",
        log=tmp_path / "log_%a", RUNS_ROOT=str(tmp_path),
    )  # fmt: skip
    element = f"{array}_1"
    for attempt in (1, 2):
        cluster.until_step(run, 30 * attempt, element)
        assert cluster.show(element)["JobId"] == array
        cluster.run("scancel", "--signal=USR1", element)
        cluster.wait(lambda attempt=attempt: f"requeued as attempt {attempt + 1}" in log.read_text(), 120, "a requeue")
    assert cluster.end(element) == "COMPLETED", log.read_text()
    assert "finished in attempt 3" in log.read_text() and len(attempts(run)) == 3
    assert cluster.end(f"{array}_0") == "COMPLETED"
