"""A user error exits with code 2 and one sentence on all processes, and leaves the run folder unchanged.

unit/test_config_errors.py and unit/test_refusals.py have most of the errors.
"""

import re
import shutil
import socket
from pathlib import Path

import pytest

from helpers.program import small_run
from helpers.trainings import Death, run_to_end
from tinyimnet.distributed import rendezvous


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny_data: Path) -> Path:
    """A run that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("begun")
    arguments = small_run(tiny_data, folder / "run")
    assert run_to_end(arguments, folder / "log", death=Death("step", 9)) == [-9]
    (folder / "run" / "LOCK").unlink()
    return folder / "run"


def assert_sentence(line: str, pattern: str) -> None:
    assert re.search(pattern, line), line
    assert line.startswith("error") and line.endswith((".", "?")), line


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def altered(data: Path, folder: Path) -> Path:
    """Copy the data and flip one bit."""
    copy = Path(shutil.copytree(data, folder / "altered"))
    content = bytearray((copy / "val_images.npy").read_bytes())
    content[-1] ^= 1
    (copy / "val_images.npy").write_bytes(content)
    return copy


@pytest.mark.parametrize(
    "changes, pattern",
    [
        (["--optim.lrr=1"], "optim.lrr is not a known key; did you mean optim.lr"),
        (["--optim.lr=0.3"], "was started with a different configuration .*optim.lr: 0.1 -> 0.3"),
        ("data", "val_images.npy differs from its manifest"),
    ],
    ids=["the command line", "the run", "the data"],
)
def test_a_user_error_exits_with_2_and_leaves_the_run_unchanged(
    changes, pattern: str, begun: Path, tiny_data: Path, tmp_path: Path
) -> None:
    before = contents(begun)
    options = small_run(altered(tiny_data, tmp_path) if changes == "data" else tiny_data, begun)
    options += changes if isinstance(changes, list) else []
    assert run_to_end(options, tmp_path / "log") == [2]
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert_sentence(line, pattern)
    assert contents(begun) == before


GROUP = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def no_goodbye() -> None:
    rendezvous.GOODBYE = 0.2


@pytest.mark.parametrize(
    "busy, pattern",
    [
        (True, "cannot open the port of rank 0, .*address already in use"),
        (False, "rank 1 did not arrive within 2 s"),
    ],
    ids=["port in use", "rank 1 missing"],
)
def test_a_group_that_cannot_form(busy: bool, pattern: str, begun: Path, tiny_data: Path, tmp_path: Path) -> None:
    before = contents(begun)
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {**GROUP, "MASTER_PORT": str(server.getsockname()[1])}
        if not busy:
            server.close()
        options = small_run(tiny_data, begun, train__timeout=2)
        assert run_to_end(options, tmp_path / "log", environment=environment, before=no_goodbye) == [2]
    assert_sentence((tmp_path / "log").read_text().splitlines()[-1], pattern)
    assert contents(begun) == before


def test_a_global_batch_that_the_processes_do_not_divide(begun: Path, tiny_data: Path, tmp_path: Path) -> None:
    before = contents(begun)
    assert run_to_end(small_run(tiny_data, begun), tmp_path / "log", processes=3) == [2, 2, 2]
    assert_sentence(
        (tmp_path / "log").read_text().splitlines()[-1],
        "train.global_batch_size is 32 and must be divisible by the 3 processes",
    )
    assert contents(begun) == before


def test_more_processes_than_images_in_a_step(tiny_data: Path, tmp_path: Path) -> None:
    options = small_run(tiny_data, tmp_path / "run", train__global_batch_size=1)
    assert run_to_end(options, tmp_path / "log", processes=2) == [2, 2]
    assert_sentence(
        (tmp_path / "log").read_text().splitlines()[-1],
        "train.global_batch_size is 1 and must be divisible by the 2",
    )
    assert not (tmp_path / "run").exists()
