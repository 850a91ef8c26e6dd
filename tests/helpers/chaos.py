"""Random faults for tests/chaos: drawn from a seed, applied and undone on a timeline, in any combination."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from helpers.program import REPO
from helpers.trainings import EVERYTHING, assert_same_end, metrics
from helpers.wandb_server.runs import steps
from helpers.wandb_server.server import WandbServer
from tinyimnet.errors import UserError
from tinyimnet.files import read_lines
from tinyimnet.run import checkpoint
from tinyimnet.run.folder import checkpoint_path, checkpoint_steps
from tinyimnet.run.metrics import STEP

SEED = os.environ.get("CHAOS_SEED", "1")
SECONDS = 30 * float(os.environ.get("CHAOS_MINUTES", "10"))  # for new rounds of each of the two tests
PATIENCE = 400  # seconds from the last fault to the end of the run: several restarts on a busy machine
STEPS = 480  # six an epoch, a checkpoint every third: long enough for several faults in one attempt
LONG = EVERYTHING | {
    "train__epochs": STEPS // 6, "train__precision": "fp32", "run__save_every": 3, "run__eval_every": 4,
    "tracking__finish_timeout": 5,
}  # fmt: skip
Undo = Callable[[], object]
Fault = Callable[[int], Undo | None]  # takes a number that chooses one of several processes, nodes or bytes


class Event(NamedTuple):
    """A fault on the timeline of a round; times are in seconds from its start."""

    start: float
    end: float
    fault: str
    choice: int


def rounds() -> Iterator[str]:
    """Yield the seeds of rounds while there is time. The first is SEED itself: SEED=7-3 repeats round 3 of SEED=7."""
    deadline, number = time.monotonic() + SECONDS, 1
    while number == 1 or time.monotonic() < deadline:
        yield SEED if number == 1 else f"{SEED}-{number}"
        number += 1


def draw(seed: str, faults: Mapping[str, Fault], count: int, pause: float) -> list[Event]:
    """Draw `count` events, up to `pause` seconds apart; each fault lasts up to 10 s, so that some overlap."""
    rng, events, now = random.Random(seed), [], 0.0
    names = sorted(faults)
    for _ in range(count):
        now += rng.uniform(0, pause)
        events.append(Event(now, now + rng.uniform(1, 10), rng.choice(names), rng.randrange(1 << 30)))
    return events


def play(
    events: list[Event],
    faults: Mapping[str, Fault],
    finished: Callable[[], bool],
    repair: Callable[[], object] = lambda: None,
) -> None:
    """Apply and undo faults at their times, then wait until the run is finished.

    Args:
        events: what to do.
        faults: how to do it.
        finished: restarts what has ended, and returns whether the run is finished.
        repair: called after the last fault.
    """
    begin = time.monotonic()
    todo: list[tuple[float, str, Callable[[], object]]]

    def apply(event: Event) -> None:
        if undo := faults[event.fault](event.choice):
            todo.append((event.end, f"end of {event.fault}", undo))

    todo = [(event.start, event.fault, partial(apply, event)) for event in events]
    todo.append((max(event.end for event in events), "no more faults", repair))
    while not finished() or todo:
        now = time.monotonic() - begin
        for entry in [entry for entry in todo if entry[0] <= now]:
            todo.remove(entry)
            say(f"{now:6.1f} s  {entry[1]}")
            entry[2]()
        assert now < max(event.end for event in events) + PATIENCE, "the run did not finish"
        time.sleep(0.1)
    say(f"{time.monotonic() - begin:6.1f} s  finished")


def say(line: str) -> None:
    """Print at once, because a person watches."""
    print(line, flush=True)


# ---- processes -------------------------------------------------------------------------------------------------


def marked(mark: str) -> dict[str, psutil.Process]:
    """Find the live processes whose environment has CHAOS=`mark`, by role: "rank 0", "mirror", "srun" and so on."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environ = process.environ()
            if environ.get("CHAOS") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[role(process, environ)] = process
    return found


def role(process: psutil.Process, environ: Mapping[str, str]) -> str:
    """Name what a process does in a training."""
    command = shlex.join(process.cmdline())
    if "wandb_mirror" in command:
        return "mirror"
    if "wandb-core" in command:
        return "wandb-core"
    if re.search(r"\btrain\.py\b", command) and process.name().startswith("python"):
        rank = environ.get("SLURM_PROCID", environ.get("RANK", ""))
        return f"rank {rank}" if rank else "launcher"
    return process.name()


def signalling(
    numbers: Sequence[signal.Signals], processes: Callable[[], Mapping[str, psutil.Process]], of: str
) -> Fault:
    """A fault that sends one of some signals to one of the processes whose role begins with `of`."""

    def send(choice: int) -> None:
        number = numbers[choice % len(numbers)]
        having = sorted((name, process) for name, process in processes().items() if name.startswith(of))
        if not having:
            return
        name, process = having[choice // len(numbers) % len(having)]
        with suppress(psutil.Error):
            process.send_signal(number)
            say(f"          {number.name} to {name}")

    return send


# ---- files -----------------------------------------------------------------------------------------------------


def file_faults(run: Path) -> dict[str, Fault]:
    """Faults of the run folder and of its disk, which must be a small one."""
    filler = run.parent / "filler"

    def full(_: int) -> Undo:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65536))
        return lambda: filler.unlink(missing_ok=True)

    def damaged(choice: int) -> None:
        """Flip a bit of the newest checkpoint if there is an intact one besides; without one the run would be lost.

        The last one of the run is left alone: it is compared at the end, and a finished run does not read it.
        """
        saved = checkpoint_steps(run / "checkpoints")
        paths = [checkpoint_path(run / "checkpoints", step) for step in saved]
        if STEPS not in saved and len([path for path in paths if intact(path)]) >= 2:
            with suppress(FileNotFoundError), paths[-1].open("r+b") as file:  # the training may remove it meanwhile
                file.seek(choice % paths[-1].stat().st_size)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))

    def stopped(_: int) -> None:
        with suppress(OSError):
            (run / "STOP").touch()

    return {"disk full": full, "newest checkpoint damaged": damaged, "STOP file": stopped}


def intact(path: Path) -> bool:
    """Return whether a checkpoint can be loaded."""
    try:
        checkpoint.load(path)
    except UserError:
        return False
    return True


# ---- results ---------------------------------------------------------------------------------------------------


def assert_lost_nothing(untouched: Path, run: Path, server: WandbServer) -> None:
    """Assert bit-identical weights and metrics, no unexpected error in a rank's log, and each row once at W&B."""
    assert_same_end(untouched, run)
    for log in (run / "logs").iterdir():
        assert not re.search(r"ERROR rank \d+ failed", log.read_text()), log.read_text()
    environ = os.environ | server.environment(run.parent / "home")
    sync = [sys.executable, "-m", "tinyimnet", "sync", str(run)]
    sent = subprocess.run(sync, cwd=REPO, env=environ, capture_output=True, text=True)
    assert sent.returncode == 0, sent.stderr
    [stored] = server.store.runs.values()
    assert steps(stored) == [line[STEP] for line in read_lines(run / "metrics.jsonl")]
    sent_rows = [{key: row[key] for key in line} for line, row in zip(metrics(run), rows(stored), strict=True)]
    assert sent_rows == metrics(run)


def rows(stored: object) -> list[dict]:
    """Return the rows of a stored run that have a global step, in its order."""
    return sorted((row for row in stored.history if STEP in row), key=lambda row: row[STEP])  # type: ignore[attr-defined]
