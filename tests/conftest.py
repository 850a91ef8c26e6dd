"""A small prepared data set and ways to run the program on it."""

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tinyimnet import preemption, synthetic
from tinyimnet.errors import UserError
from tinyimnet.meeting import Meeting

# The tests count processes, not GPUs; who has some runs them on the CPU all the same.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
pytest_plugins = ["slurm_cluster", "wandb_server"]
REPO = Path(__file__).resolve().parent.parent
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
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


def small_run(data_root: Path, run_dir: Path, **overrides: object) -> list[str]:
    """train.py's arguments for a run of seconds; an override is section__key=value."""
    keys = {**SMALL, "data.root": data_root, "run.dir": run_dir}
    keys |= {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"--{key}={value}" for key, value in keys.items()]


@pytest.fixture
def arguments(tiny_data: Path, tmp_path: Path):
    """`small_run` on tiny_data in tmp_path."""
    return lambda run__dir=tmp_path / "run", data__root=tiny_data, **overrides: small_run(
        data__root, run__dir, **overrides
    )


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch):
    """Each test starts without W&B, the variables of a launcher or a site, and Accelerate's global state."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in list(os.environ):
        if name.startswith(("SLURM_", "ACCELERATE_", "TORCHELASTIC_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "RUNS_ROOT",
            "DATA_ROOT",
            "STAGE_TO",
        ):
            monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    logging.getLogger("tinyimnet").handlers.clear()  # logs/rank_0.log of a run in this process
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


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def together(
    action: Callable[[Meeting], object], world_size: int, ranks: list[int] | None = None, timeout: float = 20
):
    """What `action` gives on each of these ranks, or the text of its UserError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def run(rank: int) -> None:
        try:
            met = Meeting(timeout, environment(rank, world_size, port))
            answers.put((rank, action(met)))
            met.part()  # rank 0 has the store
        except UserError as error:
            answers.put((rank, str(error)))
        answers.close()
        answers.join_thread()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in ranks or range(world_size)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(10)
    return [found[rank] for rank in sorted(found)]
