"""The shape of the code that the README promises."""

import ast
import re
from pathlib import Path

import pytest
from conftest import REPO, python

PACKAGE = sorted((REPO / "tinyimnet").glob("*.py"))
# Imports go one way: a module may import those in earlier rows only (and those in its own row).
LAYERS = [
    {"errors", "files", "slurm", "timing", "markup", "muon", "whitening", "reduction"},
    {"config", "data", "lock", "meeting", "staging", "pictures", "card", "svg"},
    {"commandline", "resizing", "soft_labels"},
    {
        "prepared",
        "augment",
        "optim",
        "ema",
        "model",
        "distributed",
        "preemption",
        "checkpoint",
        "console",
        "download",
    },
    {"batches", "inference", "official", "arrays", "tracking", "runfolder", "export", "plots", "synthetic"},
    {
        "prepare",
        "evaluation",
        "preflight",
        "artifacts",
        "mirror",
        "analysis",
        "dashboard",
        "record",
        "stored",
    },
    {"state", "comparison", "sync"},
    {"engine", "page"},
    {"inspection", "facts"},
    {"cli", "report"},
    {"__main__"},
]


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tinyimnet":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinyimnet."):
            found.add(str(node.module).removeprefix("tinyimnet."))
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_imports_go_one_way(path: Path) -> None:
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    if path.stem == "__init__":
        return
    for name in imported_modules(path):
        assert layer[name] <= layer[path.stem], f"{path.stem} imports {name}"


def test_nothing_that_the_training_imports_speaks_to_wandb() -> None:
    users = {
        path.stem for path in PACKAGE if re.search(r"^\s*(import|from) wandb", path.read_text(), re.MULTILINE)
    }
    assert users == {"mirror", "artifacts", "stored", "sync", "dashboard"}


def test_a_run_starts_without_what_only_its_end_or_others_need() -> None:
    slow = "{'matplotlib', 'wandb', 'submitit', 'pandas', 'torch._dynamo'}"
    result = python("-c", f"import sys, train; print(sorted({slow} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


def test_only_the_loop_and_the_process_group_know_accelerate() -> None:
    users = {path.stem for path in PACKAGE if re.search(r"^from accelerate", path.read_text(), re.MULTILINE)}
    assert users == {"engine", "state", "evaluation", "distributed", "preemption", "preflight"}


def test_files_and_functions_stay_readable() -> None:
    for path in [*PACKAGE, *(REPO / "launch").glob("*.py"), REPO / "train.py"]:
        source = path.read_text()
        assert source.count("\n") <= 310, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                assert length <= 65, f"{path.name}: {node.name} has {length} lines"
    assert (REPO / "train.py").read_text().count("\n") < 100


def test_the_readme_names_every_file_and_config() -> None:
    readme = (REPO / "README.md").read_text()
    places = ("configs/*.yaml", "benchmarks/*.py", "launch/*.py", "slurm/*.sbatch")
    for path in [*PACKAGE, *(path for place in places for path in REPO.glob(place))]:
        if path.stem not in ("__init__", "__main__"):
            assert path.name in readme, f"README.md does not mention {path.name}"


def test_the_tests_that_the_readme_names_exist() -> None:
    named = re.findall(r"((?:cluster/)?test_\w+\.py)::(test_\w+)", (REPO / "README.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (REPO / "tests" / file).read_text(), f"{file}::{name}"


def test_every_link_leads_somewhere() -> None:
    for page in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
