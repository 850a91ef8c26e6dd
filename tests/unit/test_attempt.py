"""The start of an attempt: who owns the run folder, where the run resumes, and what a refused start leaves."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tinyimnet import config_cli, errors, train
from tinyimnet.config import Config
from tinyimnet.run.attempt import find_run, lock_run, open_run, this_attempt
from tinyimnet.run.folder import MARKERS, read_attempts, read_config
from tinyimnet.run.lock import RunLock

HERE = [{"host": "here", "code": ""}]

MISTAKES = {
    "unknown key": (["--optim.lrr=1"], "optim.lrr is not a known key"),
    "batch larger than the data": (
        ["--train.global_batch_size=999999"],
        "train.global_batch_size is 999999, more than",
    ),
    "network above the budget": (["--model.widths=[512,512]"], "model.max_parameters is 1,000,000"),
    "run folder that cannot be": (["--run.dir=/dev/null/run"], "run.dir /dev/null/run cannot be written"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_user_error_is_one_sentence_and_leaves_no_run_folder(case, arguments, tmp_path: Path, capsys) -> None:
    extra, sentence = case
    assert errors.run(train.main, [*arguments(), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_a_checkpoint_a_different_configuration_may_start(arguments, tmp_path: Path) -> None:
    first, second = (config_cli.load(arguments(optim__lr=lr)) for lr in (0.1, 0.2))
    run_dir = find_run(first)
    lock = RunLock(run_dir)
    for settings in (first, second):
        lock_run(find_run(settings), settings, lock)
        open_run(run_dir, settings, this_attempt(HERE, 0, 12))
        lock.release()
    assert read_config(run_dir)["optim"]["lr"] == 0.2


def test_the_configuration_is_checked_again_under_the_lock(finished_run: Path, arguments, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    other = config_cli.load(arguments(optim__lr=0.2))
    with RunLock(tmp_path / "run") as lock, pytest.raises(errors.UserError, match="optim.lr: 0.1 -> 0.2"):
        lock_run(tmp_path / "run", other, lock)


def test_a_different_configuration_does_not_resume_a_run(finished_run: Path, arguments, capsys) -> None:
    before = (finished_run / "config.yaml").read_text()
    assert errors.run(train.main, arguments(run__dir=finished_run, optim__lr=0.3, run__log_every=9)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run.dir ")
    assert "optim.lr: 0.1 -> 0.3" in error
    assert "log_every" not in error
    assert (finished_run / "config.yaml").read_text() == before


def test_an_altered_array_is_found_before_the_training(arguments, tiny_data: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(tiny_data, tmp_path / "altered")
    path = tmp_path / "altered" / "train_images.npy"
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert errors.run(train.main, arguments(data__root=tmp_path / "altered")) == 2
    assert f"{path} differs from its manifest" in capsys.readouterr().err


# ---- files that a new attempt writes ----------------------------------------------------------------------------


def begin(run_dir: Path, settings: Config, *, job: str = "", step: int = 0) -> None:
    run_dir.mkdir(exist_ok=True)
    with RunLock(run_dir) as lock:
        lock_run(run_dir, settings, lock)
        open_run(run_dir, settings, replace(this_attempt(HERE, step, 12), job=job))


def test_each_attempt_is_added_to_the_list(arguments, tmp_path: Path) -> None:
    settings, run = config_cli.load(arguments()), tmp_path / "run"
    begin(run, settings, job="7")
    with (run / "attempts.jsonl").open("a") as file:
        file.write('{"started": 1')  # cut off by a crash
    begin(run, settings, job="8", step=4)
    assert [(each.job, each.step, each.nodes) for each in read_attempts(run)] == [
        ("7", 0, ("here",)),
        ("8", 4, ("here",)),
    ]
    assert (run / "attempts.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize(
    "jobs, stays", [(("7", "7"), True), (("7", "8"), False), (("", ""), False)],
    ids=["a later attempt of one job", "another job", "by hand"],
)  # fmt: skip
def test_markers_of_the_last_stop_are_removed_but_a_pending_stop_stays(jobs, stays, arguments, tmp_path: Path) -> None:
    settings, run = config_cli.load(arguments()), tmp_path / "run"
    begin(run, settings, job=jobs[0])
    for marker in MARKERS:
        (run / marker).write_text("{}")
    (run / "DONE").unlink()  # otherwise nothing would start
    begin(run, settings, job=jobs[1])
    assert [marker for marker in MARKERS if (run / marker).exists()] == ["STOP"] * stays


def test_checkpoints_of_later_steps_are_set_aside(arguments, tmp_path: Path) -> None:
    """They were skipped as damaged, and new checkpoints are of earlier steps."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("step_00000004.pt", "step_00000008.pt", ".step_00000008.pt.partial", "step_00000012.json"):
        (run / "checkpoints" / name).touch()
    open_run(run, config_cli.load(arguments()), this_attempt(HERE, 4, 12))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step_00000004.pt", "step_00000008.pt.damaged",
    ]  # fmt: skip
    (run / "logs").rmdir()  # created for the logs of the ranks
