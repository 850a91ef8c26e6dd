"""A run killed at any moment resumes to bit-identical results; with another process count, equal up to rounding."""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.program import ACCELERATE, REPO, small_run
from helpers.trainings import (
    DISTILLED,
    EVERYTHING,
    MOMENTS,
    SERVER,
    Death,
    arrange,
    assert_same_end,
    last_step,
    metrics,
    run_to_end,
)
from tinyimnet.distributed import reduction
from tinyimnet.model import network
from tinyimnet.run import checkpoint
from tinyimnet.run.metrics import STEP

SEED = os.environ.get("FAULTS_SEED", "1")
MIXED = {
    "augment__mixup_probability": 0.3,
    "augment__cutmix_probability": 0.4,
    "augment__label_smoothing": 0.1,
}
HARD = EVERYTHING | {"run__save_every": 3}
WHOLE = 300  # seconds for a long run, also on a CPU that emulates bf16


def kill_again_and_again(arguments, untouched: Path, *, kills: int, processes: int, rng: random.Random) -> None:
    """Kill a run `kills` times, let it finish, and compare its results with an undisturbed run."""
    run, log = untouched.with_name("run"), untouched.with_name("log")
    deaths: list[Death] = []
    while len(deaths) < kills:
        if len(deaths) % len(MOMENTS) == 0:
            moments = rng.sample(MOMENTS, len(MOMENTS))
        deaths.append(Death.drawn(moments.pop(), rng, last_step(run), processes))
        codes = run_to_end(arguments(run__dir=run), log, processes=processes, death=deaths[-1])
        assert codes[deaths[-1].rank] == -9 and 0 not in codes, (deaths, codes)
    assert run_to_end(arguments(run__dir=run), log, processes=processes, timeout=WHOLE) == [0] * processes
    assert_same_end(untouched, run)


