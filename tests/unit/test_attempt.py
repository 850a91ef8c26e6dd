"""The start of an attempt: who owns the run folder, where the run resumes, and what a refused start leaves."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from helpers.here import RANK
from tinyimnet import config_cli, errors, train
from tinyimnet.config import Config
from tinyimnet.distributed.cpu import cpu_name
from tinyimnet.files import read_lines
from tinyimnet.run.attempt import find_run, lock_run, open_run, this_attempt
from tinyimnet.run.folder import MARKERS, read_attempts, read_config
from tinyimnet.run.lock import RunLock

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
        open_run(run_dir, settings, this_attempt([RANK], 0, 12))
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


# ---- folders that are refused -----------------------------------------------------------------------------------


FOREIGN = {
    "a config.yaml": ["config.yaml"], "a note": ["notes.txt"], "a checkout": [".git/config"],
    "another project": ["config.yaml", "checkpoints/last.ckpt", "logs/events.log"],
}  # fmt: skip


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_with_files_of_somebody_else_is_refused_and_not_touched(names, arguments, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    assert errors.run(train.main, arguments()) == 2
    assert "is not a run folder and holds other files (" in capsys.readouterr().err
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == sorted(names)
    assert {(run / name).read_text() for name in names} == {"mine"}


@pytest.mark.parametrize(
    "names",
    [[], ["checkpoints/", "logs/"], ["train.log", "slurm-7.out"], ["submit-20260102-030405/code/train.py"], ["LOCK"]],
    ids=["empty", "a start on a full disk", "the output of its job", "a failed submission", "killed at the start"],
)
def test_the_folder_of_a_run_that_has_not_started_is_used(names, arguments, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in names:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    assert find_run(config_cli.load(arguments())) == tmp_path / "run"


LOST = {
    "all files": lambda run: [path.unlink() for path in (run / "checkpoints").glob("*.pt")],
    "the folder": lambda run: shutil.rmtree(run / "checkpoints"),
}


@pytest.mark.parametrize("record", ["SAVED", "attempts.jsonl"])
@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_a_run_whose_checkpoints_were_deleted_is_refused(
    lose, record, finished_run, arguments, tmp_path, capsys
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "DONE").unlink()
    if record == "attempts.jsonl":  # as of a run that an earlier version of the program began
        begin(run, config_cli.load(arguments()), step=6)
        (run / "SAVED").unlink()
    lose(run)
    before = (run / "attempts.jsonl").read_text(), (run / "metrics.jsonl").read_text()
    assert errors.run(train.main, arguments()) == 2
    error = capsys.readouterr().err
    assert "has no checkpoint, but it had one (" in error and "restore checkpoints/" in error and error.count("\n") == 1
    assert before == ((run / "attempts.jsonl").read_text(), (run / "metrics.jsonl").read_text())


def test_the_best_checkpoint_alone_is_enough_to_resume(finished_run: Path, arguments, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "DONE").unlink()
    for path in (run / "checkpoints").glob("step_*"):
        path.unlink()
    with RunLock(run) as lock:
        saved, _ = lock_run(find_run(config_cli.load(arguments())), config_cli.load(arguments()), lock)
    assert saved and saved["step"] > 0


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(arguments, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", config_cli.load(arguments())
    begin(run, settings)
    (run / "metrics.jsonl").write_text('{"step": 900}\n')  # its saves failed, on a full disk
    (run / "LOCK").touch()
    assert find_run(settings) == run


# ---- files that a new attempt writes ----------------------------------------------------------------------------


def begin(run_dir: Path, settings: Config, *, step: int = 0, **changes: Any) -> None:
    run_dir.mkdir(exist_ok=True)
    with RunLock(run_dir) as lock:
        lock_run(run_dir, settings, lock)
        open_run(run_dir, settings, replace(this_attempt([RANK], step, 12), **changes))


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


# ---- the environment of an attempt ------------------------------------------------------------------------------


@pytest.fixture
def resumed(finished_run: Path, arguments, tmp_path: Path, caplog) -> Callable[..., list[str]]:
    """Return a function that resumes a run whose second attempt had these other values, and returns the warnings."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "DONE").unlink()

    def resume(**others: str) -> list[str]:
        (line,) = read_lines(run / "attempts.jsonl")
        attempts = [line | {"environment": line["environment"] | values} for values in ({"torch": "1.0"}, others)]
        (run / "attempts.jsonl").write_text("".join(json.dumps(attempt) + "\n" for attempt in attempts))
        assert train.main(arguments()) == 0
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return resume


def test_an_attempt_in_another_environment_warns_and_names_it(resumed) -> None:
    (warning,) = resumed(device="an older CPU", torch="2.0.1")
    assert warning == (
        f"the environment has changed since the last attempt (device: an older CPU -> {cpu_name()}; "
        f"torch: 2.0.1 -> {version('torch')}), so the final weights may differ in their bits from those of an "
        "uninterrupted run; to avoid that, resume on nodes of one kind with the same versions."
    )


def test_an_attempt_in_the_same_environment_says_nothing(resumed) -> None:
    assert resumed() == []


def test_an_attempt_without_gpu_records_no_version_of_one(finished_run: Path) -> None:
    assert [*read_attempts(finished_run)[0].environment] == ["device", "python", "torch", "accelerate", "numpy"]


@pytest.mark.parametrize(
    "before, step", [({}, 4), ({"torch": "2.0.1"}, 0)], ids=["not recorded", "no step is left of it"]
)
def test_an_environment_that_left_nothing_to_compare_is_passed_over(before, step, arguments, tmp_path, caplog) -> None:
    begin(tmp_path / "run", config_cli.load(arguments()), environment=before)
    begin(tmp_path / "run", config_cli.load(arguments()), step=step)
    assert not caplog.records


def test_the_drivers_of_all_nodes_are_recorded() -> None:
    nodes = [{**RANK, "gpu_versions": {"driver": driver}} for driver in ("560.35.03", "535.104.05", "560.35.03")]
    assert this_attempt(nodes, 0, 12).environment["driver"] == "535.104.05, 560.35.03"


# ---- markers and checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "jobs, before, stays",
    [(("7", "7"), "", True), (("7", "8"), "", False), (("7", "8"), "6 7", True), (("", ""), "", False)],
    ids=["a later attempt of one job", "another job", "its successor", "by hand"],
)  # fmt: skip
def test_markers_of_the_last_stop_are_removed_but_a_pending_stop_stays(
    jobs, before, stays, arguments, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PREDECESSORS", before)
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
    open_run(run, config_cli.load(arguments()), this_attempt([RANK], 4, 12))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step_00000004.pt", "step_00000008.pt.damaged",
    ]  # fmt: skip
    (run / "logs").rmdir()  # created for the logs of the ranks
