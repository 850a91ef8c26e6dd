"""Run folders as a training leaves them, and a fake Slurm with canned answers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyimnet.launch import runs
from tinyimnet.run.metrics import STEP


def attempt(
    job: str = "", *, started: float = 1000.0, step: int = 0, restart: int = 0, nodes: tuple[str, ...] = ("n1", "n2")
) -> dict:  # fmt: skip
    """A line of attempts.jsonl."""
    return {"started": started, "job": job, "restart": restart, "nodes": list(nodes), "processes": 4, "step": step,
            "total_steps": 5000}  # fmt: skip


def sent(job: str, *, submitted: float = 500.0, output: str = "", earlier: tuple[str, ...] = ()) -> dict:
    """The content of a job.json."""
    return {"cluster": "slurm", "job": job, "submitted": submitted, "output": output, "earlier": list(earlier)}


def logged(step: int, **values: float) -> dict:
    """A line of metrics.jsonl."""
    return {STEP: step, "perf/images_per_s": 1234.5, "train/loss": 3.0, **values}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a run folder; more files are name=content, as text, JSON or JSON lines."""

    def make(name: str, config: str | None = "train: {epochs: 3, global_batch_size: 100}\n", **files: object) -> Path:
        path = tmp_path / "runs" / name
        (path / "logs").mkdir(parents=True)
        if config is not None:
            (path / "config.yaml").write_text(config)
        for file, content in files.items():
            if isinstance(content, list):
                content = "".join(json.dumps(line) + "\n" for line in content)
            text = content if isinstance(content, str) else json.dumps(content)
            (path / file.replace("__", ".")).write_text(text)
        return path

    return make


def finished(make_run: Callable[..., Path], name: str, top1: float, *, seed: int, lr: float = 0.1) -> Path:
    """Make the folder of a finished run."""
    config = (
        f"run: {{dir: runs/{name}, seed: {seed}}}\ndata: {{root: /data/{name}}}\noptim: {{lr: {lr}, name: sgd}}\n"
        f"tracking: {{project: {name}}}\n"
    )
    return make_run(name, config, DONE={"val/ema_top1": top1, "val/ema_top1_flip": top1 + 0.5})


class Slurm:
    """Fake Slurm commands with canned answers, which record their calls; tests/cluster runs the real ones."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, int]] = {}
        self.asked: list[tuple[str, str]] = []

    def answer(self, command: str, *lines: str, code: int = 0) -> None:
        """Make a command available that prints these lines and exits with this code."""
        self.answers[command] = "".join(line + "\n" for line in lines), code

    def calls(self, command: str) -> list[str]:
        """Return the arguments of each call of a command."""
        return [arguments for name, arguments in self.asked if name == command]

    def which(self, command: str) -> str | None:
        """Stands in for shutil.which."""
        return command if command in self.answers else None

    def run(self, command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        """Stands in for subprocess.run with check=True."""
        name, *arguments = command
        self.asked.append((name, " ".join(arguments)))
        if name not in self.answers:
            raise FileNotFoundError(2, "No such file or directory", name)
        output, code = self.answers[name]
        if code:
            raise subprocess.CalledProcessError(code, command, output, f"{name}: error: slurm is away\n")
        return subprocess.CompletedProcess(command, 0, output, "")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A fake Slurm that has only the commands for which a test calls `answer`."""
    slurm = Slurm()
    monkeypatch.setattr(runs.shutil, "which", slurm.which)
    monkeypatch.setattr(runs.subprocess, "run", slurm.run)
    return slurm
