"""The program as a user runs it: start, stop, resume, finish, several processes, and user errors."""

import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.program import ACCELERATE, REPO, launch, python, small_run
from helpers.trainings import Death, run_to_end
from tinyimnet import cli, errors
from tinyimnet.data import download, npy
from tinyimnet.distributed import rendezvous
from tinyimnet.evaluation.weights import load_trained
from tinyimnet.files import read_lines
from tinyimnet.run.metrics import STEP


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data: Path) -> Path:
    """An undisturbed run, started by accelerate launch."""
    run = tmp_path_factory.mktemp("finished") / "run"
    command = [*ACCELERATE, "--num_processes", "1", "train.py", *small_run(tiny_data, run)]
    result = launch(command, WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    (run / "stdout.txt").write_text(result.stdout)
    return run


def test_a_finished_run_leaves_what_the_readme_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml", "metrics.jsonl", "checkpoints", "final.safetensors", "best.safetensors", "curves.png", "DONE",
        "run_info.json", "augmented.png", "evaluation", "MODEL_CARD.md",
    } <= names  # fmt: skip
    pictures = [finished / "augmented.png", finished / "curves.png", *finished.glob("evaluation/*.png")]
    assert len(pictures) == 5 and all(picture.stat().st_size > 5_000 for picture in pictures)
    lines = read_lines(finished / "metrics.jsonl")
    assert [line[STEP] for line in lines] == [2, 4, 6, 8, 10, 12]
    promised = {"epoch", "train/loss", "train/lr", "perf/images_per_s"}
    assert promised <= lines[0].keys()
    assert {f"val/{kind}top{k}" for kind in ("", "ema_") for k in (1, 5)} <= lines[-1].keys()
    stdout = (finished / "stdout.txt").read_text()
    assert "epoch 2.0/2 step 12/12" in stdout
    start, rest = stdout.splitlines()[:3], stdout.splitlines()[-6:]
    assert [line.split()[:2] for line in start] == [["2", "epochs"], ["batch", "32"], ["run", "folder:"]]
    assert " is finished: 2 epochs, 12 steps, " in rest[0] and "chance is 0.50 %" in rest[1]
    page, weights = (Path(line.split()[1]) for line in rest[3:5])
    assert (finished / "report.html").samefile(page) and (finished / "final.safetensors").samefile(weights)
    assert rest[5].startswith("next: ") and rest[5].endswith(f"evaluate {finished} --tta flip")


