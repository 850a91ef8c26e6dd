"""Contents of a run folder, also after a crash: attempts, checkpoints, the configuration and the markers."""

import json
from pathlib import Path

import pytest

from helpers.run_folders import attempt
from tinyimnet.config import Config, RunConfig, TrainConfig, dump
from tinyimnet.errors import UserError
from tinyimnet.run.folder import (
    Attempt,
    checkpoint_path,
    checkpoint_steps,
    is_done,
    mark,
    newest_step,
    read_attempts,
    read_config,
    writable,
)


def test_attempts_are_read_in_order(make_run) -> None:
    run = make_run("a", attempts__jsonl=[attempt("7", started=5.5), attempt("8", restart=2, step=100)])
    first, second = read_attempts(run)
    assert first == Attempt(5.5, "7", 0, ("n1", "n2"), 4, 0, 5000)
    assert (second.job, second.restart, second.step) == ("8", 2, 100)


@pytest.mark.parametrize(
    "damaged",
    ['{"started": 1', "[]", "3", "\x00", json.dumps({"job": "7"}), json.dumps(attempt() | {"nodes": 3}),
     json.dumps(attempt() | {"step": "soon"}), json.dumps(attempt() | {"started": None}),
     json.dumps(attempt() | {"environment": 3})],
)  # fmt: skip
def test_a_damaged_line_hides_no_other(damaged: str, make_run) -> None:
    lines = [json.dumps(attempt("7")), damaged, json.dumps(attempt("8", step=100))]
    run = make_run("a", attempts__jsonl="\n".join(lines))
    assert [(each.job, each.step) for each in read_attempts(run)] == [("7", 0), ("8", 100)]


def test_a_line_without_what_later_versions_record_is_read(make_run) -> None:
    later = {"code": "abc", "environment": {"torch": "2.13.0"}}
    run = make_run("a", attempts__jsonl=[attempt(), attempt() | later])
    assert [(each.code, each.environment) for each in read_attempts(run)] == [("", {}), ("abc", {"torch": "2.13.0"})]


def test_a_run_that_has_not_started_has_no_attempts_and_no_checkpoints(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == [] and checkpoint_steps(tmp_path / "checkpoints") == []
    assert newest_step(tmp_path) == 0


def test_checkpoints_are_listed_by_number_without_the_best_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (100_000_000, 20, 3):
        checkpoint_path(folder, step).touch()
    for name in ("best.pt", "step_00000050.json", "step_00000060.pt.damaged", ".step_00000070.pt.partial"):
        (folder / name).touch()
    assert checkpoint_path(folder, 20).name == "step_00000020.pt"
    assert checkpoint_steps(folder) == [3, 20, 100_000_000]
    assert newest_step(tmp_path) == 100_000_000


@pytest.mark.parametrize("epochs, done", [(2, True), (3, False)])
def test_a_run_is_done_for_the_epochs_that_it_was_trained_for(epochs: int, done: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(Config(train=TrainConfig(epochs=2), run=RunConfig(dir="x"))))
    config = Config(train=TrainConfig(epochs=epochs))
    assert not is_done(tmp_path, config)
    mark(tmp_path, "DONE", "{}")
    assert is_done(tmp_path, config) == done


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "is not a run folder: it has no config.yaml"),
        ("a: [", "is damaged"),
        ("text", "is damaged .not a mapping"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_config(tmp_path)


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.dir .* cannot be written \(No space left on device\); fix that"), \
            writable(tmp_path):  # fmt: skip
        raise OSError(28, "No space left on device")
