"""Modules that a process imports at start-up: more would keep a person, or a thousand jobs, waiting."""

import json
import sysconfig
from pathlib import Path

import pytest

from helpers.program import python

AT_ONCE = ("tinyimnet.launch.requeue", "tinyimnet.launch.status", "tinyimnet.launch.cancel", "tinyimnet.launch.logs",
           "tinyimnet.launch.seeds", "tinyimnet.launch.tensorboard", "tinyimnet.run.record", "tinyimnet.cli",
           "tinyimnet.commands.report", "tinyimnet.commands.unpack", "tinyimnet.data.image_folders")  # fmt: skip
HEAVY = {"torch", "accelerate", "submitit", "wandb", "matplotlib", "pandas", "tensorboard"}


def loaded(modules: tuple[str, ...], wanted: set[str]) -> set[str]:
    """Return which of `wanted` are loaded after an import of `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*{wanted} & set(sys.modules))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_modules_that_must_start_fast_import_no_torch() -> None:
    assert loaded(AT_ONCE, HEAVY) == set()


def test_train_imports_nothing_heavy_but_torch_and_accelerate() -> None:
    assert loaded(("tinyimnet.train",), HEAVY - {"torch", "accelerate"} | {"torch._dynamo"}) == set()


@pytest.mark.parametrize("tool", ["status", "cancel", "logs", "seeds", "tensorboard"])
def test_every_tool_has_help(tool: str) -> None:
    done = python("-m", "tinyimnet", tool, "--help")
    assert done.returncode == 0 and f"usage: tinyimnet {tool} " in done.stdout


def test_python_m_launch_status_still_works() -> None:
    done = python("-m", "launch.status", "--help")
    assert done.returncode == 0 and "usage: tinyimnet status " in done.stdout


def test_a_training_without_wb_needs_neither_wandb_nor_submitit(arguments, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("wandb", "submitit")):
            (packages / entry.name).symlink_to(entry)
    done = python("-S", "train.py", *arguments(), PYTHONPATH=str(packages), WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    versions = json.loads((tmp_path / "run" / "run_info.json").read_text())["versions"]
    assert "torch" in versions and "wandb" not in versions
