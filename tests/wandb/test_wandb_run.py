"""A real training, killed and resumed, as a user finds it on W&B; read back with wandb's own API."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb  # noqa: TID251 (its public API reads back what arrived)

from helpers.program import launch, python, small_run
from helpers.wandb_server.runs import steps
from helpers.wandb_server.server import WandbServer
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import STEP

SECRET = "planted-4f1c8e"
SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "SLURM_JWT")
# train.py, killed after it has logged step 10.
KILLED = """
import os, sys
from tinyimnet import errors, train
from tinyimnet.tracking.tracker import Tracker
log = Tracker.log
def dying(tracker, step, values):
    log(tracker, step, values)
    if step == 10:
        os.kill(os.getpid(), 9)
Tracker.log = dying
errors.run(train.main, sys.argv[1:])
"""


@pytest.fixture
def run_dir(tmp_path: Path, tiny_data: Path, wandb_server: WandbServer, monkeypatch) -> Path:
    """A 12-step run with secrets in its environment: killed after row 10 and before its save, then finished."""
    for name in SECRETS:
        monkeypatch.setenv(name, SECRET)
    folder = tmp_path / "tiny-seed0"
    arguments = small_run(tiny_data, folder, run__save_every=2, tracking__log_code=True, tracking__finish_timeout=20)
    assert python("-c", KILLED, *arguments).returncode == -9
    done = python("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    (folder / "console.txt").write_text(done.stdout + done.stderr)
    return folder


def test_a_run_of_two_attempts_is_all_there(run_dir: Path, wandb_server: WandbServer, tmp_path: Path) -> None:
    [stored] = wandb_server.store.runs.values()
    run = wandb.Api().run(f"lab/tiny-imagenet-1m/{stored.id}")
    rows_once_and_equal_to_the_file(run_dir, stored)
    described(run_dir, run)
    assert [alert["title"] for alert in wandb_server.alerts] == ["Finished"]
    drawn(run_dir, stored)
    weights_with_equal_checksums(run_dir, run, tmp_path)
    code_without_what_lies_beside_it(wandb_server)
    no_secret(run_dir, wandb_server)


def test_an_offline_run_is_complete_after_a_sync(tmp_path: Path, tiny_data: Path, wandb_server: WandbServer) -> None:
    """The home directory was not writable when the weights and tables were recorded."""
    run_dir = tmp_path / "tiny-seed0"
    arguments = small_run(tiny_data, run_dir, run__save_every=2)
    offline = {"WANDB_MODE": "offline", "HOME": "/dev/null"}
    done = launch(
        ["env", "-u", "WANDB_DATA_DIR", "-u", "WANDB_CACHE_DIR", sys.executable, "train.py", *arguments],
        **offline,
    )
    assert done.returncode == 0, done.stderr
    sent = python("-m", "tinyimnet", "sync", str(run_dir))
    assert sent.returncode == 0, sent.stderr
    [stored] = wandb_server.store.runs.values()
    drawn(run_dir, stored)
    weights_with_equal_checksums(run_dir, wandb.Api().run(f"lab/tiny-imagenet-1m/{stored.id}"), tmp_path)


def test_a_run_that_diverges_alerts_and_fails_with_its_exit_code(
    tmp_path: Path, tiny_data: Path, wandb_server: WandbServer
) -> None:
    arguments = small_run(tiny_data, tmp_path / "run", optim__lr=1e12, train__max_skipped_steps=2)
    assert python("train.py", *arguments).returncode == 2
    [stored] = wandb_server.store.runs.values()
    assert (stored.state, stored.exit_code) == ("failed", 2)
    assert [alert["title"] for alert in wandb_server.alerts] == ["Training diverged"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_stopped_is_not_finished_on_wandb(
    number: signal.Signals, tmp_path: Path, tiny_data: Path, wandb_server: WandbServer
) -> None:
    stopped = python("-c", KILLED.replace(", 9)", f", {number})"), *small_run(tiny_data, tmp_path / "run"))
    assert f"stopped by {number.name}: saved at step 10" in stopped.stdout, stopped.stderr
    [stored] = wandb_server.store.runs.values()
    assert (stored.state, stored.was_preempting) == ("preempted", True)


def test_a_job_that_ends_before_its_first_step_alerts_and_is_preempted(
    tmp_path: Path, tiny_data: Path, wandb_server: WandbServer
) -> None:
    arguments = small_run(tiny_data, tmp_path / "run")
    ends_now = str(int(time.time()) + 100)  # within run.stop_before_end
    ended = python("train.py", *arguments, SLURM_JOB_ID="7", SLURM_JOB_END_TIME=ends_now)
    assert ended.returncode == 0, ended.stderr
    [stored] = wandb_server.store.runs.values()
    assert (stored.state, stored.was_preempting) == ("preempted", True)
    assert [alert["title"] for alert in wandb_server.alerts] == ["No progress"]


def rows_once_and_equal_to_the_file(run_dir: Path, stored: Any) -> None:
    lines = read_lines(run_dir / "metrics.jsonl")
    assert steps(stored) == [2, 4, 6, 8, 10, 12]
    # Rows that the second attempt replayed have the same values, except for timings.
    sent = [row for row in stored.history if STEP in row]
    for line, row in zip(lines, sent, strict=True):
        assert {key: row[key] for key in line if not key.startswith("perf/")} == {
            key: value for key, value in line.items() if not key.startswith("perf/")
        }
    assert [row["perf/attempt"] for row in sent] == [1, 1, 1, 1, 1, 2]
    promised = {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/ema_distance",
        "train/skipped_steps",
        "val/top1",
        "val/top5",
    }
    promised |= {"val/ema_top1", "val/ema_top5", "perf/images_per_s", "perf/save_s", "perf/attempt"}
    promised |= {f"perf/{part}_ms" for part in ("step", "data", "forward_backward", "optimizer", "wait")}
    assert promised <= sent[-1].keys()


def described(run_dir: Path, run: Any) -> None:
    info, results = (json.loads((run_dir / name).read_text()) for name in ("run_info.json", "DONE"))
    assert (run.state, run.name, run.group) == ("finished", "tiny-seed0", "tiny")
    assert {key: run.config[key] for key in info} == info
    assert run.config["train"]["global_batch_size"] == 32 and run.config["data"]["tune_split"] is False
    for key in ("val/ema_top1", "val/ema_top1_flip", "best_ema_top1", "ece", "parameters"):
        assert run.summary[key] == results[key], key


def drawn(run_dir: Path, stored: Any) -> None:
    assert sum("media/augmented" in row for row in stored.history) == 1
    pictures = {f"evaluation/{name}" for name in ("confusion", "reliability", "most_confused")}
    tables = {f"evaluation/{name}_table" for name in ("per_class", "calibration", "most_confused")}
    assert pictures | tables <= stored.history[-1].keys()
    for key, name in [("media/augmented", "augmented"), ("evaluation/confusion", "evaluation/confusion")]:
        shown = stored.files[stored.summary[key]["path"]]
        assert shown == (run_dir / f"{name}.png").read_bytes()
    table = json.loads(stored.files[stored.summary["evaluation/per_class_table"]["path"]])
    assert len(table["data"]) == 200 and isinstance(table["data"][0][2], int)


def weights_with_equal_checksums(run_dir: Path, run: Any, tmp_path: Path) -> None:
    models = [artifact for artifact in run.logged_artifacts() if artifact.type == "model"]
    assert {alias for model in models for alias in model.aliases} == {"best", "final", "latest"}
    for alias in ("best", "final"):
        model = wandb.Api().artifact(f"lab/tiny-imagenet-1m/model-{run.id}:{alias}")
        folder = Path(model.download(tmp_path / alias))
        assert sha256(folder / f"{alias}.safetensors") == sha256(run_dir / f"{alias}.safetensors")
        assert (folder / "MODEL_CARD.md").read_text() == (run_dir / "MODEL_CARD.md").read_text() == model.description
        assert model.metadata["val/ema_top1"] == run.summary["val/ema_top1"]


def code_without_what_lies_beside_it(server: WandbServer) -> None:
    [code] = [artifact for artifact in server.artifacts if artifact.type == "code"]
    assert {
        "train.py",
        "tinyimnet/tracking/wandb_mirror.py",
        "slurm/train.sbatch",
        "configs/smoke.yaml",
    } <= code.files.keys()
    assert not [name for name in code.files if name.startswith(("tests/", "runs/", "slurm/site"))]


def no_secret(run_dir: Path, server: WandbServer) -> None:
    written = {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    [run] = server.store.runs.values()
    sent = {**run.files, "everything else": repr(vars(run)).encode()}
    for artifact in server.artifacts:
        sent |= {f"{artifact.name}/{name}": content for name, content in artifact.files.items()}
    for secret in (SECRET, os.environ["WANDB_API_KEY"]):
        assert [name for name, content in {**written, **sent}.items() if secret.encode() in content] == []


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