def test_a_run_with_a_damaged_best_checkpoint_still_finishes(arguments, tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    assert run_to_end(arguments(), log, death=Death("step", 9)) == [-9]
    (run / "checkpoints" / "best.pt").write_bytes(b"damaged")
    assert run_to_end(arguments(), log) == [0]
    assert (run / "DONE").exists() and not (run / "best.safetensors").exists()
    assert "best.safetensors is not written: checkpoint" in log.read_text()


def test_the_weights_file_has_the_same_bytes_every_time(finished: Path, arguments, tmp_path: Path) -> None:
    """safetensors writes several metadata keys in an order that differs between processes."""
    assert run_to_end(arguments(), tmp_path / "log") == [0]
    assert (finished / "final.safetensors").read_bytes() == (tmp_path / "run" / "final.safetensors").read_bytes()


def test_rerunning_a_finished_run_says_that_it_is_finished(finished_run: Path, arguments, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    assert run_to_end(arguments(run__dir=finished_run), tmp_path / "log") == [0]
    assert "is finished" in (tmp_path / "log").read_text()
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def answers_late(rank: int) -> None:
    """Delay this process after it receives an answer of rank 0."""
    arrives = rendezvous._arrives

    def late(store, key: str, deadline: float) -> bool:
        arrived = arrives(store, key, deadline)
        time.sleep(0.5)
        return arrived

    if os.environ["RANK"] == str(rank):
        rendezvous._arrives = late


def test_rerunning_a_finished_run_on_several_processes_succeeds(finished_run: Path, arguments, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = partial(answers_late, 1)
    assert run_to_end(arguments(run__dir=finished_run), log, processes=2, before=before) == [0, 0]
    assert "is finished" in log.read_text() and "gone" not in log.read_text()


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory, tiny_data: Path) -> Path:
    """The small data set with 101 validation images, which no number of processes above 1 shares evenly."""
    folder = tmp_path_factory.mktemp("odd")
    files = {}
    for role in ("train_images", "train_labels", "val_images", "val_labels"):
        array = np.load(tiny_data / f"{role}.npy")
        files[role] = folder / f"{role}.npy"
        np.save(files[role], array[:101] if role.startswith("val") else array)
    npy.prepare_npy(files, folder / "prepared", None)
    return folder / "prepared"


@pytest.mark.parametrize(
    "processes", [pytest.param(2, marks=pytest.mark.long), 3, pytest.param(4, marks=pytest.mark.long)]
)
def test_several_processes_count_each_validation_image_once(
    processes: int, arguments, odd_data, tmp_path: Path
) -> None:
    """One process that evaluates the exported weights gets the same metrics as all processes together."""
    run = tmp_path / "run"
    options = arguments(data__root=odd_data, train__precision="fp32", train__global_batch_size=36, train__epochs=1)
    assert run_to_end(options, tmp_path / "log", processes=processes) == [0] * processes
    assert errors.run(cli.main, ["evaluate", str(run)]) == 0
    alone = json.loads((run / "evaluation" / "results.json").read_text())
    together = read_lines(run / "metrics.jsonl")[-1]
    assert alone["images"] == 101
    assert alone["top1"] == pytest.approx(together["val/ema_top1"], abs=1e-9)
    assert alone["top5"] == pytest.approx(together["val/ema_top5"], abs=1e-9)
    assert alone["loss"] == pytest.approx(together["val/ema_loss"], rel=1e-5)


def no_pauses() -> None:
    download.PAUSES = (0.01, 0.01)


def test_without_data_and_network_the_error_names_the_two_ways_out(arguments, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    config = tmp_path / "mine.yaml"
    config.write_text(f"data: {{root: {tmp_path / 'tiny-imagenet-200'}}}\n")
    options = ["--config", str(config), f"--run.dir={tmp_path / 'run'}"]
    assert run_to_end(options, tmp_path / "log", environment=nowhere, before=no_pauses) == [2]
    (error,) = (line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error"))
    assert "python -m tinyimnet prepare" in error and "configs/smoke.yaml" in error
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_finished_run_resumes_with_more_epochs_and_a_warning(arguments, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    assert run_to_end(arguments(), log) == [0]
    assert run_to_end(arguments(train__epochs=3, run__save_every=1), log, death=Death("step", 16)) == [-9]
    assert load_trained(run).step > 12  # not the weights of the shorter run
    assert run_to_end(arguments(train__epochs=3), log) == [0]
    output = log.read_text()
    assert "WARNING: train.epochs is extended from 2 to 3: from here on, the learning rate" in output
    assert "resumed at step 12 of 18" in output
    assert output.count("is extended") == 1
    assert json.loads((run / "DONE").read_text())["epochs"] == 3
    assert [line[STEP] for line in read_lines(run / "metrics.jsonl")] == list(range(2, 19, 2))


def test_a_different_micro_batch_size_resumes_with_a_warning(arguments, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_to_end(arguments(), log, death=Death("step", 9)) == [-9]
    assert run_to_end(arguments(train__device_batch_size=8), log) == [0]
    assert "WARNING: a micro-batch now has 8 images instead of 32" in log.read_text()


def test_a_user_error_exits_with_2_and_one_sentence() -> None:
    done = python("train.py", "--optim.lrr=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: optim.lrr is not a known key; did you mean optim.lr?\n"


@pytest.mark.long
def test_the_smoke_run_ends_well_above_chance(tmp_path: Path) -> None:
    """The run of `make train`: 45 % when measured; chance is 0.5 % with 200 classes."""
    smoke = yaml.safe_load((REPO / "configs" / "smoke.yaml").read_text())
    assert smoke["data"]["source"] == "synthetic"
    config = tmp_path / "smoke.yaml"
    config.write_text(yaml.safe_dump({**smoke, "data": {**smoke["data"], "root": str(tmp_path / "data")}}))
    options = ["--config", str(config), f"--run.dir={tmp_path / 'run'}"]
    result = launch([*ACCELERATE, "--num_processes", "1", "train.py", *options], timeout=900)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "DONE").read_text())["val/ema_top1"] > 25
