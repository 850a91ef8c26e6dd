"""What the GPU check examines: the real trainer of a configuration, on a GPU or on the CPU."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from throughput import make_trainer

from tinyimnet import config_cli
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.training.trainer import Trainer

GPU = torch.cuda.is_available()
# Configurations and batch sizes; a CPU only shows that the code runs.
NETWORKS = ("tiny1m", "tiny1m_sprint", "baseline") if GPU else ("smoke",)
BATCHES = (1024, 128) if GPU else (8,)
STEPS = 20 if GPU else 2


def trainer(name: str, batch: int, folder: Path, precision: str = "bf16", **options: bool) -> Trainer:
    """The trainer of a configuration at 64 px, at its first step; `options` are keys of `train`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # the trainer before may have had another precision
    config = config_cli.load([f"--config={name}", f"--train.global_batch_size={batch}"])
    train = replace(config.train, device_batch_size=0, init_from="", precision=precision, **options)
    augment = replace(config.augment, start_resolution=64, end_resolution=64)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = process_group.start(train, Rendezvous())
    return make_trainer(replace(config, train=train, augment=augment), accelerator, folder)


def copied(made: Trainer) -> dict:
    """A complete snapshot of the training state."""
    state, complete = made.state.snapshot()
    complete()
    return state


def synchronise() -> None:
    """Wait until the GPU has done everything that was launched."""
    if GPU:
        torch.cuda.synchronize()


def seconds_per_step(made: Trainer) -> tuple[float, float]:
    """Seconds of a step, and the part in which the host prepares and launches it."""
    for _ in range(3):
        made.train_step()
    synchronise()
    started = time.perf_counter()
    for _ in range(STEPS):
        made.train_step()
    host = time.perf_counter() - started
    synchronise()
    return (time.perf_counter() - started) / STEPS, host / STEPS
