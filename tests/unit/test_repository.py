"""The shape of the code and of the tests that the README promises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.program import REPO
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import METRICS, STEP

PACKAGE = sorted((REPO / "tinyimnet").rglob("*.py"))
CODE = [*PACKAGE, *sorted((REPO / "launch").glob("*.py")), REPO / "train.py"]
TESTS = sorted((REPO / "tests").rglob("test_*.py"))
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# Imports go one way: a folder, or a module beside the folders, may import those in earlier rows and itself.
LAYERS = [
    {"errors", "files"},
    {"config", "console"},
    {"config_cli"},
    {"distributed"},
    {"data"},
    {"model"},
    {"run"},
    {"evaluation"},
    {"tracking"},
    {"training"},
    {"report"},
    {"commands", "train"},
    {"cli"},
    {"__main__"},
]


def named(path: Path) -> str:
    """tinyimnet/run/lock.py -> tinyimnet.run.lock."""
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


MODULES = {named(path): path for path in CODE}


def imported(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Modules that a file imports by their full names, also inside functions unless only those `at_once` count."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if name in MODULES]
            yield from modules
            if len(modules) < len(inside):
                yield node.module


def all_imported(module: str, seen: set[str]) -> set[str]:
    """What is imported once `module` is: modules of ours, and the roots of others as we name them."""
    if module not in MODULES:
        return seen | {module.partition(".")[0]}
    if module not in seen:
        seen = seen | {module}
        for name in imported(MODULES[module], at_once=True):
            seen = all_imported(name, seen)
    return seen


def part_of(module: str) -> str:
    """The folder, or the module beside the folders: tinyimnet.run.lock -> run."""
    return module.split(".")[1]


# ---- imports ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in PACKAGE if path.stem != "__init__"], ids=named)
def test_imports_go_one_way(path: Path) -> None:
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    mine = part_of(named(path))
    for name in imported(path):
        if name.startswith("tinyimnet."):
            other = part_of(name)
            assert other == mine or layer[other] < layer[mine], f"{named(path)} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for name in imported(MODULES[module]):
                if name in MODULES:
                    visit(name, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_a_folder_says_what_it_is_and_passes_nothing_on() -> None:
    folders = [path for path in PACKAGE if path.stem == "__init__"]
    assert len(folders) == 1 + len({path.parent for path in PACKAGE} - {REPO / "tinyimnet"})
    for path in folders:
        (docstring,) = ast.parse(path.read_text()).body  # and nothing else
        assert isinstance(docstring, ast.Expr) and len(docstring.value.value) > 20, path  # type: ignore[attr-defined]


def test_only_what_the_linter_is_told_of_speaks_to_wandb() -> None:
    told = re.search(r'"tinyimnet/tracking/\{([\w,]+)\}\.py" = \["TID251"\]', (REPO / "pyproject.toml").read_text())
    assert told
    users = {named(path) for path in CODE if any(re.match(r"wandb\b", name) for name in imported(path))}
    assert users == {f"tinyimnet.tracking.{name}" for name in told[1].split(",")}


def test_only_launch_speaks_to_submitit() -> None:
    users = {path.parent.name for path in CODE if "submitit" in imported(path)}
    assert users == {"launch"}


def test_the_package_knows_nothing_of_what_starts_it() -> None:
    assert not [path for path in PACKAGE if any(re.match(r"launch\b", name) for name in imported(path))]


def test_who_knows_accelerate() -> None:
    users = {named(path) for path in CODE if any(re.match(r"accelerate\b", name) for name in imported(path))}
    assert users == {
        "tinyimnet.train", "tinyimnet.distributed.preemption", "tinyimnet.distributed.preflight",
        "tinyimnet.distributed.process_group", "tinyimnet.evaluation.evaluator", "tinyimnet.training.state",
        "tinyimnet.training.trainer",
    }  # fmt: skip


@pytest.mark.parametrize(
    "module",
    ["launch.requeue", "launch.status", "launch.cancel", "launch.logs", "launch.seeds", "tinyimnet.run.record",
     "tinyimnet.cli", "tinyimnet.data.prepare"],
)  # fmt: skip
def test_what_has_to_start_at_once_imports_no_torch(module: str) -> None:
    """process/test_imports.py looks at a real process."""
    heavy = {"torch", "accelerate", "submitit", "wandb", "matplotlib", "safetensors"}
    assert not all_imported(module, set()) & heavy


# ---- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CODE, ids=named)
def test_files_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 310
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 65, node.name


def test_the_script_at_the_top_only_starts_the_program() -> None:
    assert (REPO / "train.py").read_text().count("\n") < 25


# ---- tests ------------------------------------------------------------------------------------------------------


def functions(path: Path) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_test_names_fit_on_a_line() -> None:
    assert [f"{path.name}::{name}" for path in TESTS for name in functions(path) if len(name) > 70] == []


def test_test_names_and_files_are_not_there_twice() -> None:
    names = [path.name for path in TESTS]
    assert sorted(set(names)) == sorted(names)
    for path in TESTS:
        assert len(set(functions(path))) == len(functions(path)), path.name


def test_test_files_stay_readable() -> None:
    for path in TESTS:
        if path.parent.name in ("unit", "process"):
            assert path.read_text().count("\n") <= 350, path.name


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name == "unit"], ids=lambda path: path.stem)
def test_unit_tests_start_no_processes(path: Path) -> None:
    source = path.read_text()
    starts = (
        r"\bPopen\b|subprocess\.(run|check|call)|\bmultiprocessing\b|\bos\.fork\b|\bforkpty\b|\bSERVER\b|\brun_to_end\b"
    )
    if path.name != Path(__file__).name:
        assert not re.findall(rf"{starts}|helpers\.rendezvous|helpers\.program import .*\b(python|launch)\b", source)


def test_the_tests_that_the_pages_name_exist() -> None:
    found = [name for page in PAGES for name in re.findall(r"([\w/]*test_\w+\.py)::(test_\w+)", page.read_text())]
    assert len(found) > 20
    for file, name in found:
        path = REPO / "tests" / file.removeprefix("tests/")
        assert path.exists() and name in functions(path), f"{file}::{name}"


# ---- pages ------------------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_charts_know_every_metric_that_is_logged_and_no_other(finished_run: Path) -> None:
    logged = {key for line in read_lines(finished_run / "metrics.jsonl") for key in line}
    known = [metric.key for metric in METRICS]
    assert len(set(known)) == len(known)
    assert logged - {STEP, "epoch"} == set(known) - {"perf/gpu_memory_gb"}  # which only a GPU has
