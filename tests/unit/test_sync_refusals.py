"""tinyimnet sync: errors before any request to W&B."""

import json
from pathlib import Path

import pytest

from tinyimnet import cli
from tinyimnet.errors import UserError
from tinyimnet.run.lock import RunLock


def tracked(parent: Path, name: str, mode: str = "offline") -> Path:
    """Make the folder of a run that is tracked on W&B."""
    folder = parent / name
    folder.mkdir()
    (folder / "wandb_run.json").write_text(json.dumps({"id": name, "mode": mode}))
    return folder


def refused(*arguments: object) -> str:
    """Return the error message of the command."""
    with pytest.raises(UserError) as error:
        cli.main(["sync", *map(str, arguments)])
    return str(error.value)


def test_a_folder_that_was_never_tracked_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path} has no wandb_run.json" in refused(tmp_path)


def test_each_run_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    sentence = refused(tmp_path / "one", tmp_path / "two")
    assert f"{tmp_path / 'one'} has no" in sentence and f"{tmp_path / 'two'} has no" in sentence


def test_without_a_run_to_send_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert refused() == f"no tracked run in {tmp_path}; name the run folders to upload."
    with RunLock(tracked(tmp_path, "busy")) as lock:
        lock.acquire()
        assert refused() == f"all runs in {tmp_path} are still training (found 1); name the run folders to upload."


@pytest.mark.parametrize(
    ("mode", "why"),
    [("online", "uploads its own rows; wait for it to end"), ("offline", "follow it with --live")],
)
def test_a_run_in_training_is_refused_with_what_to_do(mode: str, why: str, tmp_path: Path) -> None:
    run = tracked(tmp_path, "busy", mode)
    with RunLock(run) as lock:
        lock.acquire()
        assert f"{run} is still training" in refused(run) and why in refused(run)


def test_live_follows_one_run(tmp_path: Path) -> None:
    assert "--live follows one run" in refused("--live", tmp_path / "one", tmp_path / "two")
