"""Session fixtures: a small prepared data set, a finished run, and a clean process for each test."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# One thread per test: two workers with two threads each on two cores mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from helpers import here
from helpers.program import small_run
from tinyimnet.data import soft_labels, synthetic
from tinyimnet.data.dataset import open_dataset

# The tests count processes, not GPUs, so they run on the CPU even where there are GPUs.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
pytest_plugins = [
    "helpers.clock", "helpers.one_process", "helpers.run_folders", "helpers.slurm_cluster", "helpers.sources",
    "helpers.wandb_server.server",
]  # fmt: skip


def pytest_collection_finish() -> None:
    """Freeze all imported objects, so that the garbage collection at the end of a training skips them."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 200 classes: 200 training, 200 validation and 200 test images."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    synthetic.prepare_synthetic(root, train_per_class=1, val_per_class=1, test_per_class=1)
    return root


@pytest.fixture(scope="session")
def teacher_logits(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of soft labels for tiny_data: random logits."""
    file = tmp_path_factory.mktemp("teacher") / "logits.safetensors"
    logits = np.random.default_rng(0).normal(-5, 3, (200, 200))
    soft_labels.write(file, logits, open_dataset(tiny_data, verify=False), ["random"])
    return file


@pytest.fixture
def arguments(tiny_data: Path, tmp_path: Path):
    """Return a function that calls `small_run` on tiny_data and tmp_path/run."""
    return lambda run__dir=tmp_path / "run", data__root=tiny_data, **overrides: small_run(
        data__root, run__dir, **overrides
    )


@pytest.fixture(scope="session")
def finished_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps; tests must not change it."""
    return here.train_here(tiny_data, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Start each test without W&B, launcher or site variables, and Accelerate's global state."""
    with here.clean_process():
        yield
