"""slurm/train.sbatch and slurm/array.sbatch on a real Slurm: two nodes with two processes each, and one to spare."""

import json
import re
from pathlib import Path

import pytest
from conftest import REPO
from lives import assert_same_end, last_step
from slurm_cluster import failing_rank, slow_first_life

from launch.submit import snapshot
from tinyimnet import checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes_are_up")]
TRAIN = "slurm/train.sbatch"
SHORT = "--train.epochs=2"


def lives(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "lives.jsonl").read_text().splitlines()]


def test_a_job_trains_on_all_its_nodes_to_the_end(untouched: Path) -> None:
    log = (untouched.parent / "log").read_text()
    assert "life 1, nodes n[1-2], 2 processes each" in log
    assert "preflight: 4 processes on n1, n2: same code, versions and run folder" in log
    assert "finished in life 1" in log
    assert [(life["nodes"], life["processes"]) for life in lives(untouched)] == [(["n1", "n2"], 4)]


def test_a_finished_run_submitted_again_on_two_nodes_ends_well(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    for i in range(3):
        log = tmp_path / f"log{i}"
        job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={untouched}", log=log)
        assert cluster.end(job) == "COMPLETED", log.read_text()
        assert "is finished" in log.read_text() and "gone" not in log.read_text()


def test_overrides_keep_their_spaces_and_quotes_and_no_secret_is_written(
    cluster, tiny_config, tmp_path
) -> None:
    run, secret = tmp_path / 'a run\'s "folder" $HOME *', "0123456789abcdef" * 5 + "secret"
    job = cluster.sbatch(
        TRAIN, tiny_config, f"--run.dir={run}", "--model.widths", "[16, 32]", SHORT, "--data.stage=/dev/shm",
        log=tmp_path / "log", WANDB_MODE="offline", WANDB_API_KEY=secret,
    )  # fmt: skip
    assert cluster.end(job) == "COMPLETED", (tmp_path / "log").read_text()
    assert (run / "DONE").exists()
    assert "- 32" in (run / "config.yaml").read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert not cluster.control("exec", "n1", "ls", "/dev/shm").strip()  # nothing of the staged data stays


def test_accelerate_launch_on_two_nodes_as_docs_slurm_says_comes_back_to_the_same_end(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    script = re.search(
        r"```bash\n(#!/bin/bash\n.*?accelerate launch.*?)```", (REPO / "docs/slurm.md").read_text(), re.S
    )
    assert script
    (tmp_path / "job.sbatch").write_text(script[1].replace("configs/tiny1m.yaml", tiny_config))
    run, log = tmp_path / Path(tiny_config).stem, tmp_path / "log"
    job = cluster.sbatch(
        str(tmp_path / "job.sbatch"), log=log, ACCELERATE_USE_CPU="true", RUNS_ROOT=str(tmp_path),
        PYTHONPATH=slow_first_life(tmp_path),
    )  # fmt: skip
    cluster.until_step(run, 40, job)
    cluster.run("scancel", "--signal=USR1", job)  # as Slurm does ahead of the end of its time
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert "saved; requeued for life 2" in log.read_text()
    assert_same_end(untouched, run)


# ---- the end of a job's time -----------------------------------------------------------------------------------


def test_warned_of_its_time_limit_it_saves_and_is_requeued_to_the_same_end(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 40, job)
    cluster.ends_soon(job)
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert "stopped by SIGUSR1 and saved; requeued for life 2" in log.read_text()
    assert len(lives(run)) == 2 and lives(run)[1]["step"] >= 40
    assert_same_end(untouched, run)


def test_without_a_signal_it_stops_ahead_of_the_end_of_its_time(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # 36 of the 60 s are lead. URG does nothing, and Slurm may send it a minute early.
    options = ["--run.stop_before_end=36", "--run.max_lives=9"]
    job = cluster.sbatch_slow(
        "--time=1", "--signal=URG@1", TRAIN, tiny_config, f"--run.dir={run}", *options, log=log
    )
    assert cluster.end(job, 200) == "COMPLETED", log.read_text()
    assert "stopped by the end of the job's time and saved; requeued for life 2" in log.read_text()
    assert_same_end(untouched, run)


def test_a_job_without_lives_left_says_so_and_ends(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", "--run.max_lives=1", log=log)
    cluster.until_step(run, 10, job)
    cluster.ends_soon(job)
    assert cluster.end(job) == "FAILED"
    assert "not requeued after life 1 of run.max_lives 1: submit it again to go on" in log.read_text()
    assert last_step(run) >= 10


def test_a_job_that_does_not_get_on_is_not_requeued(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", "--run.stop_before_end=999999", log=log)
    assert cluster.end(job) == "FAILED"
    assert "without one step done in life 1; not requeued" in log.read_text()


# ---- others need the nodes, or the nodes go ---------------------------------------------------------------------


def test_preempted_it_saves_within_its_grace_time_and_comes_back_to_the_same_end(
    cluster, tiny_config, untouched, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow("--partition=preempt", TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 40, job)
    cluster.run(
        "sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
    )
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert "stopped by SIGTERM: saved" in log.read_text()
    assert "preempted; requeued for life 2" in log.read_text()
    assert (
        cluster.show(job).get("PreemptTime", "None") == "None"
    )  # an error in this life would not count as preemption
    assert_same_end(untouched, run)


@pytest.mark.parametrize(
    "node, fault",
    [("n1", "node-kill"), ("n2", "node-kill"), ("n2", "net-down")],
    # The second one is noticed by the other node's processes before Slurm does.
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
    first, second = lives(run)
    assert first["nodes"] == ["n1", "n2"] and second["nodes"] == [n for n in ("n1", "n2", "n3") if n != node]
    assert second["step"] >= 20
    assert_same_end(untouched, run)


# ---- persons and errors ----------------------------------------------------------------------------------------


def test_scancel_saves_and_the_job_stays_cancelled(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = cluster.sbatch_slow(TRAIN, tiny_config, f"--run.dir={run}", log=log)
    cluster.until_step(run, 10, job)
    cluster.run("scancel", job)
    assert cluster.end(job) == "CANCELLED"
    step = checkpoint.load_newest(run / "checkpoints")["step"]
    assert f"stopped by SIGTERM: saved at step {step}" in log.read_text()
    assert step >= 10 and len(lives(run)) == 1


def test_a_rank_that_fails_before_anything_was_saved_ends_the_job_at_once_with_its_traceback_in_the_log(
    cluster, tiny_config, tmp_path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    failing = failing_rank(tmp_path, 18, "raise ZeroDivisionError('on purpose')")
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", log=log, PYTHONPATH=failing)
    cluster.until_step(run, 16, job)
    assert cluster.end(job, 15) == "FAILED"
    assert "ZeroDivisionError: on purpose" in log.read_text()
    assert "ended with exit code" in log.read_text() and "not requeued" in log.read_text()
    assert len(lives(run)) == 1


@pytest.mark.parametrize(
    "how", ["os.kill(os.getpid(), 9)", "raise ZeroDivisionError('on purpose')"], ids=["killed", "fails"]
)
def test_a_rank_that_is_killed_or_fails_later_costs_a_life_and_the_end_is_the_same(
    cluster, tiny_config, untouched, tmp_path, how
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    failing = failing_rank(tmp_path, 58, how)
    job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={run}", log=log, PYTHONPATH=failing)
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert re.search(r"ended with exit code \d+, with step [24]0 saved; requeued for life 2", log.read_text())
    assert len(lives(run)) == 2
    assert_same_end(untouched, run)


def test_however_the_gpus_were_asked_for_and_from_within_another_job_it_trains(
    cluster, tiny_config, tmp_path
) -> None:
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
        TRAIN, tiny_config, f"--run.dir={tmp_path}/run", SHORT, **inherited,
    ).strip()  # fmt: skip
    assert cluster.end(job) == "COMPLETED", (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert f"job {job}, life 1, " in log and "2 processes each" in log and "finished in life 1" in log


# In each process of a job, by PYTHONPATH: which GPUs it sees.
WHICH_GPUS = """
import os
if "SLURM_PROCID" in os.environ:
    with open(f"{folder}/gpus-{{os.environ['SLURM_JOB_ID']}}-{{os.environ['SLURM_PROCID']}}", "w") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
"""


def test_two_jobs_on_one_node_see_the_gpus_of_their_own(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WHICH_GPUS.format(folder=tmp_path))
    jobs = [
        cluster.run(
            "sbatch", "--parsable", "--nodelist=n1", "--gpus-per-node=2", "--cpus-per-gpu=1", f"--output={tmp_path}/log{i}",
            TRAIN, tiny_config, f"--run.dir={tmp_path}/run{i}", SHORT, PYTHONPATH=str(tmp_path),
        ).strip()
        for i in range(2)
    ]  # fmt: skip
    assert [cluster.end(job) for job in jobs] == ["COMPLETED"] * 2, (tmp_path / "log0").read_text()
    seen = [[(tmp_path / f"gpus-{job}-{rank}").read_text() for rank in range(2)] for job in jobs]
    assert sorted(seen) == [["0,1", "0,1"], ["2,3", "2,3"]]


# What conda's bin/activate does with arguments, and a slip that drops them.
SITE = """\
activate() { [[ $# == 0 ]] || { echo "no environment $1"; return 1; }; }
activate "$@"
set -- dropped
export RUNS_ROOT=%s
"""


@pytest.mark.parametrize("way", ["sbatch", "submitit"])
def test_a_site_env_that_changes_its_arguments_leaves_those_of_the_job(
    cluster, tiny_config, tmp_path, way
) -> None:
    checkout, run, log = tmp_path / "checkout", tmp_path / "run", tmp_path / "log"
    snapshot(REPO, checkout)
    (checkout / "slurm" / "site.env").write_text(SITE % tmp_path)
    options = [f"--run.dir={run}", SHORT]
    if way == "sbatch":
        job = cluster.sbatch(f"--chdir={checkout}", TRAIN, tiny_config, *options, log=log)
    else:
        cluster.run("git", "-C", str(checkout), "init", "--quiet")
        cluster.run("git", "-C", str(checkout), "add", "--all", "--force")
        cluster.run(
            "git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"
        )
        shape = ["--profile=configs/cluster/cpu.yaml", "--timeout=30"]
        cluster.run("env", "-C", str(checkout), "python", "-m", "launch.submit", "--config", tiny_config, *shape, *options)  # fmt: skip
        sent = json.loads((run / "job.json").read_text())
        job, log = sent["job"], Path(sent["output"])
    assert cluster.end(job) == "COMPLETED", log.read_text()
    assert last_step(run) == 12


def test_a_configuration_that_is_wrong_ends_the_job_with_a_sentence(cluster, tiny_config, tmp_path) -> None:
    job = cluster.sbatch(TRAIN, tiny_config, "--optim.lrr=1", log=tmp_path / "log")
    assert cluster.end(job) == "FAILED"
    assert "optim.lrr is not a known key; did you mean optim.lr?" in (tmp_path / "log").read_text()
    assert cluster.show(job)["ExitCode"] == "2:0"


def test_an_array_trains_each_seed_and_one_failing_element_harms_no_other(
    cluster, tiny_config, tmp_path
) -> None:
    one = ["--nodes=1", "--gpus-per-node=1", "--array=0-1%2", "slurm/array.sbatch"]
    (tmp_path / "slurm.yaml").write_text(Path(tiny_config).read_text())
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


def test_an_element_with_the_id_of_its_array_counts_its_own_lives(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "tiny-seed1", tmp_path / "log_1"
    array = cluster.sbatch(
        "--nodes=1", "--gpus-per-node=1", "--array=0-1", "slurm/array.sbatch", tiny_config, "--train.epochs=60",
        log=tmp_path / "log_%a", RUNS_ROOT=str(tmp_path),
    )  # fmt: skip
    element = f"{array}_1"
    for life in (1, 2):
        cluster.until_step(run, 30 * life, element)
        assert cluster.show(element)["JobId"] == array
        cluster.run("scancel", "--signal=USR1", element)
        cluster.wait(lambda life=life: f"requeued for life {life + 1}" in log.read_text(), 20, "a requeue")
    assert cluster.end(element) == "COMPLETED", log.read_text()
    assert "finished in life 3" in log.read_text() and len(lives(run)) == 3
    assert cluster.end(f"{array}_0") == "COMPLETED"


# ---- what the preflight finds on a node -------------------------------------------------------------------------


def refused(cluster, tiny_config, tmp_path, *options: str) -> str:
    """The log of a job that has to end before a step is done."""
    job = cluster.sbatch(*options, TRAIN, tiny_config, f"--run.dir={tmp_path}/run", log=tmp_path / "log")
    assert cluster.end(job, 60) == "FAILED"
    assert not (tmp_path / "run" / "lives.jsonl").exists()
    return (tmp_path / "log").read_text()


def test_a_node_with_other_code_is_named(cluster, tiny_config, tmp_path) -> None:
    other, ours = tmp_path / "ema.py", REPO / "tinyimnet" / "ema.py"
    other.write_text(ours.read_text() + "# changed\n")
    cluster.control("exec", "n2", "mount", "--bind", str(other), str(ours))
    try:
        assert "error: node n2 (rank 2) has other code than node n1" in refused(
            cluster, tiny_config, tmp_path
        )
    finally:
        cluster.control("exec", "n2", "umount", str(ours))


def test_a_node_without_the_data_is_named(cluster, tiny_config, tiny_data, tmp_path) -> None:
    cluster.control("exec", "n2", "mount", "-t", "tmpfs", "none", str(tiny_data))
    try:
        log = refused(cluster, tiny_config, tmp_path)
        assert f"error: node n2: data.root {tiny_data}, prepared by rank 0, is not there on this node" in log
    finally:
        cluster.control("exec", "n2", "umount", str(tiny_data))


def test_a_node_that_sees_another_run_folder_is_named(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    cluster.control("exec", "n2", "mount", "-t", "tmpfs", "none", str(tmp_path / "runs"))
    try:
        job = cluster.sbatch(TRAIN, tiny_config, f"--run.dir={tmp_path}/runs/run", log=tmp_path / "log")
        assert cluster.end(job, 60) == "FAILED"
        assert (
            f"error: node n2 (rank 2) does not see the run folder {tmp_path}/runs/run of node n1"
            in (tmp_path / "log").read_text()
        )
    finally:
        cluster.control("exec", "n2", "umount", str(tmp_path / "runs"))


def test_a_full_disk_is_named(cluster, tiny_config, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    cluster.control("exec", "n1", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path / "run"))
    try:
        log = refused(cluster, tiny_config, tmp_path, "--nodes=1", "--nodelist=n1")
        assert re.search(
            r"error: node n1 \(rank 0\) has 1 MB free for .*; make room, or choose another --run.dir", log
        )
    finally:
        cluster.control("exec", "n1", "umount", str(tmp_path / "run"))


def test_preflight_by_hand_shows_a_row_for_each_node(cluster, tiny_config) -> None:
    shown = cluster.run(
        "srun", "-N2", "--ntasks-per-node=2", "--cpus-per-task=1", "python", "-m", "tinyimnet", "preflight",
        "--config", tiny_config,
    )  # fmt: skip
    assert re.search(r"n1 .* 2 .*\n.*n2 .* 2 ", shown)
    assert "passed in" in shown


# ---- sweeps ----------------------------------------------------------------------------------------------------

# In the place of `wandb agent`, which needs a server: gives out three trials, stops the second one early as hyperband
# does, then says that there are no more. The real one: tests/test_sweep.py.
AGENT = """\
#!/bin/bash
[[ $* == "agent --count 1 --forward-signals me/tiny/abc" ]] || exit 9
export WANDB_SWEEP_ID=abc WANDB_RUN_ID=trial$(ls {folder}/given | wc -l)
[[ $WANDB_RUN_ID != trial3 ]] || exit 0
touch {folder}/given/$WANDB_RUN_ID
trial=(python -m launch.trial --config {config} --run.seed=${{WANDB_RUN_ID#trial}})
[[ $WANDB_RUN_ID == trial1 ]] || exec "${{trial[@]}}"
"${{trial[@]}}" &
until [[ -s {folder}/sweep-abc/trial1/metrics.jsonl ]]; do sleep 0.1; done
kill $!
wait
"""


def test_a_sweep_element_comes_back_to_the_trial_that_it_had_begun_and_not_to_one_that_was_stopped(
    cluster, tiny_config, tmp_path
) -> None:
    (tmp_path / "given").mkdir()
    agent = tmp_path / "bin" / "wandb"
    agent.parent.mkdir()
    agent.write_text(AGENT.format(folder=tmp_path, config=tiny_config))
    agent.chmod(0o755)
    job = cluster.sbatch(
        "--nodes=1", "--gpus-per-node=1", "--array=3", "slurm/sweep.sbatch", "me/tiny/abc", log=tmp_path / "log", RUNS_ROOT=str(tmp_path),
        PATH=f"{agent.parent}:{cluster.environ['PATH']}", PYTHONPATH=slow_first_life(tmp_path),
        VIRTUAL_ENV="active",  # or .venv/bin would come first, with the real wandb in it
    )  # fmt: skip
    job += "_3"
    trials = [tmp_path / "sweep-abc" / name for name in ("trial0", "trial1", "trial2")]
    cluster.until_step(trials[0], 40, job)
    cluster.ends_soon(job)
    cluster.until_requeued(job)
    assert cluster.end(job) == "COMPLETED", (tmp_path / "log").read_text()
    assert [len(lives(trial)) for trial in trials] == [2, 1, 1]
    assert [(trial / "DONE").exists() for trial in trials] == [True, False, True]
    said = (tmp_path / "log").read_text()
    assert "trial0: stopped by SIGUSR1 and saved; requeued for life 2" in said
    assert "trial1: stopped by W&B; on to the next" in said and "no trial was given out" in said
