"""The reader of run folders: it reads what exists, names damaged files, and gives the state in one word."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.permissions import without_privileges
from helpers.program import REPO
from helpers.run_folders import attempt, logged, sent
from tinyimnet import cli
from tinyimnet.errors import UserError
from tinyimnet.launch import runs
from tinyimnet.run import states
from tinyimnet.run.metrics import STEP
from tinyimnet.run.record import read_object, read_record, with_metrics


@pytest.fixture
def copy_of_finished(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def test_the_record_of_a_finished_run_is_complete(finished_run: Path) -> None:
    run, done = read_record(finished_run), json.loads((finished_run / "DONE").read_text())
    assert (run.name, run.damaged, run.state()) == ("run", (), "finished")
    assert (run.step, run.total_steps, run.steps_per_epoch) == (12, 12, 6)
    assert run.config["optim.lr"] == 0.1 and run.parameters == done["parameters"]
    assert run.series("train/lr")[0] == [2, 4, 6, 8, 10, 12]
    assert run.last("val/ema_top1") == done["val/ema_top1"] == run.results["val/ema_top1"]
    assert run.last("val/none_such") is None
    assert run.starts() == [] and len(run.attempts) == 1


def test_the_record_of_a_missing_folder_is_empty(tmp_path: Path) -> None:
    run = read_record(tmp_path / "none")
    assert (run.lines, run.attempts, run.info, run.step, run.total_steps) == ([], [], {}, None, 0)
    assert (run.url, run.wandb_id, run.state()) == ("", "", "new")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", ["{", "", "[]", '"text"', "\x00"], ids=["half", "empty", "list", "text", "NUL"])
@pytest.mark.parametrize("name", ["DONE", "run_info.json", "job.json", "wandb_run.json"])
def test_a_damaged_file_is_named_and_the_others_are_read(name: str, content: str, copy_of_finished: Path) -> None:
    whole = read_record(copy_of_finished)
    (copy_of_finished / name).write_text(content)
    run = read_record(copy_of_finished)
    (sentence,) = run.damaged
    assert sentence.startswith(f"{copy_of_finished / name} is damaged (") and sentence.endswith(".")
    assert (run.lines, run.config, run.attempts) == (whole.lines, whole.config, whole.attempts)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        with_metrics(copy_of_finished)


def test_a_damaged_configuration_is_named_and_the_lines_are_read(copy_of_finished: Path) -> None:
    (copy_of_finished / "config.yaml").write_text("a: [")
    run = read_record(copy_of_finished)
    assert "config.yaml is damaged" in run.damaged[0] and run.config == {}
    assert run.step == 12


def test_an_unreadable_file_is_named(copy_of_finished: Path) -> None:
    (copy_of_finished / "metrics.jsonl").chmod(0)
    with without_privileges():
        (said,) = read_record(copy_of_finished).damaged
    assert said.startswith(f"{copy_of_finished / 'metrics.jsonl'} cannot be accessed (Permission denied)")


def test_lines_without_a_step_and_non_numeric_values_are_left_out(make_run) -> None:
    lines = [logged(10), {"train/loss": 3.0}, {STEP: None}, {STEP: 20, "train/loss": "nan", "train/lr": 0.5}]
    run = read_record(make_run("a", metrics__jsonl=lines))
    assert run.lines == [logged(10), {STEP: 20, "train/lr": 0.5}]


def test_a_run_without_a_metrics_line_is_refused(make_run) -> None:
    with pytest.raises(UserError, match="a has no line in metrics.jsonl yet; wait for the first one"):
        with_metrics(make_run("a", "run: {log_every: 50}\n"))


def test_replayed_time_counts_once(make_run) -> None:
    lines = [logged(10, **{"perf/step_ms": 500}), logged(20, **{"perf/step_ms": 1000, "perf/eval_s": 3})]
    run = read_record(make_run("a", metrics__jsonl=lines, attempts__jsonl=[attempt(), attempt(step=10)]))
    assert run.training_seconds == 10 * 0.5 + 10 * 1 + 3


def test_of_attempts_from_the_same_step_only_the_last_is_marked(make_run) -> None:
    begun = [attempt(), attempt(step=100), attempt(step=100), attempt(step=300)]
    assert read_record(make_run("a", attempts__jsonl=begun)).starts() == [(100, 3), (300, 4)]


def test_a_recipe_is_the_configuration_without_the_seed_and_the_paths(make_run) -> None:
    text = "run: {{dir: {0}, seed: {1}}}\ndata: {{root: {0}}}\noptim: {{lr: {2}}}\n"
    one, other, slower = (make_run(name, text.format(name, seed, lr))
                          for name, seed, lr in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 0.05)))  # fmt: skip
    assert read_record(one).recipe == read_record(other).recipe != read_record(slower).recipe


# ---- the state ----------------------------------------------------------------------------------------------

ENDED_BY_AN_ERROR = "2026-11-24 INFO rank 0 of 1 is process 7 on n1\n2026-11-24 INFO ended by an error: no disk\n"
AFTER_A_RESTART = ENDED_BY_AN_ERROR + "2026-11-25 INFO rank 0 of 1 is process 8 on n1\n"
CRASHED = "2026-11-24 INFO rank 0 of 1 is process 7 on n1\n2026-11-24 ERROR rank 0 failed\nTraceback\n"
STATES: dict[str, tuple[dict[str, object], str]] = {
    "not begun": ({}, "new"),
    "done": ({"DONE": {}, "LOCK": {}}, "finished"),
    "training": ({"LOCK": {}, "REQUEUE": ""}, "running"),
    "lock not renewed": ({"LOCK": "old"}, "killed"),
    "a user error": ({"ERROR": "no disk"}, "failed"),
    "an error in the log": ({"log": ENDED_BY_AN_ERROR}, "failed"),
    "a crash in the log": ({"log": CRASHED}, "failed"),
    "an error of an earlier attempt": ({"log": AFTER_A_RESTART}, "stopped"),
    "stopped by a signal": ({"REQUEUE": '{"reason": "SIGTERM"}'}, "stopped"),
    "stopped, the marker is damaged": ({"REQUEUE": "{"}, "stopped"),
    "stopped by a person": ({"STOP": ""}, "stopped"),
    "between two attempts": ({"metrics__jsonl": [logged(10)]}, "stopped"),
}  # fmt: skip


@pytest.fixture(params=STATES.values(), ids=STATES)
def run_and_state(request, make_run: Callable[..., Path]) -> tuple[Path, str]:
    """A run folder, and the word for its state."""
    files, word = dict(request.param[0]), request.param[1]
    log, killed = files.pop("log", ""), files.get("LOCK") == "old"
    if word not in ("new", "finished"):
        files.setdefault("attempts__jsonl", [attempt()])
    run = make_run("a", **files)
    if log:
        (run / "logs" / "rank_0.log").write_text(log)
    if killed:
        os.utime(run / "LOCK", (time.time() - 40, time.time() - 40))
    return run, word


def markers(run: Path) -> str:
    return (run / "REQUEUE").read_text() if (run / "REQUEUE").exists() else ""


def test_status_shows_the_same_state_as_the_run_folder(run_and_state, slurm, capsys) -> None:
    run, word = run_and_state
    assert read_record(run).state() == word
    assert runs.state_of(read_record(run), runs.live_jobs(), {}) == word
    cli.main(["status", str(run)])
    assert capsys.readouterr().out.split(" a ")[1].split()[0] == word


def test_the_state_in_words_says_what_comes_next(run_and_state) -> None:
    run, word = run_and_state
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00001000.pt").touch()
    words = read_record(run).state_in_words()
    going_on = "rerun the same command to resume from step 1,000" in words
    assert going_on == (word in ("killed", "failed", "stopped")), words
    assert ("by SIGTERM at step" in words) == (word == "stopped" and "SIGTERM" in markers(run))
    assert ("by a STOP file in the run folder at step" in words) == (word == "stopped" and (run / "STOP").exists())
    assert ("see logs/rank_0.log" in words) == (word == "failed")


def test_status_shows_a_submitted_run_that_has_not_started_as_unknown(make_run, slurm) -> None:
    run = read_record(make_run("a", config=None, job__json=sent("7")))
    assert (run.state(), runs.state_of(run, {}, {})) == ("new", "unknown")


def test_the_page_of_states_has_the_table_of_the_program() -> None:
    page = (REPO / "docs" / "watching.md").read_text().partition("## States")[2].partition("## The HTML")[0]
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE) == list(states.MEANING.items())


# ---- JSON files ---------------------------------------------------------------------------------------------


def test_an_object_is_read_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": 1}')
    assert read_object(tmp_path / "a.json") == {"b": 1}
    assert read_object(tmp_path / "missing.json") == {}
