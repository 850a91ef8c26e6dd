"""tests/gpu/check.py on a machine without a GPU: everything that a CPU can do runs, the rest is named."""

import json
import subprocess
from pathlib import Path

import pytest

from gpu import check
from helpers.program import python

SLACK = "--slack=5"  # the limits are those of a GPU


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return python("tests/gpu/check.py", *arguments, timeout=500, **environment)


def outcomes(out: Path) -> dict[str, set[str]]:
    """The outcomes of each section."""
    found: dict[str, set[str]] = {}
    for result in json.loads((out / "gpu_check.json").read_text()):
        found.setdefault(result["section"], set()).add(result["outcome"])
    return found


def test_on_a_cpu_the_sections_run_and_name_what_they_skip(tmp_path: Path) -> None:
    expected = {
        "machine": {"measured"},
        "waits": {"skipped"},
        "bits": {"passed", "skipped"},
        "snapshot": {"passed"},
        "memory": {"skipped"},
        "exchange": {"passed"},
        "speed": {"measured"},
        "cudnn": {"skipped"},
        "graph": {"skipped"},
        "compiled": {"skipped"},
    }
    done = run(*expected, "--out", str(tmp_path), SLACK)
    assert done.returncode == 0, done.stdout
    assert outcomes(tmp_path) == expected
    assert "| skipped | because torch sees no GPU |" in (tmp_path / "gpu_check.md").read_text()


@pytest.mark.long
def test_on_a_cpu_the_sections_that_train_pass(tmp_path: Path) -> None:
    done = run("stops", "several", "--out", str(tmp_path), SLACK)
    assert done.returncode == 0, done.stdout
    assert outcomes(tmp_path) == {"stops": {"passed", "measured"}, "several": {"passed", "skipped"}}
    assert "| a killed rank under srun | skipped |" in (tmp_path / "gpu_check.md").read_text()


def test_a_claim_that_does_not_hold_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("""
import sys
if "--inside" in sys.argv:
    from tinyimnet.training import state
    state._copied = lambda tensors: tensors  # the snapshot is no copy
""")
    done = run("snapshot", "--out", str(tmp_path), SLACK, PYTHONPATH=f"{tmp_path}:{check.REPO}")
    assert done.returncode == 1
    assert "failed   a snapshot does not see later steps" in done.stdout
    assert outcomes(tmp_path) == {"snapshot": {"failed"}}


def test_a_section_that_does_not_end_is_cut_off_and_named(tmp_path: Path) -> None:
    done = run("machine", "--out", str(tmp_path), "--slack=0.001")
    assert done.returncode == 1
    assert "failed   the section ends (cut off after 0 s); see machine.log" in done.stdout


def test_all_sections_together_take_nine_minutes_on_one_gpu() -> None:
    assert sum(limit for name, (_, limit) in check.SECTIONS.items() if name != "several") <= 540
