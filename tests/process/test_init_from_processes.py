"""train.init_from on several processes, and after a kill."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.program import small_run
from helpers.sources import with_classes
from helpers.trainings import Death, run_to_end
from tinyimnet.evaluation.weights import FINAL
from tinyimnet.files import read_lines

# Six steps whose learning rate is too small to change a weight. The size of a micro-batch does not depend on the number
# of processes, so BatchNorm normalises the same groups.
STILL = {"train__epochs": 1, "optim__lr": 1e-30, "optim__warmup_epochs": 0, "train__device_batch_size": 16}


@pytest.fixture
def file(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the weights of a run of another seed."""
    copy = tmp_path / "begin.safetensors"
    copy.write_bytes((finished_run / FINAL).read_bytes())
    return copy


def test_every_process_starts_with_the_given_weights(file: Path, tiny_data: Path, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        options = small_run(tiny_data, run := tmp_path / str(processes), train__init_from=file, **STILL, run__seed=5)
        assert run_to_end(options, tmp_path / "log", processes=processes) == [0] * processes
        losses.append([line["train/loss"] for line in read_lines(run / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_after_a_save_a_killed_run_resumes_without_that_file(file: Path, tiny_data: Path, tmp_path: Path) -> None:
    whole, killed = (
        small_run(tiny_data, tmp_path / name, train__init_from=file, run__seed=5) for name in ("whole", "killed")
    )
    log = tmp_path / "log"
    assert run_to_end(whole, log) == [0]
    assert run_to_end(killed, log, death=Death("step", 3)) == [-9]
    assert run_to_end(killed, log, death=Death("step", 9)) == [-9]
    file.unlink()
    assert run_to_end(killed, log) == [0]
    ends = [load_file(tmp_path / name / FINAL) for name in ("whole", "killed")]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_a_network_learns_other_classes_on_two_processes_and_after_a_kill(
    file: Path, tiny_data: Path, tmp_path: Path
) -> None:
    data, log = with_classes(tiny_data, tmp_path / "other", [f"c{i}" for i in range(10)]), tmp_path / "log"
    keys = {"train__init_from": file, "augment__start_resolution": 48, "run__seed": 5, "train__device_batch_size": 16}
    alone, pair = (small_run(data, tmp_path / name, **keys) for name in ("alone", "pair"))
    assert run_to_end(alone, log, timeout=120) == [0]
    assert run_to_end(pair, log, processes=2, death=Death("step", 9), timeout=120) != [0, 0]
    assert run_to_end(pair, log, processes=2, timeout=120) == [0, 0]
    assert log.read_text().count("(200 there, 10 here); the classifier starts anew") == 2
    losses = [[line["train/loss"] for line in read_lines(tmp_path / n / "metrics.jsonl")] for n in ("alone", "pair")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    weights = [load_file(path) for path in (file, tmp_path / "pair" / FINAL)]
    assert weights[1]["classifier.2.weight"].shape == (10, 16)
    assert not torch.equal(weights[0]["stage1.0.branch.0.weight"], weights[1]["stage1.0.branch.0.weight"])
