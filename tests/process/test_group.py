"""If one process of a group dies, fails or hangs, the others soon exit with an error, and a log names the first."""

import os
import signal
from pathlib import Path

from helpers.trainings import Death, at_step, run_to_end, start, wait

BOUND = 10  # seconds within which the others must exit; on GPUs the bound is train.timeout


def raise_there() -> None:
    def out_of_memory() -> None:
        raise MemoryError("no memory for a test")

    if os.environ["RANK"] == "1":
        at_step(5, out_of_memory)


def hang_there() -> None:
    if os.environ["RANK"] == "1":
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def logs(run: Path) -> dict[int, str]:
    return {rank: (run / "logs" / f"rank_{rank}.log").read_text() for rank in range(2)}


def test_a_killed_process_ends_the_group(arguments, tmp_path: Path) -> None:
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, death=Death("step", 5, rank=1), timeout=BOUND)
    assert codes == [1, -9]
    assert "another process of the group is gone or stuck" in logs(tmp_path / "run")[0]
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_exception_ends_the_group_and_its_own_log_has_the_traceback(arguments, tmp_path: Path) -> None:
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, before=raise_there, timeout=BOUND)
    assert codes == [1, 1]
    assert "MemoryError: no memory for a test" in logs(tmp_path / "run")[1]
    assert "another process of the group is gone" in logs(tmp_path / "run")[0]
    assert (tmp_path / "log").read_text().count("Traceback") == 1


def test_a_process_that_hangs_ends_the_others_after_the_timeout(arguments, tmp_path: Path) -> None:
    ranks = start(arguments(train__timeout=2), tmp_path / "log", processes=2, before=hang_there)
    try:
        assert wait(ranks[:1], timeout=BOUND + 2) == [1]
        assert "gone or stuck (Timed out" in logs(tmp_path / "run")[0]
    finally:
        ranks[1].kill()
        ranks[1].join()


def test_after_an_exception_the_same_command_finishes_the_run(arguments, tmp_path: Path) -> None:
    run_to_end(arguments(), tmp_path / "log", processes=2, before=raise_there, timeout=BOUND)
    assert run_to_end(arguments(), tmp_path / "log", processes=2) == [0, 0]
    assert (tmp_path / "run" / "DONE").exists()
