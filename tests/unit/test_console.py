"""The console: progress on a terminal, on a dumb terminal and in a log; commands to paste."""

import sys
from io import StringIO
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
        progress.update(140, METRICS)
        progress.update(200, EVALUATED)
    return file.getvalue()


def test_a_log_has_a_line_for_each_update(monkeypatch) -> None:
    lines = shown(monkeypatch, force_terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1.4/6 step 140/600: loss 2.500, 1,234 images/s, ETA 0:00:00")
    assert lines[1].startswith("epoch 2.0/6 step 200/600: loss 2.500, 1,234 images/s, val top-1 40.00 %, EMA 41.00 %")


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
