"""Preflight on a real Slurm: nodes with different code, without the data or the run folder, and a full disk."""

import re
from pathlib import Path

import pytest

from helpers.program import REPO
from helpers.slurm_cluster import TRAIN

pytestmark = pytest.mark.usefixtures("nodes_are_up")


def refused(cluster, tiny_config: str, run: Path, *options: str) -> str:
    """Return the log of a job that must fail before its first step."""
    log = run.parents[1] / "log"
    job = cluster.sbatch(*options, TRAIN, tiny_config, f"--run.dir={run}", log=log)
    assert cluster.end(job, 60) == "FAILED"
    assert not (run / "attempts.jsonl").exists()
    return log.read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The path of a new run folder, in a folder that a test can mount something on."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "run"


def test_a_node_with_other_code_is_named(cluster, tiny_config, run, tmp_path) -> None:
    other, ours = tmp_path / "ema.py", REPO / "tinyimnet" / "training" / "ema.py"
    other.write_text(ours.read_text() + "# changed\n")
    with cluster.mounted("n2", "--bind", str(other), str(ours)):
        log = refused(cluster, tiny_config, run)
    assert "error: node n2 (rank 2) has different code from node n1" in log


def test_a_node_without_the_data_is_named(cluster, tiny_config, tiny_data, run) -> None:
    with cluster.mounted("n2", "-t", "tmpfs", "none", str(tiny_data)):
        log = refused(cluster, tiny_config, run)
    assert f"error: node n2: data.root {tiny_data}, prepared by rank 0, is not visible on this node" in log


def test_a_node_that_sees_another_run_folder_is_named(cluster, tiny_config, run) -> None:
    with cluster.mounted("n2", "-t", "tmpfs", "none", str(run.parent)):
        log = refused(cluster, tiny_config, run)
    assert f"error: node n2 (rank 2) does not see the run folder {run} of node n1" in log


def test_a_full_disk_is_named(cluster, tiny_config, run) -> None:
    with cluster.mounted("n1", "-t", "tmpfs", "-o", "size=1m", "none", str(run.parent)):
        log = refused(cluster, tiny_config, run, "--nodes=1", "--nodelist=n1")
    assert re.search(r"error: node n1 \(rank 0\) has 1 MB free for .*; make room, or choose another --run.dir", log)


def test_preflight_by_hand_shows_a_row_for_each_node(cluster, tiny_config) -> None:
    shown = cluster.run(
        "srun", "-N2", "--ntasks-per-node=2", "--cpus-per-task=1", "python", "-m", "tinyimnet", "preflight",
        "--config", tiny_config,
    )  # fmt: skip
    assert re.search(r"n1 .* 2 .*\n.*n2 .* 2 ", shown)
    assert "passed in" in shown
