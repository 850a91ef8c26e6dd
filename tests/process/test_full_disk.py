"""A disk that is full or read-only for a while costs no step and no row, and each failed save is reported."""

import os
import re
import resource
import subprocess
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.program import small_run
from helpers.trainings import assert_same_end, at_step, run_to_end
from tinyimnet.distributed import preemption
from tinyimnet.files import read_lines
from tinyimnet.run import checkpoint

OPTIONS = {"train__epochs": 4, "run__save_every": 3, "run__log_every": 1}  # 24 steps, saves at 3, 6, 9, ...


def limit_files(size: int) -> None:
    """Limit files to `size` bytes, so that writes fail as on a full disk, but with EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def each_save_is_waited_for() -> None:
    """Wait for each save, so that it meets the disk of its own step even on a busy machine."""
    submit = checkpoint.Saver.submit

    def waiting(saver: checkpoint.Saver, *arguments: Any, **options: Any) -> None:
        submit(saver, *arguments, **options)
        futures.wait([saver._in_flight])

    checkpoint.Saver.submit = waiting


def no_space(size: int, start: int, stop: int) -> None:
    each_save_is_waited_for()
    at_step(start, partial(limit_files, size))
    at_step(stop, partial(limit_files, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, tiny_data) -> Path:
    folder = tmp_path_factory.mktemp("untouched")
    assert run_to_end(small_run(tiny_data, folder / "run", **OPTIONS), folder / "log") == [0]
    return folder / "run"


@pytest.mark.parametrize("size", [20_000, 500], ids=["checkpoints", "metrics and output too"])
def test_a_run_goes_on_while_nothing_can_be_saved_and_saves_again(size, untouched, arguments, tmp_path: Path) -> None:
    """Weights, metrics and the best checkpoint, which was due meanwhile, equal those of an undisturbed run."""
    codes = run_to_end(arguments(**OPTIONS), tmp_path / "log", before=partial(no_space, size, 5, 14))
    assert codes == [0], (tmp_path / "log").read_text()
    assert_same_end(untouched, tmp_path / "run")
    failed = [line["perf/failed_saves"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert failed[3] == 0 and failed[-1] == 3  # the saves at steps 6, 9 and 12
    if size > 500:
        assert "Checkpoint not written: File too large; training continues" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_asked_to_stop_on_a_full_disk_it_says_that_it_could_not_save(processes, arguments, tmp_path: Path) -> None:
    run, full = tmp_path / "run", partial(full_and_stopped, tmp_path / "run")
    assert run_to_end(arguments(**OPTIONS), tmp_path / "log", processes=processes, before=full) == [2] * processes
    (error,) = (line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error"))
    assert error.startswith("error: the checkpoint of step ") and "(File too large)" in error
    assert checkpoint.load_newest(run / "checkpoints")["step"] == 6
    assert not (run / "REQUEUE").exists()


def full_and_stopped(run: Path) -> None:
    preemption.LOOK = 0  # at every step
    each_save_is_waited_for()

    def fill() -> None:
        limit_files(20_000)
        (run / "STOP").touch()

    at_step(8, fill)


def test_a_disk_that_is_full_at_the_end_costs_nothing_but_a_second_start(untouched, arguments, tmp_path: Path) -> None:
    filling = partial(at_step, 21, partial(limit_files, 20_000))
    assert run_to_end(arguments(**OPTIONS), tmp_path / "log", before=filling) == [2]
    assert "(File too large)" in (tmp_path / "log").read_text().splitlines()[-1]
    assert not (tmp_path / "run" / "DONE").exists()
    assert run_to_end(arguments(**OPTIONS), tmp_path / "log") == [0]
    assert_same_end(untouched, tmp_path / "run")


def test_a_profile_that_does_not_fit_on_the_disk_is_one_warning(untouched, arguments, tmp_path: Path) -> None:
    full = partial(no_space, 20_000, 11, 12)  # while the profile of step 11 is written
    assert run_to_end(arguments(**OPTIONS, run__profile=1), tmp_path / "log", before=full) == [0]
    warnings = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("WARNING")]
    assert warnings == [f"WARNING: {tmp_path}/run/profile is not written: torch could not write the trace"]
    assert [path.name for path in (tmp_path / "run/profile").iterdir()] == ["operators.txt"]
    assert_same_end(untouched, tmp_path / "run")


def test_an_alert_reaches_wandb(arguments, tmp_path: Path) -> None:
    codes = run_to_end(
        arguments(**OPTIONS, tracking__wandb="offline"),
        tmp_path / "log",
        before=partial(with_wandb, 20_000, 5, 14),
    )
    assert codes == [0]
    (record,) = (tmp_path / "run" / "wandb").rglob("*.wandb")
    assert re.search(rb"Checkpoint not written[^:]", record.read_bytes())  # with a colon it would be the console output


def with_wandb(size: int, start: int, stop: int) -> None:
    del os.environ["WANDB_MODE"]
    no_space(size, start, stop)


# ---- a real file system, which needs root -------------------------------------------------------------------------


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 40 MB; a run starts only if two checkpoints of 1,000,000 parameters fit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--recursive", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def full(disk: Path) -> None:
    each_save_is_waited_for()
    at_step(5, partial(fill, disk))
    at_step(14, (disk / "filler").unlink)


def read_only(disk: Path) -> None:
    folder = str(disk / "run" / "checkpoints")

    def lock() -> None:
        mount("--bind", folder, folder)
        mount("-o", "remount,ro,bind", folder)

    each_save_is_waited_for()
    at_step(5, lock)
    at_step(14, lambda: subprocess.run(["umount", folder], check=True))


@pytest.mark.long
@pytest.mark.parametrize("fault, reason", [(full, "No space left on device"), (read_only, "Read-only file system")])
def test_a_real_disk_that_is_full_or_read_only_for_a_while(
    fault, reason: str, small_disk: Path, untouched, arguments, tmp_path: Path
) -> None:
    run = small_disk / "run"
    codes = run_to_end(arguments(**OPTIONS, run__dir=run), tmp_path / "log", before=partial(fault, small_disk))
    assert codes == [0], (tmp_path / "log").read_text()
    assert f"Checkpoint not written: {reason}; training continues" in (tmp_path / "log").read_text()
    assert_same_end(untouched, run)
