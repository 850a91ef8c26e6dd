"""A closed pipe, a full disk or a closed descriptor in place of a standard stream costs no work and no exit code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.program import REPO, small_run

ALL_CLOSED, ALL_UNREAD, FULL = "0<&- >&- 2>&-", "2>&1 | true", ">/dev/full"
SINGLE = ("0<&-", ">&-", "2>&-", "| true", "| head -1", "2>/dev/full")


def shell(arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the program with a redirection; the exit code is the program's."""
    script = f'set -o pipefail; "$@" {redirection}'
    command = ["bash", "-c", script, "bash", sys.executable, *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, encoding="utf-8", timeout=600)


@pytest.fixture
def commands(tiny_data: Path, finished_run: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """The arguments of each command, and the file that it leaves."""
    out = tmp_path / "out"
    tree = ["-m", "tinyimnet"]
    return {
        "train": (["train.py", *small_run(tiny_data, out, train__epochs=1)], "DONE"),
        "train as a command": ([*tree, "train", *small_run(tiny_data, out, train__epochs=1)], "DONE"),
        "prepare": ([*tree, "prepare", *arrays(tmp_path), "--out", str(out)], "manifest.json"),
        "predict": ([*tree, "predict", str(finished_run), "--out", str(out / "a.csv")], "a.csv"),
        "evaluate": ([*tree, "evaluate", str(finished_run), "--out", str(out)], "results.json"),
        "report": ([*tree, "report", str(finished_run), "--out", str(made(out) / "a.html")], "a.html"),
        "status": ([*tree, "status", str(finished_run)], ""),
        "seeds": ([*tree, "seeds", str(finished_run)], ""),
        "help": ([*tree, "--help"], ""),
        "help of train": (["train.py", "--help"], ""),
    }


COMMANDS = ("train", "train as a command", "prepare", "predict", "evaluate", "report", "status", "seeds", "help",
            "help of train")  # fmt: skip


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def arrays(folder: Path) -> list[str]:
    """Options for a data set of two images."""
    options = []
    for split in ("train", "val"):
        np.save(folder / f"{split}.npy", np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (0, 255)]))
        np.save(folder / f"{split}_y.npy", np.arange(2))
        options += [f"--{split}-images={folder / split}.npy", f"--{split}-labels={folder / split}_y.npy"]
    return options


CASES = [*((name, way) for name in COMMANDS for way in (ALL_CLOSED, ALL_UNREAD)),
         *((name, way) for name in ("train", "prepare", "help") for way in SINGLE)]  # fmt: skip


@pytest.mark.parametrize("name, redirection", CASES)
def test_a_command_ends_well_without_a_stream(name: str, redirection: str, commands, tmp_path: Path) -> None:
    arguments, left = commands[name]
    done = shell(arguments, redirection)
    killed_by_the_pipe = name == "status" and redirection == ALL_UNREAD  # as `cat` is
    assert done.returncode in ((0, 141) if killed_by_the_pipe else (0,)), done
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert not left or (tmp_path / "out" / left).exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_output_lost_on_a_full_disk_is_an_error_except_in_a_training(name: str, commands, tmp_path: Path) -> None:
    arguments, left = commands[name]
    done = shell(arguments, FULL)
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    if name in ("train", "train as a command"):
        assert (done.returncode, said) == (0, [])
    else:
        assert (done.returncode, said) == (2, ["error: the output could not be written (No space left on device)."])
    assert not left or (tmp_path / "out" / left).exists()
