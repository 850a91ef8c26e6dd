"""The installed package: a wheel of this checkout, used from an empty folder. Building it needs the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.program import REPO, SMALL

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source") / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(REPO), str(copy)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(copy)]
    subprocess.run(pip, check=True, timeout=300)
    return folder


def tinyimnet(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the console script of the wheel in `cwd`."""
    environment = {**os.environ, "PYTHONPATH": str(site), "WANDB_MODE": "disabled", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(site / "bin" / "tinyimnet"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_nothing_but_the_package_is_at_the_top_of_site_packages(site: Path) -> None:
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"tinyimnet", "bin"}


def test_it_prepares_trains_evaluates_and_reports_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    small = [f"--{key}={value}" for key, value in SMALL.items() if key != "config"]
    for arguments in (
        ["prepare", "--synthetic"],
        ["train", "--config", "smoke", *small, "--train.epochs=1"],
        ["evaluate", "runs/smoke"],
        ["report", "runs/smoke"],
        ["status"],
    ):
        done = tinyimnet(site, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "smoke" / "report.html").is_file()
    info = json.loads((tmp_path / "runs" / "smoke" / "run_info.json").read_text())
    assert info["git_commit"] == "" and info["versions"]["tinyimnet"]


def test_submitting_needs_a_checkout_and_says_so(site: Path, tmp_path: Path) -> None:
    options = ["--cluster=local", "--config=smoke", "--profile", str(REPO / "configs" / "cluster" / "cpu.yaml")]
    done = tinyimnet(site, tmp_path, "submit", *options)
    assert done.returncode == 2 and "is not a git checkout" in done.stderr
