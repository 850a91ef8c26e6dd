"""Sections on one GPU: the machine, what a step waits for, bits, snapshots, memory."""

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from throughput import make_dataset

from helpers.trainings import equal
from result import Result, claim, measured, skipped
from subject import BATCHES, GPU, NETWORKS, copied, synchronise, trainer
from tinyimnet.distributed import gpus
from tinyimnet.run import checkpoint
from tinyimnet.training import memory as estimate

KINDS = [*((name, "bf16") for name in NETWORKS), ("tiny1m", "fp32"), ("tiny1m", "fp16")] if GPU else [("smoke", "fp32")]


def machine(_: Path) -> Iterator[Result]:
    """What the other results belong to."""
    found = gpus.describe(0)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), **found["gpu_versions"]}
    yield measured("machine", device=found["device"], GPUs=torch.cuda.device_count(), **versions)


def waits(out: Path) -> Iterator[Result]:
    """No step and no snapshot waits for the GPU, which would leave it idle until the next launch."""
    for name, precision in KINDS:
        made = trainer(name, BATCHES[-1], out, precision)
        for _ in range(3):  # the first steps allocate
            made.train_step()
        made.state.snapshot()
        what = f"a step and a snapshot wait for nothing: {name}, {precision}"
        try:
            with waiting_is_an_error():
                for _ in range(3):
                    made.train_step()
                made.state.snapshot()
            yield claim(what, True) if GPU else skipped(what)
        except RuntimeError as error:
            yield claim(what, False, because=str(error)[:200])


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Let torch raise where the host waits for the GPU."""
    if not GPU:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def bits(out: Path) -> Iterator[Result]:
    """A run ends with the same bits with and without an interruption in its middle."""
    half = 12 if GPU else 2
    for name, precision in KINDS:
        whole = trainer(name, BATCHES[-1], out / f"whole-{name}-{precision}", precision)
        for _ in range(2 * half):
            whole.train_step()
        folder = out / f"parts-{name}-{precision}"
        first = trainer(name, BATCHES[-1], folder, precision)
        for _ in range(half):
            first.train_step()
        first.save(best=False)
        first.finish_saving()
        second = trainer(name, BATCHES[-1], folder, precision)
        second.state.restore(checkpoint.load_newest(folder / "checkpoints") or {})
        for _ in range(half):
            second.train_step()
        yield claim(f"interrupted and resumed ends with the same bits: {name}, {precision}",
                    equal(copied(whole), copied(second)))  # fmt: skip
    yield from undetermined(out)


def undetermined(out: Path) -> Iterator[Result]:
    """Torch knows no kernel in a step whose result may vary from call to call."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name in NETWORKS:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer(name, BATCHES[-1], out).train_step()
            synchronise()
        names = {str(warning.message).split()[0] for warning in said if "deterministic" in str(warning.message)}
        what = f"torch knows no kernel of a step as non-deterministic: {name}"
        if not GPU:
            yield skipped(what)
        else:
            yield claim(what, not names, **({"kernels": ", ".join(sorted(names))} if names else {}))


def snapshot(out: Path) -> Iterator[Result]:
    """A snapshot is of the moment, whatever the next steps do to the weights."""
    made = trainer(NETWORKS[0], BATCHES[-1], out)
    for _ in range(3):
        made.train_step()
    kept = {name: weight.clone() for name, weight in made.bare.state_dict().items()}
    state, complete = made.state.snapshot()
    for _ in range(3):
        made.train_step()
    complete()
    holds = all(torch.equal(kept[name].cpu(), copy) for name, copy in state["model"].items())
    yield claim("a snapshot does not see later steps", holds)


def memory(out: Path) -> Iterator[Result]:
    """The memory that the program announces is enough, and not far too much."""
    for name in NETWORKS:
        for batch in BATCHES:
            what = f"a step needs at most what the program announces: {name}, batch {batch}"
            made = trainer(name, batch, out)
            announced = estimate.footprint(made.config, make_dataset(out, 4 * batch)).of(batch) / 1e9
            if GPU:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(3):
                made.train_step()
            peak, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.memory_reserved() / 1e9
            if GPU:
                yield claim(what, peak <= announced, announced_GB=announced, peak_GB=peak, reserved_GB=reserved)
            else:
                yield skipped(what)
            del made
            torch.cuda.empty_cache()
