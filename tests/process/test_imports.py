"""Modules that a process imports at start-up: more would keep a person, or a thousand jobs, waiting."""

import pytest

from helpers.program import python

AT_ONCE = ("tinyimnet.launch.requeue", "tinyimnet.launch.status", "tinyimnet.launch.cancel", "tinyimnet.launch.logs",
           "tinyimnet.launch.seeds", "tinyimnet.run.record",
           "tinyimnet.cli", "tinyimnet.commands.report", "tinyimnet.data.tiny_imagenet")  # fmt: skip
HEAVY = {"torch", "accelerate", "submitit", "wandb", "matplotlib", "pandas"}


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


@pytest.mark.parametrize("tool", ["status", "cancel", "logs", "seeds"])
def test_every_tool_has_help(tool: str) -> None:
    done = python("-m", "tinyimnet", tool, "--help")
    assert done.returncode == 0 and f"usage: tinyimnet {tool} " in done.stdout


def test_python_m_launch_status_still_works() -> None:
    done = python("-m", "launch.status", "--help")
    assert done.returncode == 0 and "usage: tinyimnet status " in done.stdout
