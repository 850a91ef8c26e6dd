"""A small prepared data set and ways to run the program on it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tinyimnet import synthetic

REPO = Path(__file__).resolve().parent.parent
# A network and a run that take seconds. 200 training images: 6 steps of 32 an epoch.
SMALL = {
    "config": "configs/smoke.yaml",
    "model.widths": "[16,16]",
    "model.depths": "[1,1]",
    "model.width": "1.0",
    "model.head_width": "0",
    "train.epochs": "2",
    "train.global_batch_size": "32",
    "optim.lr": "0.1",
    "optim.warmup_epochs": "1",
    "run.log_every": "2",
}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: 200 classes, 200 training, 200 validation and 200 test images."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    synthetic.prepare_synthetic(root, train_per_class=1, val_per_class=1, test_per_class=1)
    return root


@pytest.fixture
def arguments(tiny_data: Path, tmp_path: Path):
    """A function that gives train.py's arguments for a small run in tmp_path, with overrides."""

    def make(**overrides: object) -> list[str]:
        keys = {
            **SMALL,
            "data.root": str(tiny_data),
            "run.dir": str(tmp_path / "run"),
            **{key.replace("__", "."): str(value) for key, value in overrides.items()},
        }
        return [f"--{key}={value}" for key, value in keys.items()]

    return make


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch):
    """Each test starts without W&B, without a launcher's variables and without Accelerate's global state."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in list(os.environ):
        if name.startswith(("SLURM_", "ACCELERATE_", "TORCHELASTIC_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
        ):
            monkeypatch.delenv(name)
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    AcceleratorState._reset_state(reset_partial_state=True)


def launch(command: list[str], timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in the repository and wait for it."""
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=timeout)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run `python ...` in the repository."""
    return launch([sys.executable, *arguments], **options)
