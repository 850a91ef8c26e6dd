"""Attempts of a run: real processes of the real program, killed by SIGKILL at a moment that a test chooses.

They are forked from a server that has imported torch, so an attempt takes 0.5 s instead of 5 s.
"""

import gc
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from tinyimnet import errors
from tinyimnet.distributed import process_group
from tinyimnet.evaluation import evaluator, pictures, plots
from tinyimnet.files import read_lines
from tinyimnet.run import checkpoint, lock
from tinyimnet.training import optim

SERVER = multiprocessing.get_context("forkserver")
# What the program imports at start-up and, for the last three, later.
SERVER.set_forkserver_preload(["tinyimnet.train", "torch._dynamo", "torch.distributed.fsdp", "matplotlib.figure"])
# Random augmentation, stochastic depth and everything else that a resumed run has to draw again.
EVERYTHING = {
    "augment__mixup_probability": 0.3,
    "augment__cutmix_probability": 0.4,
    "augment__label_smoothing": 0.1,
    "augment__start_resolution": 48,
    "augment__end_resolution": 80,
    "augment__end_resolution_from": 0.8,
    "model__drop_path": 0.2,
    "model__whiten_stem": True,
    "optim__name": "muon",
    "optim__clip_grad_norm": 1.0,
}
# With a fixture's file as data__soft_labels.
DISTILLED = {"augment__soft_label_temperature": 3.0, "augment__soft_label_standardise": True}


class Death(NamedTuple):
    """SIGKILL of one rank.

    Attributes:
        moment: "step": at the beginning of step `count` of the run, when all earlier checkpoints are written. Or,
            counted in this attempt:
            "saved": after checkpoint `count`; "saving": before fsync or rename number `count` of its saves;
            "evaluating": before pass `count` over the validation images.
        count: see `moment`; from 1.
        rank: the rank that is killed.
    """

    moment: str
    count: int
    rank: int = 0

    @classmethod
    def drawn(cls, moment: str, rng: random.Random, after: int, processes: int) -> "Death":
        """Draw a death soon after step `after`; only rank 0 saves, so only rank 0 dies while saving."""
        last = {"step": 6, "saved": 2, "saving": 12, "evaluating": 3}[moment]
        count = rng.randint(1, last) + (after if moment == "step" else 0)
        return cls(moment, count, 0 if moment.startswith("sav") else rng.randrange(processes))


MOMENTS = ("step", "saved", "saving", "evaluating")


def run_to_end(arguments: list[str], log: Path, *, timeout: float = 60, **options: Any) -> list[int]:
    """Run train.py until all processes have ended, and return their exit codes (-9: killed); see `start`."""
    return wait(start(arguments, log, **options), timeout)


