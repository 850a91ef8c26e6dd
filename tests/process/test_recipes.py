"""Recipes of docs/recipes.md as they stand there, on a small run."""

import re
import shlex
import sys
from pathlib import Path

from helpers.program import REPO, launch

PAGE = (REPO / "docs" / "recipes.md").read_text(encoding="utf-8")


def recipe(begin: str) -> str:
    """Return the line of a code block of the page that begins like this."""
    lines = [line for block in re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    (found,) = [line for line in lines if line.startswith(begin)]
    return found


def cell(line: str, *more: str) -> list[str]:
    """Return the command with which a notebook runs a cell that begins with an exclamation mark."""
    command = line.removeprefix("!").replace("tinyimnet", f"{sys.executable} -m tinyimnet", 1)
    return ["/bin/bash", "-c", f"{command} {shlex.join(more)}"]


def test_the_cell_of_the_notebook_trains(arguments, tmp_path: Path) -> None:
    done = launch(cell(recipe("!tinyimnet train"), *arguments(train__epochs=1)))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "DONE").exists()


def test_a_mistake_in_the_cell_is_one_sentence(tmp_path: Path) -> None:
    done = launch(cell(recipe("!tinyimnet train"), "--optim.lrr=1", f"--run.dir={tmp_path}/run"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "optim.lrr is not a known key; did you mean optim.lr?" in done.stderr


def test_the_line_of_torchrun_trains(arguments, tmp_path: Path) -> None:
    words = recipe("torchrun --standalone").replace(" 8 ", " 2 ").split()
    done = launch([sys.executable, "-m", "torch.distributed.run", *words[1:], *arguments(train__epochs=1)],
                  WANDB_MODE="disabled")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "DONE").exists()
