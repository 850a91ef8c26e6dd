"""W&B gets what it should, in the right run: settings files, ids of other folders, copies, local modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.program import REPO, python
from helpers.wandb_server.runs import log, new_folder, offline_records, on_server, run_id, start, steps
from helpers.wandb_server.server import WandbServer
from tinyimnet.config import TrackingConfig
from tinyimnet.errors import UserError
from tinyimnet.tracking.tracker import check_start

SMOKE = REPO / "configs" / "smoke.yaml"


@pytest.fixture
def run_dir(tmp_path: Path, wandb_server: WandbServer) -> Path:
    """A run folder as the start of a run leaves it."""
    return new_folder(tmp_path)


def train(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run train.py in a folder of the user."""
    return subprocess.run(
        [sys.executable, str(REPO / "train.py"), *arguments], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def attempt(run_dir: Path, *logged: int, at: int = 0) -> None:
    """Run an attempt that logs these steps and ends."""
    tracker = start(run_dir, at)
    log(tracker, *logged)
    tracker.close(0)


def asked(server: WandbServer) -> list[str]:
    """Everything that reached the server: requests and runs."""
    return [*server.requests, *(run.id for run in server.store.runs.values())]


def wandb_cli(command: str, cwd: Path) -> None:
    """Run `wandb COMMAND` in a folder."""
    subprocess.run([sys.executable, "-m", "wandb", command], cwd=cwd, check=True, capture_output=True)


# ---- modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["disabled", "offline"])
def test_after_wandb_disabled_or_offline_the_server_gets_nothing(
    command: str, arguments, wandb_server: WandbServer, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    wandb_cli(command, tmp_path)
    done = train(arguments(config=SMOKE, train__epochs=1), tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked(wandb_server) == []
    project = "" if command == "disabled" else "project tiny-imagenet-1m, "
    assert f"; W&B: {project}{command} ({tmp_path / 'wandb' / 'settings'})" in done.stdout
    assert len(offline_records(tmp_path / "run")) == (command == "offline")


@pytest.mark.parametrize("command", ["sync", "dashboard"])
def test_no_command_sends_anything_while_wandb_is_disabled(
    command: str, run_dir: Path, wandb_server: WandbServer, monkeypatch
) -> None:
    attempt(run_dir, 1)
    before = asked(wandb_server)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = python("-m", "tinyimnet", command, str(run_dir))
    assert done.returncode == 2 and "W&B is disabled (WANDB_MODE)" in done.stderr
    assert asked(wandb_server) == before


# ---- ids --------------------------------------------------------------------------------------------------------


def test_an_id_that_belongs_to_another_folder_is_refused_at_the_start(
    arguments, run_dir: Path, wandb_server: WandbServer, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "x")
    attempt(run_dir, 1)
    run = on_server(wandb_server, run_dir)
    refused = train(arguments(config=SMOKE, run__dir=tmp_path / "other" / "s1"), tmp_path)
    assert refused.returncode == 2
    assert (
        refused.stderr
        == f"error: W&B run x belongs to {run_dir}; choose another id for this run folder with WANDB_RUN_ID.\n"
    )
    assert not (tmp_path / "other").exists()
    assert (run.display_name, steps(run)) == ("tiny-seed3", [1])
    check_start(TrackingConfig(), run_dir)


def test_an_id_of_another_program_is_refused_but_not_one_without_rows(
    run_dir: Path, wandb_server: WandbServer, monkeypatch
) -> None:
    for id, row in {"full": {"a": 1}, "empty": {}}.items():
        code = (
            f"import wandb; run = wandb.init(project='tiny-imagenet-1m', id='{id}'); run.log({row}) if {row} else None"
        )
        assert python("-c", code).returncode == 0
    monkeypatch.setenv("WANDB_RUN_ID", "full")
    with pytest.raises(UserError, match="W&B run full belongs to another program"):
        check_start(TrackingConfig(), run_dir)
    monkeypatch.setenv("WANDB_RUN_ID", "empty")
    check_start(TrackingConfig(), run_dir)
    attempt(run_dir, 1)
    assert steps(wandb_server.run("empty")) == [1]


def test_a_mirror_that_finds_the_run_of_another_folder_leaves_it_alone(
    run_dir: Path, wandb_server: WandbServer, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The server did not answer at the start, so only the mirror can see it."""
    monkeypatch.setenv("WANDB_RUN_ID", "x")
    attempt(run_dir, 1)
    run = on_server(wandb_server, run_dir)
    before = (run.display_name, run.resumed, steps(run), run.config["run_folder"])
    (tmp_path / "other").mkdir()
    other = new_folder(tmp_path / "other")
    attempt(other, 1, 2)
    assert (run.display_name, run.resumed, steps(run), run.config["run_folder"]) == before
    assert f"W&B run x belongs to {run_dir}" in capsys.readouterr().out
    refused = python("-m", "tinyimnet", "sync", str(other))
    assert refused.returncode == 2 and f"W&B run x belongs to {run_dir}" in refused.stderr
    monkeypatch.setenv("WANDB_RUN_ID", "y")
    assert python("-m", "tinyimnet", "sync", str(other)).returncode == 0
    assert steps(run) == [1] and steps(wandb_server.run("y")) == [1, 2]


def test_a_copy_and_its_original_become_two_runs_with_all_their_rows(
    run_dir: Path, wandb_server: WandbServer, caplog
) -> None:
    attempt(run_dir, 1, 2)
    copy = run_dir.with_name("copy")
    shutil.copytree(run_dir, copy)
    attempt(copy, 3, at=2)
    attempt(run_dir, 4, at=2)
    assert steps(on_server(wandb_server, run_dir)) == [1, 2, 4]
    assert steps(on_server(wandb_server, copy)) == [1, 2, 3]
    assert f"{copy} is a copy of {run_dir}" in caplog.text


def test_one_of_two_copies_of_a_folder_that_is_gone_keeps_its_run(
    run_dir: Path, wandb_server: WandbServer, tmp_path: Path, capsys
) -> None:
    attempt(run_dir, 1)
    run = on_server(wandb_server, run_dir)
    copies = [tmp_path / "b", tmp_path / "c"]
    for copy in copies:
        shutil.copytree(run_dir, copy)
    shutil.rmtree(run_dir)
    for copy, step in zip(copies, (2, 3), strict=True):
        attempt(copy, step, at=1)
    assert steps(run) == [1, 2]
    assert f"W&B run {run.id} belongs to {copies[0]}" in capsys.readouterr().out


def test_a_moved_run_goes_on_as_the_same_run(run_dir: Path, wandb_server: WandbServer) -> None:
    attempt(run_dir, 1)
    moved = run_dir.rename(run_dir.with_name("moved"))
    attempt(moved, 2, at=1)
    [run] = wandb_server.store.runs.values()
    assert (steps(run), run.display_name, run.config["run_folder"]) == ([1, 2], "moved", str(moved))


def test_sync_leaves_copies_alone_and_sends_one_under_another_id(
    run_dir: Path, wandb_server: WandbServer, monkeypatch
) -> None:
    attempt(run_dir, 1)
    copy = run_dir.with_name("copy")
    shutil.copytree(run_dir, copy)
    monkeypatch.setenv("RUNS_ROOT", str(run_dir.parent))
    everything = python("-m", "tinyimnet", "sync")
    assert everything.returncode == 0 and str(copy) not in everything.stdout
    refused = python("-m", "tinyimnet", "sync", str(copy))
    assert refused.returncode == 2 and f"{copy} is a copy of {run_dir}" in refused.stderr
    assert python("-m", "tinyimnet", "sync", str(copy), WANDB_RUN_ID="new").returncode == 0
    assert sorted(run.id for run in wandb_server.store.runs.values()) == sorted([run_id(run_dir), "new"])


def test_the_name_of_the_run_can_be_chosen(run_dir: Path, wandb_server: WandbServer, monkeypatch) -> None:
    for name in ("NAME", "NOTES", "RUN_GROUP", "TAGS"):
        monkeypatch.setenv(f"WANDB_{name}", name)
    attempt(run_dir, 1)
    run = on_server(wandb_server, run_dir)
    assert (run.display_name, run.notes, run.group, run.tags) == ("NAME", "NOTES", "RUN_GROUP", ["TAGS"])


# ---- values with which wandb fails (all of them: unit/test_wandb_values.py) ------------------------------------


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_value_with_which_wandb_fails_is_refused_at_the_start(
    mode: str, arguments, wandb_server: WandbServer, tmp_path: Path
) -> None:
    refused = train(arguments(config=SMOKE), tmp_path, WANDB_MODE=mode, WANDB_BASE_URL="localhost:8080")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "error: WANDB_BASE_URL is 'localhost:8080' and is not valid for wandb" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_server_that_hangs_does_not_stop_the_start(run_dir: Path, wandb_server: WandbServer, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "x")
    wandb_server.break_with("hang")
    check_start(TrackingConfig(), run_dir)


# ---- modules of the user ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "."])
def test_modules_of_the_user_do_not_replace_libraries(
    path: str, run_dir: Path, wandb_server: WandbServer, tmp_path: Path, monkeypatch
) -> None:
    for name in ("wandb.py", "queue.py", "click/__init__.py", "json.py", "tinyimnet/__init__.py"):
        mine = tmp_path / "mine" / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("raise SystemExit('a module of the user')")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("PYTHONPATH", path)
    attempt(run_dir, 1)
    assert steps(on_server(wandb_server, run_dir)) == [1]


def test_sync_does_not_import_a_module_of_the_user(
    run_dir: Path, wandb_server: WandbServer, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(run_dir, 1)
    (tmp_path / "wandb.py").write_text("raise SystemExit('the module of the user')")
    code = f"import sys; sys.path.insert(1, {str(REPO)!r}); from tinyimnet.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "sync", str(run_dir)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert steps(on_server(wandb_server, run_dir)) == [1]
