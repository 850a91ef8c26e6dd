"""The structure of the code and of the tests that the README describes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.program import REPO
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import METRICS, STEP

PACKAGE = sorted((REPO / "tinyimnet").rglob("*.py"))
CODE = [*PACKAGE, REPO / "train.py"]
TESTS = sorted((REPO / "tests").rglob("test_*.py"))
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# Imports go one way: a folder, or a top-level module, may import itself and those in earlier rows.
LAYERS = [
    {"streams"},
    {"errors"},
    {"files"},
    {"config_file"},
    {"config", "console", "cli"},
    {"config_types", "config_check"},
    {"config_cli"},
    {"distributed"},
    {"data"},
    {"model"},
    {"run"},
    {"evaluation"},
    {"tracking"},
    {"report"},
    {"training"},
    {"train"},
    {"launch", "commands"},
    {"__main__"},
]


def named(path: Path) -> str:
    """Return the name of a module: tinyimnet/run/lock.py -> tinyimnet.run.lock."""
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


MODULES = {named(path): path for path in CODE}


def imported(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Yield the full names of the modules that a file imports; with `at_once`, only those outside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
    """Return what an import of `module` loads: our modules, and the top-level names of other packages."""
    if module not in MODULES:
        return seen | {module.partition(".")[0]}
    if module not in seen:
        seen = seen | {module}
        for name in imported(MODULES[module], at_once=True):
            seen = all_imported(name, seen)
    return seen


def part_of(module: str) -> str:
    """Return the folder or the top-level module: tinyimnet.run.lock -> run."""
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


def test_there_are_no_import_cycles() -> None:
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


def test_an_init_file_has_a_docstring_and_exports_nothing() -> None:
    folders = [path for path in PACKAGE if path.stem == "__init__"]
    assert len(folders) == 1 + len({path.parent for path in PACKAGE} - {REPO / "tinyimnet"})
    for path in folders:
        docstring, *others = ast.parse(path.read_text()).body
        assert len(others) == (path.parent.name == "tinyimnet")  # __version__
        assert isinstance(docstring, ast.Expr) and len(docstring.value.value) > 20, path  # type: ignore[attr-defined]


def test_only_the_modules_that_the_linter_exempts_import_wandb() -> None:
    told = re.search(r'"tinyimnet/tracking/\{([\w,]+)\}\.py" = \["TID251"\]', (REPO / "pyproject.toml").read_text())
    assert told
    users = {named(path) for path in CODE if any(re.match(r"wandb\b", name) for name in imported(path))}
    assert users == {f"tinyimnet.tracking.{name}" for name in told[1].split(",")}


def test_only_launch_imports_submitit() -> None:
    users = {path.parent.name for path in CODE if "submitit" in imported(path)}
    assert users == {"launch"}


def test_only_its_own_command_imports_tensorboard() -> None:
    users = {named(path) for path in CODE if any(re.match(r"tensorboard\b", name) for name in imported(path))}
    assert users == {"tinyimnet.launch.tensorboard"}


def test_only_the_source_of_parquet_files_imports_pyarrow() -> None:
    users = {named(path) for path in CODE if any(re.match(r"pyarrow\b", name) for name in imported(path))}
    assert users == {"tinyimnet.data.parquet"}


def test_only_the_export_imports_onnx() -> None:
    users = {named(path) for path in CODE if any(name.startswith("onnx") for name in imported(path))}
    assert users == {"tinyimnet.evaluation.export"}


def test_the_training_does_not_import_launch() -> None:
    assert not {name for name in all_imported("tinyimnet.train", set()) if name.startswith("tinyimnet.launch")}


def test_only_these_modules_import_accelerate() -> None:
    users = {named(path) for path in CODE if any(re.match(r"accelerate\b", name) for name in imported(path))}
    assert users == {
        "tinyimnet.train", "tinyimnet.distributed.preemption", "tinyimnet.distributed.preflight",
        "tinyimnet.distributed.process_group", "tinyimnet.evaluation.evaluator", "tinyimnet.training.state",
        "tinyimnet.training.step", "tinyimnet.training.trainer",
    }  # fmt: skip


@pytest.mark.parametrize(
    "module",
    [
        *(f"tinyimnet.launch.{name}" for name in ("requeue", "status", "cancel", "logs", "seeds", "tensorboard")),
        "tinyimnet.run.record", "tinyimnet.cli", "tinyimnet.data.prepare", "tinyimnet.commands.unpack",
    ],
)  # fmt: skip
def test_modules_that_must_start_fast_do_not_import_torch(module: str) -> None:
    """process/test_imports.py checks a real process."""
    heavy = {"torch", "accelerate", "submitit", "wandb", "matplotlib", "safetensors", "pyarrow"}
    assert not all_imported(module, set()) & heavy


# ---- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CODE, ids=named)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 310
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 65, node.name


def test_train_py_only_starts_the_program() -> None:
    assert (REPO / "train.py").read_text().count("\n") < 25


# ---- tests ------------------------------------------------------------------------------------------------------


def functions(path: Path) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_test_names_fit_on_a_line() -> None:
    assert [f"{path.name}::{name}" for path in TESTS for name in functions(path) if len(name) > 70] == []


def test_test_names_and_files_are_unique() -> None:
    names = [path.name for path in TESTS]
    assert sorted(set(names)) == sorted(names)
    for path in TESTS:
        assert len(set(functions(path))) == len(functions(path)), path.name


def test_test_files_stay_short() -> None:
    for path in TESTS:
        if path.parent.name in ("unit", "process"):
            assert path.read_text().count("\n") <= 350, path.name


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name == "unit"], ids=lambda path: path.stem)
def test_unit_tests_start_no_processes(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    starts = (
        r"\bPopen\b|subprocess\.(run|check|call)|\bmultiprocessing\b|\bos\.fork\b|\bforkpty\b|\bSERVER\b|\brun_to_end\b"
    )
    if path.name != Path(__file__).name:
        assert not re.findall(rf"{starts}|helpers\.rendezvous|helpers\.program import .*\b(python|launch)\b", source)


def test_tests_that_the_pages_name_exist() -> None:
    found = [name for page in PAGES for name in re.findall(r"([\w/]*test_\w+\.py)::(test_\w+)", page.read_text())]
    assert len(found) > 20
    for file, name in found:
        path = REPO / "tests" / file.removeprefix("tests/")
        assert path.exists() and name in functions(path), f"{file}::{name}"


# ---- pages ------------------------------------------------------------------------------------------------------


def test_no_example_starts_one_process_with_a_launcher() -> None:
    """Its warnings and tracebacks would bury the sentences of the program; performance.md measures its cost."""
    shown = [*PAGES, *CODE, *(REPO / "configs").rglob("*.yaml"), REPO / "Makefile"]
    alone = re.compile(r"accelerate launch (-m tinyimnet|train\.py|\{program\})")
    assert [path.name for path in shown if alone.search(path.read_text())] == ["performance.md"]


def test_every_local_link_has_a_target() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_metrics_has_exactly_the_logged_metrics(finished_run: Path) -> None:
    logged = {key for line in read_lines(finished_run / "metrics.jsonl") for key in line}
    known = [metric.key for metric in METRICS]
    assert len(set(known)) == len(known)
    assert logged - {STEP, "epoch"} == set(known) - {"perf/gpu_memory_gb", "perf/mfu"}  # which only a GPU has
