"""The console: progress on a terminal, on a dumb terminal and in a log; commands to paste."""

import sys
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from tinyimnet import console

METRICS = {"train/loss": 2.5, "perf/images_per_s": 1234.5}
EVALUATED = {**METRICS, "val/top1": 40.0, "val/ema_top1": 41.0}


def shown(monkeypatch: pytest.MonkeyPatch, **terminal) -> str:
    """The output of a run of 600 steps in 6 epochs, with log lines at steps 140 and 200."""
    file = StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, width=80, highlight=False, soft_wrap=True, **terminal))
    with console.Progress(600, 100, lambda since, step: (600 - step) / (step - since), enabled=True) as progress:
        progress.update(140, {**METRICS, "perf/mfu": 12.34})
        progress.update(200, EVALUATED)
    return file.getvalue()


def test_a_log_has_a_line_for_each_update(monkeypatch) -> None:
    lines = shown(monkeypatch, force_terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1.4/6 step 140/600: loss 2.500, 1,234 images/s, MFU 12.3 %, ETA 0:00:00")
    assert lines[1].startswith("epoch 2.0/6 step 200/600: loss 2.500, 1,234 images/s, val top-1 40.00 %, EMA 41.00 %")


@pytest.mark.parametrize("step_seconds", [0.1, 1, 3, 7, 25])
@pytest.mark.parametrize("terminal", [{"force_terminal": False}, {"force_terminal": True}], ids=["log", "TERM=dumb"])
def test_lines_come_soon_and_often_between_two_log_lines(step_seconds: float, terminal, monkeypatch) -> None:
    """However far apart the log lines are; no line can come within a step."""
    monkeypatch.setenv("TERM", "dumb")
    now, times = 0.0, []
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    file = StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, width=80, soft_wrap=True, **terminal))
    with console.Progress(10_000, 100, lambda since, step: (10_000 - step) / (step - since), enabled=True) as progress:
        for step in range(1, 1000):
            now += step_seconds
            before = file.tell()
            progress.alive(step)
            if file.tell() > before:
                times.append(now)
    assert times[0] <= step_seconds + console.FIRST_LINE
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) <= max(console.PAUSE, step_seconds) + 1e-6
    assert min(gaps) > console.PAUSE / 2  # and not a line for each of many short steps
    eta = console.clock(10_000 * step_seconds - times[0])
    assert file.getvalue().splitlines()[0].endswith(f": training, ETA {eta}")


def test_the_time_left_does_not_count_compilation(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    file = StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, width=80, soft_wrap=True, force_terminal=False))
    with console.Progress(100, 100, lambda since, step: (100 - step) / (step - since), enabled=True) as progress:
        now += 50
        progress.compiled(64, seconds=48, left=0)
        progress.update(1, METRICS)
    assert file.getvalue().splitlines()[-1].endswith("ETA 0:03:18")  # 99 steps of 2 s


def test_a_log_line_postpones_the_next_line_between(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    output = StringIO()
    monkeypatch.setattr(console, "console", Console(file=output, width=80, soft_wrap=True, force_terminal=False))
    with console.Progress(600, 100, lambda since, step: 1.0, enabled=True) as progress:
        for step in range(1, 41):
            now += 1
            if step % 8 == 0:
                progress.update(step, METRICS)
            progress.alive(step)
    assert [line.split()[3] for line in output.getvalue().splitlines()] == [
        "4/600:", "8/600:", "16/600:", "24/600:", "32/600:", "40/600:",
    ]  # fmt: skip


def test_an_evaluation_is_shown_too(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    output = StringIO()
    monkeypatch.setattr(console, "console", Console(file=output, width=80, soft_wrap=True, force_terminal=False))
    with console.Progress(600, 100, lambda since, step: 1.0, enabled=True) as progress:
        now = 20.0
        progress.alive(100, "evaluating")
    assert "epoch 1.0/6 step 100/600: evaluating, ETA " in output.getvalue()


def test_a_terminal_has_a_bar_and_keeps_a_line_for_each_evaluation(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = shown(monkeypatch, force_terminal=True, legacy_windows=False)
    assert "epoch 1.4/6 " in output and "\x1b[2K" in output
    assert "step 140/600" not in output and "step 200/600" in output


def test_a_dumb_terminal_gets_lines(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    output = shown(monkeypatch, force_terminal=True)
    assert "step 140/600" in output and "\x1b" not in output


def test_a_line_of_the_bar_fits_80_columns(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = shown(monkeypatch, force_terminal=True, color_system=None, legacy_windows=False)
    bars = [line for line in output.split("\r") if "epoch 1.4/6" in line]
    assert bars and "ETA" in bars[0]


def test_the_bar_of_a_long_fast_run_has_ten_cells_at_80_columns(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = StringIO()
    narrow = Console(file=file, width=80, highlight=False, soft_wrap=True, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "console", narrow)
    with console.Progress(300_000, 1000, lambda since, step: 1e9, enabled=True) as progress:
        progress.update(299_900, {"train/loss": 12.345, "perf/images_per_s": 1_234_567.0})
    line = next(line for line in file.getvalue().split("\r") if "epoch 299.9/300" in line)
    assert line.count("\u2501") + line.count("\u2578") + line.count("\u257a") >= 10, line


def test_one_is_singular() -> None:
    assert [console.counted(n, "epoch") for n in (0, 1, 2, 1000)] == ["0 epochs", "1 epoch", "2 epochs", "1,000 epochs"]


def test_a_command_uses_the_script_of_an_active_environment(monkeypatch, tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "tinyimnet"
    monkeypatch.setattr(console.shutil, "which", lambda _: str(script))
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert console.command("report", Path("runs/my run")) == "tinyimnet report 'runs/my run'"


def test_a_command_names_the_interpreter_of_an_inactive_environment(monkeypatch) -> None:
    monkeypatch.setattr(console.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python"))
    assert console.command("status") == ".venv/bin/python -m tinyimnet status"


def test_a_script_that_only_a_job_has_on_its_path_is_not_for_pasting(monkeypatch) -> None:
    monkeypatch.setattr(console.shutil, "which", lambda _: str(Path(sys.executable).parent / "tinyimnet"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert console.command("status").endswith("python -m tinyimnet status")


def test_a_path_is_relative_inside_the_working_directory_only() -> None:
    assert console.short(Path.cwd() / "runs" / "a") == Path("runs/a")
    assert console.short(Path("/elsewhere/a")) == Path("/elsewhere/a")
