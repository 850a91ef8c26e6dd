"""The program as a user runs it: start, stop, resume, finish, several processes, and mistakes."""

import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import ACCELERATE, REPO, launch, python
from lives import Death, live
from safetensors.torch import load_file

import train
from tinyimnet import arrays, cli, commandline, errors, export, meeting, runfolder
from tinyimnet.files import read_lines
from tinyimnet.lock import RunLock
from tinyimnet.tracking import STEP


def weights_equal(left: Path, right: Path) -> bool:
    a, b = (load_file(run / "final.safetensors") for run in (left, right))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data: Path) -> Path:
    """A run that was never touched, started by accelerate launch."""
    from conftest import SMALL

    run = tmp_path_factory.mktemp("finished") / "run"
    keys = {**SMALL, "data.root": str(tiny_data), "run.dir": str(run)}
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    result = launch([*ACCELERATE, "--num_processes", "1", "train.py", *arguments], WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    (run / "stdout.txt").write_text(result.stdout)
    return run


def test_a_finished_run_leaves_what_the_readme_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml", "metrics.jsonl", "checkpoints", "final.safetensors", "best.safetensors", "curves.png", "DONE",
        "facts.json", "augmented.png", "evaluation", "MODEL_CARD.md",
    } <= names  # fmt: skip
    lines = read_lines(finished / "metrics.jsonl")
    assert [line[STEP] for line in lines] == [2, 4, 6, 8, 10, 12]
    promised = {"epoch", "train/loss", "train/lr", "perf/images_per_s"}
    assert promised <= lines[0].keys()
    assert {f"val/{kind}top{k}" for kind in ("", "ema_") for k in (1, 5)} <= lines[-1].keys()
    stdout = (finished / "stdout.txt").read_text()
    assert "epoch 2.00 step 12/12" in stdout
    assert "val top-1 / top-5, EMA weights" in stdout


def test_the_model_card_says_how_good_it_is_and_its_way_of_loading_works(
    finished: Path, tmp_path: Path
) -> None:
    card, results = (finished / "MODEL_CARD.md").read_text(), json.loads((finished / "DONE").read_text())
    assert (
        f"| final.safetensors, moving average of the weights | 12 | {results['val/ema_top1']:.2f} %" in card
    )
    assert f"{results['ece']:.2f} %" in card and "| **optim.lr** | **0.1** |" in card
    program = card.partition("```python\n")[2].partition("```")[0] + "assert trained.step == 12"
    for name in ("final", "best"):
        shutil.copy(finished / f"{name}.safetensors", tmp_path)
    done = launch(
        [sys.executable, "-c", f"import os; os.chdir('{tmp_path}')\n{program}"], PYTHONPATH=str(REPO)
    )
    assert done.returncode == 0, done.stderr


def test_best_safetensors_has_the_weights_of_the_best_checkpoint(finished: Path) -> None:
    results, best = (
        json.loads((finished / "DONE").read_text()),
        export.load_trained(finished / "best.safetensors"),
    )
    lines = {line[STEP]: line for line in read_lines(finished / "metrics.jsonl")}
    assert best.step == results["best_step"]
    assert lines[best.step]["val/ema_top1"] == max(line.get("val/ema_top1", 0) for line in lines.values())


