"""run.profile: what it leaves in the run folder, and that the training does not notice it."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from helpers.clock import Clock
from helpers.trainings import EVERYTHING, equal, metrics
from tinyimnet.run import checkpoint
from tinyimnet.training.profile import WARM_UP


def operators(run: Path) -> Counter[str]:
    """Return the number of calls of each operator in the trace of a run."""
    trace = json.loads(gzip.decompress((run / "profile/trace.json.gz").read_bytes()))
    return Counter(event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op")


@pytest.mark.parametrize("steps, recorded", [(1, 1), (2, 2), (9, 2)], ids=["one", "to the end", "beyond the end"])
def test_the_steps_after_the_warm_up_are_in_the_trace(steps: int, recorded: int, trainer, tmp_path, capsys) -> None:
    made = trainer(run__profile=steps, run__eval_every=9)
    assert made.total_steps == WARM_UP + 2
    made.fit()
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in made.bare.modules())
    assert operators(tmp_path / "run")["aten::convolution_backward"] == recorded * layers
    rows = re.findall(r"^ *(\S+).* (\d+) *$", (tmp_path / "run/profile/operators.txt").read_text(), re.M)
    assert len(rows) == 10 and ("aten::convolution_backward", str(recorded * layers)) in rows
    assert sorted(path.name for path in (tmp_path / "run/profile").iterdir()) == ["operators.txt", "trace.json.gz"]
    assert f"profile of {recorded} step" in capsys.readouterr().out


def test_a_profiled_run_has_the_bits_of_any_other(trainer, tmp_path: Path) -> None:
    for name, steps in (("plain", 0), ("profiled", 1)):
        trainer(**EVERYTHING, run__dir=tmp_path / name, run__profile=steps).fit()
    assert (tmp_path / "profiled/profile").exists() and not (tmp_path / "plain/profile").exists()
    plain, profiled = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("plain", "profiled"))
    assert equal(plain, profiled)
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "profiled")


def test_the_parts_of_the_recorded_steps_are_printed(trainer, clock: Clock, monkeypatch, capsys) -> None:
    """Neither log lines, which restart the clock, nor the end of the recording disturb them or the metrics."""
    made = trainer(run__profile=2, run__log_every=1)

    def step() -> None:
        first = made.step == WARM_UP
        long = 100 if made.step < WARM_UP else 1
        for part, seconds in (("data", 0.2 if first else 0.0), ("forward_backward", 0.6), ("optimizer", 0.1)):
            with made.clock.part(part):
                clock.passes(long * seconds)
        clock.passes(0.1 if first else 0.3)
        made.state.step += 1
        made.clock.steps += 1

    monkeypatch.setattr(made, "train_step", step)
    stop = torch.profiler.profile.stop
    monkeypatch.setattr(torch.profiler.profile, "stop", lambda recorded: (clock.passes(9), stop(recorded)))
    with made.profile:
        while made.step < WARM_UP + 2:
            made.clock.restart()
            made.take_step()
    assert made.clock.read(1)["perf/step_ms"] == pytest.approx(1000)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("profile"))
    assert line.startswith("profile of 2 steps: data 10 %, forward + backward 60 %, optimizer 10 %, wait 20 % (")


def test_an_attempt_shorter_than_the_warm_up_says_that_it_recorded_nothing(trainer, tmp_path, caplog) -> None:
    trainer(run__profile=3, train__epochs=1).fit()
    assert not (tmp_path / "run/profile").exists()
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warning == "run.profile recorded nothing: this attempt took 6 steps, and the first 10 are not recorded"


def test_a_run_that_fails_leaves_the_steps_up_to_there(trainer, tmp_path: Path, monkeypatch) -> None:
    made = trainer(run__profile=9)
    monkeypatch.setattr(made, "at_boundary", lambda: 1 / 0 if made.step == WARM_UP + 1 else None)
    with pytest.raises(ZeroDivisionError):
        made.fit()
    assert operators(tmp_path / "run")


def test_a_profile_that_cannot_be_written_is_one_warning(trainer, tmp_path: Path, caplog) -> None:
    made = trainer(run__profile=1)
    (tmp_path / "run/profile").touch()
    assert made.fit() == ""
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warning.startswith(f"{tmp_path}/run/profile is not written: ")