def start(
    arguments: list[str],
    log: Path,
    *,
    processes: int = 1,
    death: Death | None = None,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> list[Any]:
    """Start train.py.

    Args:
        arguments: of train.py.
        log: file to which the output of all processes is appended.
        processes: world size, all on this machine.
        death: which rank is killed, and when.
        before: called in each process before the program.
        environment: variables to set, or to remove if None.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [
        SERVER.Process(target=_attempt, args=(rank, processes, port, arguments, log, death, before, environment or {}))
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    return ranks


def wait(ranks: list[Any], timeout: float = 60) -> list[int]:
    """Return the exit codes of processes, which have to end within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for process in ranks:
        process.join(max(0, deadline - time.monotonic()))
    hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for rank in hanging:
        ranks[rank].kill()
    assert not hanging, f"ranks {hanging} still ran after {timeout} s"
    return [process.exitcode for process in ranks]


def _attempt(rank: int, processes: int, port: int, arguments, log: Path, death, before, environment) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    from tinyimnet import train

    torch.set_num_threads(1)  # the server imported torch before OMP_NUM_THREADS was set
    gc.freeze()  # `process_group.close` collects garbage: skip what the server imported
    lock.SETTLE = 0.05
    draw_nothing()
    if before:
        before()
    if death and death.moment == "step":
        save_before_the_next_step()
    if death and death.rank == rank:
        arrange(death)
    process_group.exit_process(errors.run(train.main, arguments, may_lose_output=True))


def draw_nothing() -> None:
    """Write empty pictures: the real ones, which process/test_train.py checks, take half of a short run."""

    def empty(*arguments: Any, **_: Any) -> None:
        path = next(argument for argument in arguments if isinstance(argument, Path))
        Image.new("RGB", (8, 8)).save(path)

    for module, names in (
        (plots, ("curves", "confusion", "reliability")),
        (pictures, ("image_grid", "image_rows")),
    ):
        for name in names:
            setattr(module, name, empty)


def arrange(death: Death) -> None:
    """Make this process kill itself at the moment of `death`."""
    calls = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls == death.count:
            die()

    if death.moment == "step":
        at_step(death.count, die)
    elif death.moment == "saved":
        checkpoint.save = _wrapped(checkpoint.save, after=step)
    elif death.moment == "evaluating":
        evaluator.evaluate = _wrapped(evaluator.evaluate, before=step)
    elif death.moment == "saving":
        fsync, replace = os.fsync, os.replace

        def arm() -> None:
            os.fsync, os.replace = _wrapped(fsync, before=step), _wrapped(replace, before=step)

        def disarm() -> None:
            os.fsync, os.replace = fsync, replace

        checkpoint.save = _wrapped(checkpoint.save, before=arm, after=disarm)


def save_before_the_next_step() -> None:
    """Write checkpoints in the foreground: on a slow disk the one of step 6 may not be complete before step 9."""
    submit = checkpoint.Saver.submit

    def submit_and_wait(saver: checkpoint.Saver, *args: Any, **options: Any) -> None:
        submit(saver, *args, **options)
        saver._in_flight.exception()

    checkpoint.Saver.submit = submit_and_wait


def at_step(step: int, action: Callable[[], object]) -> None:
    """Run an action at the beginning of a step (counted from 1), when its batch is drawn."""
    decay_at = optim.ema_decay_at

    def acting(done: int, decay: float) -> float:
        if done + 1 == step:
            action()
        return decay_at(done, decay)

    optim.ema_decay_at = acting


def _wrapped(function: Callable, before: Callable = lambda: None, after: Callable = lambda: None) -> Callable:
    def wrapper(*args: Any, **options: Any) -> Any:
        before()
        result = function(*args, **options)
        after()
        return result

    return wrapper


# ---- results of a run -----------------------------------------------------------------------------------------


def last_step(run: Path) -> int:
    """Return the step of the newest checkpoint, or 0 if there is none."""
    return max((int(path.stem[5:]) for path in (run / "checkpoints").glob("step_*.pt")), default=0)


def metrics(run: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without timings."""
    return [
        {key: value for key, value in line.items() if not key.startswith("perf/")}
        for line in read_lines(run / "metrics.jsonl")
    ]


def assert_same_end(expected: Path, found: Path) -> None:
    """Assert that two finished runs have bit-identical weights, EMA, optimizer, statistics, counters and metrics."""
    left, right = (checkpoint.load(run / "checkpoints" / f"step_{last_step(run):08d}.pt") for run in (expected, found))
    assert equal(left, right), [key for key in left if not equal(left[key], right[key])]
    assert metrics(expected) == metrics(found)
    for name in ("final.safetensors", "checkpoints/best.pt"):
        assert (expected / name).read_bytes() == (found / name).read_bytes(), name
    results = [json.loads((run / "DONE").read_text()) for run in (expected, found)]
    assert {k: v for k, v in results[0].items() if "perf/" not in k} == {
        k: v for k, v in results[1].items() if "perf/" not in k
    }


def equal(left: object, right: object) -> bool:
    """Return whether nested containers of tensors and numbers are bitwise equal."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right