def test_a_damaged_best_checkpoint_does_not_cost_the_end_of_the_run(arguments, tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    assert live(arguments(), log, death=Death("step", 9)) == [-9]
    (run / "checkpoints" / "best.pt").write_bytes(b"damaged")
    assert live(arguments(), log) == [0]
    assert (run / "DONE").exists() and not (run / "best.safetensors").exists()
    assert "best.safetensors is not written: checkpoint" in log.read_text()


def test_the_weights_are_the_same_bytes_every_time(finished: Path, arguments, tmp_path: Path) -> None:
    """safetensors writes metadata of several keys in an order that differs between processes."""
    result = python("train.py", *arguments())
    assert result.returncode == 0, result.stderr
    assert (finished / "final.safetensors").read_bytes() == (
        tmp_path / "run" / "final.safetensors"
    ).read_bytes()


def test_the_same_command_says_that_it_is_finished(finished: Path, arguments) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = python("train.py", *arguments(run__dir=finished))
    assert result.returncode == 0
    assert "is finished" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def answers_late(rank: int) -> None:
    """Have this process wait before it takes over what rank 0 says."""
    arrives = meeting._arrives

    def late(store, key: str, deadline: float) -> bool:
        arrived = arrives(store, key, deadline)
        time.sleep(0.5)
        return arrived

    if os.environ["RANK"] == str(rank):
        meeting._arrives = late


def test_a_finished_run_started_again_on_several_processes_is_a_success(
    finished: Path, arguments, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert live(arguments(run__dir=finished), log, processes=2, before=partial(answers_late, 1)) == [0, 0]
    assert "is finished" in log.read_text() and "gone" not in log.read_text()


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory, tiny_data: Path) -> Path:
    """The small data set with 101 validation images: no number of processes above 1 shares them evenly."""
    import numpy as np

    folder = tmp_path_factory.mktemp("odd")
    files = {}
    for role in ("train_images", "train_labels", "val_images", "val_labels"):
        array = np.load(tiny_data / f"{role}.npy")
        files[role] = folder / f"{role}.npy"
        np.save(files[role], array[:101] if role.startswith("val") else array)
    arrays.prepare_arrays(files, folder / "prepared", None)
    return folder / "prepared"


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_several_processes_count_each_validation_image_once(
    processes: int, arguments, odd_data, tmp_path: Path
) -> None:
    """The exported weights, evaluated by one process, give to the last digit what all measured together."""
    run = tmp_path / "run"
    options = arguments(data__root=odd_data, train__precision="fp32", train__global_batch_size=36)
    assert live(options, tmp_path / "log", processes=processes) == [0] * processes
    assert errors.run(cli.main, ["evaluate", str(run)]) == 0
    alone = json.loads((run / "evaluation" / "results.json").read_text())
    together = read_lines(run / "metrics.jsonl")[-1]
    assert alone["images"] == 101
    assert alone["top1"] == pytest.approx(together["val/ema_top1"], abs=1e-9)
    assert alone["top5"] == pytest.approx(together["val/ema_top5"], abs=1e-9)
    assert alone["loss"] == pytest.approx(together["val/ema_loss"], rel=1e-5)


def test_without_data_and_network_one_sentence_names_the_two_ways_out(arguments, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    result = python(
        "train.py",
        *arguments(data__root=tmp_path / "tiny-imagenet-200", data__source="tiny-imagenet"),
        **nowhere,
    )
    assert result.returncode == 2
    assert "python -m tinyimnet prepare" in result.stderr
    assert "configs/smoke.yaml" in result.stderr
    assert "Traceback" not in result.stderr


def test_another_configuration_does_not_resume_a_run(finished: Path, arguments, capsys) -> None:
    before = (finished / "config.yaml").read_text()
    assert errors.run(train.main, arguments(run__dir=finished, optim__lr=0.3, run__log_every=9)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run.dir ")
    assert "optim.lr: 0.1 -> 0.3" in error
    assert "log_every" not in error
    assert (finished / "config.yaml").read_text() == before


def test_a_finished_run_goes_on_with_more_epochs_and_says_that_the_schedule_changes(
    arguments, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    assert live(arguments(), log) == [0]
    assert live(arguments(train__epochs=3, run__save_every=1), log, death=Death("step", 16)) == [-9]
    assert export.load_trained(run).step > 12  # not the weights of the shorter run
    assert live(arguments(train__epochs=3), log) == [0]
    output = log.read_text()
    assert "WARNING: train.epochs is extended from 2 to 3: from here on the learning rate" in output
    assert "resumed at step 12 of 18" in output
    assert output.count("is extended") == 1
    assert json.loads((run / "DONE").read_text())["epochs"] == 3
    assert [line[STEP] for line in read_lines(run / "metrics.jsonl")] == list(range(2, 19, 2))


def test_another_size_of_a_pass_goes_on_with_a_warning(arguments, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert live(arguments(), log, death=Death("step", 9)) == [-9]
    assert live(arguments(train__device_batch_size=8), log) == [0]
    assert "WARNING: a forward pass has 8 images and had 32" in log.read_text()


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
def test_a_mistake_is_one_sentence_and_leaves_no_run_folder(case, arguments, tmp_path: Path, capsys) -> None:
    extra, sentence = case
    assert errors.run(train.main, [*arguments(), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint_may_start_over_with_another_configuration(
    arguments, tmp_path: Path
) -> None:
    first, second = (commandline.load(arguments(optim__lr=lr)) for lr in (0.1, 0.2))
    run_dir = runfolder.find_run(first)
    lock = RunLock(run_dir)
    for settings in (first, second):
        runfolder.lock_run(runfolder.find_run(settings), settings, lock)
        runfolder.open_run(run_dir, settings, {"step": 0})
        lock.release()
    assert runfolder.read_config(run_dir)["optim"]["lr"] == 0.2


def test_a_configuration_that_came_meanwhile_is_looked_at_again_under_the_lock(
    arguments, tmp_path: Path
) -> None:
    assert live(arguments(), tmp_path / "log", death=Death("step", 9)) == [-9]
    other = commandline.load(arguments(optim__lr=0.2))
    with RunLock(tmp_path / "run") as lock, pytest.raises(errors.UserError, match="optim.lr: 0.1 -> 0.2"):
        runfolder.lock_run(tmp_path / "run", other, lock)


def test_a_mistake_ends_the_process_with_2_and_debug_adds_the_traceback() -> None:
    plain, debug = (python("train.py", "--optim.lrr=1", *extra) for extra in ([], ["--debug"]))
    assert (plain.returncode, plain.stderr.count("\n")) == (2, 1)
    assert "Traceback" in debug.stderr and "UserError" in debug.stderr


def test_an_altered_array_is_found_before_the_training(
    arguments, odd_data: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(odd_data, tmp_path / "altered")
    path = tmp_path / "altered" / "train_images.npy"
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert errors.run(train.main, arguments(data__root=tmp_path / "altered")) == 2
    assert f"{path} differs from its manifest" in capsys.readouterr().err


@pytest.mark.long
def test_the_smoke_run_ends_well_above_chance(tmp_path: Path) -> None:
    """`make train`: 200 classes, so chance is 0.5 %; it was at 45 %."""
    smoke = yaml.safe_load((REPO / "configs" / "smoke.yaml").read_text())
    assert smoke["data"]["source"] == "synthetic"
    options = [
        "--config",
        "configs/smoke.yaml",
        f"--run.dir={tmp_path / 'run'}",
        f"--data.root={tmp_path / 'data'}",
    ]
    result = launch([*ACCELERATE, "--num_processes", "1", "train.py", *options], timeout=400)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "DONE").read_text())["val/ema_top1"] > 25
