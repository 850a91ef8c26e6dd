"""What a process has imported once it can start: more would keep a person, or a thousand jobs, waiting."""

import pytest

from helpers.program import python

AT_ONCE = ("launch.requeue", "launch.status", "launch.cancel", "launch.logs", "launch.seeds", "tinyimnet.run.record",
           "tinyimnet.cli", "tinyimnet.commands.report", "tinyimnet.data.tiny_imagenet")  # fmt: skip
HEAVY = {"torch", "accelerate", "submitit", "wandb", "matplotlib", "pandas"}


def loaded(modules: tuple[str, ...], wanted: set[str]) -> set[str]:
    """Which of the modules `wanted` are there after an import of the others."""
    code = f"import sys, {', '.join(modules)}; print(*{wanted} & set(sys.modules))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_what_has_to_start_at_once_imports_no_torch() -> None:
    assert loaded(AT_ONCE, HEAVY) == set()


def test_a_run_starts_without_what_only_its_end_or_others_need() -> None:
    assert loaded(("tinyimnet.train",), HEAVY - {"torch", "accelerate"} | {"torch._dynamo"}) == set()


@pytest.mark.parametrize("tool", ["status", "cancel", "logs", "seeds"])
def test_help_is_there(tool: str) -> None:
    done = python("-m", f"launch.{tool}", "--help")
    assert done.returncode == 0 and f"usage: python -m launch.{tool} " in done.stdout