LONG = pytest.mark.long
KILLS = [
    pytest.param(3, 4, "bf16", 1, id="3-kills-bf16-1"),
    pytest.param(3, 4, "fp32", 2, id="3-kills-fp32-2"),
    *(pytest.param(25, 25, precision, processes, id=f"25-kills-{precision}-{processes}", marks=LONG)
      for precision in ("fp32", "bf16") for processes in (1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("kills, epochs, precision, processes", KILLS)
def test_killed_at_random_moments_it_comes_to_the_same_end(
    kills, epochs, precision, processes, arguments, tmp_path: Path
) -> None:
    def make(run__dir: Path) -> list[str]:
        return arguments(**{**HARD, "train__epochs": epochs}, train__precision=precision, run__dir=run__dir)

    untouched, log = tmp_path / "untouched", tmp_path / "log"
    assert run_to_end(make(untouched), log, processes=processes, timeout=WHOLE) == [0] * processes
    rng = random.Random(f"{SEED} {precision} {processes}")
    kill_again_and_again(make, untouched, kills=kills, processes=processes, rng=rng)


@pytest.mark.long
def test_the_plug_pulled_on_a_launcher_and_all_it_started_at_random_times(arguments, tmp_path: Path) -> None:
    """SIGKILL from outside, as when a node dies: nothing in the processes knows the moment."""
    untouched, run, rng = tmp_path / "untouched", tmp_path / "run", random.Random(f"{SEED} plug")
    options = HARD | {"train__epochs": 90, "run__eval_every": 9, "train__precision": "fp32"}
    whole = arguments(**options, run__dir=untouched)
    assert run_to_end(whole, tmp_path / "log", processes=2, timeout=WHOLE) == [0, 0]
    command = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kills = 0
    while not (run / "DONE").exists():
        process = subprocess.Popen(
            [*command, *arguments(**options)], cwd=REPO, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.wait(rng.uniform(5, 8) if kills < 8 else WHOLE) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 3
    assert_same_end(untouched, run)


def test_four_processes_resume_bit_identically_although_buckets_change(arguments, tmp_path: Path) -> None:
    """DDP rearranges the gradients in its buckets after the first backward pass of an attempt."""
    untouched, run, log = tmp_path / "untouched", tmp_path / "run", tmp_path / "log"
    options = HARD | {"train__epochs": 1, "train__precision": "fp32"}
    assert run_to_end(arguments(**options, run__dir=untouched), log, processes=4) == [0] * 4
    death = Death("step", 5, rank=3)
    assert 0 not in run_to_end(arguments(**options, run__dir=run), log, processes=4, death=death)
    assert run_to_end(arguments(**options, run__dir=run), log, processes=4) == [0] * 4
    assert_same_end(untouched, run)


def test_a_distillation_in_micro_batches_resumes_bit_identically(arguments, teacher_logits, tmp_path: Path) -> None:
    untouched, run, log = tmp_path / "untouched", tmp_path / "run", tmp_path / "log"
    options = HARD | DISTILLED | {
        "data__soft_labels": teacher_logits, "train__device_batch_size": 8, "train__epochs": 1,
        "train__precision": "fp32",
    }  # fmt: skip
    assert run_to_end(arguments(**options, run__dir=untouched), log, processes=2) == [0, 0]
    assert 0 not in run_to_end(arguments(**options, run__dir=run), log, processes=2, death=Death("step", 5, rank=1))
    assert run_to_end(arguments(**options, run__dir=run), log, processes=2) == [0, 0]
    assert "resumed at step 3" in log.read_text()
    assert_same_end(untouched, run)


# ---- DDP's own all-reduce ---------------------------------------------------------------------------------------

DDPS_OWN = HARD | {"train__epochs": 1, "train__precision": "fp32", "train__ordered_reduction": "false"}


def without_ordered_sums() -> None:
    reduction.average_gradients = None


@pytest.fixture(scope="module")
def by_all_reduce(tmp_path_factory, tiny_data) -> Path:
    """A run of two processes whose gradients DDP averages, because nothing else can."""
    folder = tmp_path_factory.mktemp("all-reduce")
    options = small_run(tiny_data, folder / "run", **DDPS_OWN)
    assert run_to_end(options, folder / "log", processes=2, before=without_ordered_sums) == [0, 0]
    return folder / "run"


def test_two_processes_resume_bit_identically_with_ddps_all_reduce(by_all_reduce, arguments, tmp_path: Path) -> None:
    """With more processes the bits depend on the buckets of gloo, and with NCCL on the network."""
    log, death = tmp_path / "log", Death("step", 5, rank=1)
    assert 0 not in run_to_end(arguments(**DDPS_OWN), log, processes=2, death=death)
    assert run_to_end(arguments(**DDPS_OWN), log, processes=2) == [0, 0]
    assert "resumed at step 3" in log.read_text()
    assert_same_end(by_all_reduce, tmp_path / "run")


def test_the_mean_of_two_has_the_same_bits_in_rank_order(by_all_reduce, arguments, tmp_path: Path) -> None:
    in_order = arguments(**DDPS_OWN | {"train__ordered_reduction": "true"})
    assert run_to_end(in_order, tmp_path / "log", processes=2) == [0, 0]
    assert_same_end(by_all_reduce, tmp_path / "run")


# ---- a save -----------------------------------------------------------------------------------------------------


def save_two(folder: Path) -> None:
    for step in (10, 20):
        checkpoint.save(folder, {"step": step}, step=step, keep=1, best=True)


def save_two_and_die(folder: Path, operation: int) -> None:
    arrange(Death("saving", operation))
    save_two(folder)


OPERATIONS = 24  # fsync, rename and folder fsync, for the .json and .pt of best and step, in two saves
# The short form takes one in four, which covers each file and each of the three operations; the last one kills nothing.
MOMENTS_OF_A_SAVE = [
    pytest.param(operation, marks=() if operation % 4 == 1 else LONG) for operation in range(1, OPERATIONS + 2)
]


@pytest.mark.parametrize("operation", MOMENTS_OF_A_SAVE)
def test_killed_before_any_step_of_a_save_it_has_the_old_or_the_new_one(operation: int, tmp_path: Path) -> None:
    process = SERVER.Process(target=save_two_and_die, args=(tmp_path, operation))
    process.start()
    process.join()
    assert process.exitcode == (0 if operation > OPERATIONS else -9)
    state = checkpoint.load_newest(tmp_path)  # raises if all checkpoints are damaged
    assert state in ({"step": 10}, {"step": 20}) or (state is None and operation <= OPERATIONS / 2)
    # A run that resumes at step 20 does not see its best result again.
    if (tmp_path / "step_00000020.pt").exists():
        assert checkpoint.load(tmp_path / "best.pt") == {"step": 20}
    checkpoint.remove_leftovers(tmp_path, state["step"] if state else 0)
    save_two(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json", "best.pt", "step_00000020.json", "step_00000020.pt",
    ]  # fmt: skip


# ---- other numbers of processes ---------------------------------------------------------------------------------

TWELVE_STEPS = {"train__epochs": 2, "train__precision": "fp32", "run__save_every": 4, "optim__lr": 0.05}


class Stateless(nn.GroupNorm):
    """Normalises each image on its own, but has the buffer that the program averages over ranks."""

    def __init__(self, channels: int):
        super().__init__(4, channels)
        self.register_buffer("running_mean", torch.zeros(channels))


def without_batch_statistics() -> None:
    network.BatchNorm = Stateless


def parameters(run: Path) -> torch.Tensor:
    """Raw and averaged weights at the end of a run, without BatchNorm's running statistics."""
    state = checkpoint.load_newest(run / "checkpoints")
    assert state["step"] == 12
    return torch.cat(
        [t.flatten() for kind in ("model", "ema") for name, t in state[kind].items() if "running" not in name]
    )


def assert_equal_but_for_rounding(expected: Path, found: Path) -> None:
    torch.testing.assert_close(parameters(found), parameters(expected), rtol=1e-4, atol=1e-5)
    for left, right in zip(metrics(expected), metrics(found), strict=True):
        assert right[STEP] == left[STEP]
        assert right["train/loss"] == pytest.approx(left["train/loss"], rel=1e-5)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, tiny_data) -> Path:
    """A run of 12 steps without accumulation and without batch statistics on one process."""
    folder = tmp_path_factory.mktemp("one")
    options = small_run(tiny_data, folder / "run", **MIXED, **TWELVE_STEPS)
    assert run_to_end(options, folder / "log", before=without_batch_statistics) == [0]
    return folder / "run"


@pytest.mark.parametrize(
    "processes, device_batch_size",
    [(1, 8), pytest.param(2, 0, marks=LONG), (2, 8), pytest.param(4, 0, marks=LONG), (4, 4)],
)
def test_the_same_weights_however_many_processes_and_micro_batches(
    processes, device_batch_size, one_process: Path, tiny_data, tmp_path: Path
) -> None:
    options = small_run(
        tiny_data, tmp_path / "run", **MIXED, **TWELVE_STEPS, train__device_batch_size=device_batch_size
    )
    codes = run_to_end(options, tmp_path / "log", processes=processes, before=without_batch_statistics)
    assert codes == [0] * processes
    assert_equal_but_for_rounding(one_process, tmp_path / "run")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, tiny_data) -> Path:
    """A 12-step run on 2 processes in micro-batches of 8, with BatchNorm and DropPath; a copy is killed in step 11."""
    folder = tmp_path_factory.mktemp("two")
    for name, death in (("run", None), ("killed", Death("step", 11))):
        options = small_run(tiny_data, folder / name, **HARD | TWELVE_STEPS, train__device_batch_size=8)
        codes = run_to_end(options, folder / "log", processes=2, death=death)
        assert (0 in codes) == (death is None)
    assert last_step(folder / "killed") == 8
    return folder


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_of_two_processes_goes_on_with_one_or_four(
    processes: int, two_processes: Path, tiny_data, tmp_path: Path
) -> None:
    """Micro-batches of equal size normalise the same groups of images and drop the same branches."""
    run = Path(shutil.copytree(two_processes / "killed", tmp_path / "run"))
    options = small_run(tiny_data, run, **HARD | TWELVE_STEPS, train__device_batch_size=8)
    assert run_to_end(options, tmp_path / "log", processes=processes) == [0] * processes
    assert "resumed at step 8" in (tmp_path / "log").read_text()
    assert_equal_but_for_rounding(two_processes / "run", run)
