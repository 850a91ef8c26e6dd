"""Every text file is UTF-8 in any locale, and every output is written atomically: rules over all source files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.program import REPO

PROGRAMS = [*sorted((REPO / "benchmarks").glob("*.py")), *sorted((REPO / "results").glob("*.py")), REPO / "train.py"]
FILES = [*sorted((REPO / "tinyimnet").rglob("*.py")), *PROGRAMS]
# What may write without a temporary name: the module that does it for all others; and files that grow, are locked, or
# are in a folder that gets its name when it is complete.
MAY_WRITE = {
    "tinyimnet/files.py", "tinyimnet/streams.py", "tinyimnet/errors.py", "tinyimnet/run/lock.py",
    "tinyimnet/tracking/tracker.py", "tinyimnet/tracking/uploaded.py", "tinyimnet/data/writer.py",
    "tinyimnet/data/download.py",
    "tinyimnet/data/staging.py", "benchmarks/tracking.py", "benchmarks/data_path.py",
    "tinyimnet/data/unpack.py",  # into a folder that is renamed when it is complete
    "tinyimnet/launch/tensorboard.py",  # in place, for a TensorBoard that has read a part of it
}  # fmt: skip


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with the last part of the name that is called: Path.open -> open."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            yield name, node


def of(path: Path, found: list[ast.Call]) -> list[str]:
    return [f"{path.relative_to(REPO)}:{call.lineno}" for call in found]


def options(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def mode(call: ast.Call) -> str:
    """The mode of an `open`, in whatever position."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return next((text for text in texts if text and set(text) <= set("rwxab+t")), "r")


def owner(call: ast.Call) -> str:
    return ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""


def opens(path: Path) -> Iterator[ast.Call]:
    for name, call in calls(path):
        if name == "open" and owner(call) not in ("os", "Image", "archive"):
            yield call


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_text_file_and_every_output_of_a_program_has_an_encoding(path: Path) -> None:
    """Beside ruff's PLW1514, which sees neither expressions such as (run / "DONE").read_text() nor subprocesses."""
    without = [call for call in opens(path) if "b" not in mode(call) and "encoding" not in options(call)]
    for name, call in calls(path):
        if name in ("write_text", "FileHandler") or (name == "read_text" and owner(call)):
            without += [call] * ("encoding" not in options(call))
        # of a subprocess
        without += [call] * bool(options(call) & {"text", "universal_newlines"} and "encoding" not in options(call))
    assert of(path, without) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_output_is_written_atomically(path: Path) -> None:
    if str(path.relative_to(REPO)) in MAY_WRITE:
        return
    found = [call for call in opens(path) if set(mode(call)) & set("wxa+")]
    for name, call in calls(path):
        into_memory = {"content", "buffer"} & {ast.unparse(argument) for argument in call.args}
        onto_a_path = name in ("savefig", "save") and call.args and not into_memory
        known = ("view", "report", "trainer", "self", "")  # other methods of that name
        if name in ("write_text", "write_bytes", "tofile", "savez", "to_csv") or (
            onto_a_path and owner(call) not in known
        ):
            found.append(call)
    assert of(path, found) == []
