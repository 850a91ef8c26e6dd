"""tinyimnet summary, inspect, evaluate, predict and prepare, within one process."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.program import REPO
from helpers.sources import arrays_in
from tinyimnet import cli, errors
from tinyimnet.errors import UserError
from tinyimnet.evaluation.weights import load_trained
from tinyimnet.files import read_lines


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run that the commands may write to."""
    return Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("commands") / "run"))


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_summary_shows_the_budget(capsys) -> None:
    assert cli.main(["summary", "--config", "configs/tiny1m.yaml"]) == 0
    output = capsys.readouterr().out
    assert "of 1,000,000 parameters" in output
    assert all(stage in output for stage in ("stem", "stage3", "head", "classifier", "total"))


@pytest.mark.parametrize("augmented", [[], ["--augmented", "--augment.cutmix_probability=1", "--step=3"]])
def test_inspect_writes_a_picture(augmented: list[str], tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    options = ["--config", "configs/smoke.yaml", f"--data.root={tiny_data}", "--count=9", f"--out={out}"]
    assert cli.main(["inspect", *options, *augmented]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 200
        assert len(np.unique(np.asarray(picture))) > 50


def test_a_run_with_a_tuning_split_is_evaluated_on_its_held_out_images(run: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(run, tmp_path / "run")
    (tuned / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("tune_split: false", "tune_split: true")
    )
    assert cli.main(["evaluate", str(tuned)]) == 0
    assert json.loads((tuned / "evaluation" / "results.json").read_text())["split"] == "held-out train"


def test_evaluate_reproduces_the_metrics_of_the_training(run: Path) -> None:
    assert cli.main(["evaluate", str(run)]) == 0
    results = json.loads((run / "evaluation" / "results.json").read_text())
    logged = read_lines(run / "metrics.jsonl")[-1]
    assert results["top1"] == pytest.approx(logged["val/ema_top1"], abs=1e-9)
    assert results["loss"] == pytest.approx(logged["val/ema_loss"], rel=1e-6)
    per_class, confusion = (
        rows(run / "evaluation" / "per_class.csv"),
        rows(run / "evaluation" / "confusion.csv"),
    )
    counts = np.array([row[1:] for row in confusion[1:]], dtype=int)
    assert counts.sum() == 200
    assert sum(int(row[3]) for row in per_class[1:]) == np.trace(counts) == round(results["top1"] * 2)
    assert (run / "evaluation" / "confusion.png").stat().st_size > 10_000


def test_evaluate_averages_over_flips_on_request(run: Path) -> None:
    cli.main(["evaluate", str(run), "--tta", "flip"])
    results = json.loads((run / "evaluation" / "results.json").read_text())
    assert results["top1"] == pytest.approx(json.loads((run / "DONE").read_text())["val/ema_top1_flip"])


def test_evaluate_uses_a_checkpoint_if_there_is_no_final_file(run: Path) -> None:
    final, hidden = run / "final.safetensors", run / "hidden"
    final.rename(hidden)
    try:
        cli.main(["evaluate", str(run)])
    finally:
        hidden.rename(final)
    results = json.loads((run / "evaluation" / "results.json").read_text())
    assert "checkpoints" in results["weights"]
    assert results["top1"] == pytest.approx(read_lines(run / "metrics.jsonl")[-1]["val/ema_top1"], abs=1e-9)


def test_predict_writes_one_row_per_image_in_file_order(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "submission.csv"
    assert cli.main(["predict", str(run), "--split", "test", "--out", str(out)]) == 0
    table = rows(out)
    assert table[0] == ["filename", "label"]
    assert [row[0] for row in table[1:]] == [f"test_{i}.png" for i in range(200)]
    classes = {entry["id"] for entry in json.loads((tiny_data / "manifest.json").read_text())["classes"]}
    assert {row[1] for row in table[1:]} <= classes


def test_predictions_of_a_folder_an_npy_and_a_split_agree(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    images = np.load(tiny_data / "val_images.npy")[:12]
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"img_{i}.png")
    np.save(tmp_path / "some.npy", images.transpose(0, 3, 1, 2))
    labels = []
    for source in (
        ["--split", "val"],
        ["--images", str(tmp_path / "folder")],
        ["--images", str(tmp_path / "some.npy")],
    ):
        cli.main(["predict", str(run), *source, "--out", str(tmp_path / "out.csv"), "--label", "index"])
        labels.append([int(row[1]) for row in rows(tmp_path / "out.csv")[1:][:12]])
    assert labels[0] == labels[1] == labels[2]
    assert [row[0] for row in rows(tmp_path / "out.csv")[1:3]] == ["0", "1"]


MISTAKES = {
    "unknown command": (["fly"], "invalid choice: 'fly'"),
    "no such run": (["evaluate", "runs/none"], "runs/none does not exist"),
    "a similar run": (["evaluate", "RUNN"], "does not exist; did you mean RUN?"),
    "weights without a run": (["evaluate", "WEIGHTS"], "is not in a run folder, whose config.yaml would name its data"),
    "weights without data": (["predict", "WEIGHTS"], "give its prepared data set with --data FOLDER"),
    "unknown option": (["evaluate", "x", "--fast"], "unrecognized arguments: --fast"),
    "no such images": (["predict", "RUN", "--images", "nowhere"], "--images nowhere is neither an image, a folder"),
    "no prepared data": (["inspect", "--data.root=nowhere"], "data.root nowhere holds no prepared data set"),
    "nothing to show": (["inspect", "--data.root=DATA", "--count=0"], "--count is 0"),
    "no place to show it": (
        ["inspect", "--data.root=DATA", "--out=/dev/null/x.png"],
        "--out /dev/null/x.png cannot be written",
    ),
    "no place for labels": (
        ["predict", "RUN", "--out=/dev/null/x.csv"],
        "--out /dev/null/x.csv cannot be written",
    ),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_user_error_is_one_sentence(case, run: Path, tiny_data: Path, capsys) -> None:
    weights = REPO / "results" / "tiny1m_cpu.safetensors"
    names = {"RUN": str(run), "DATA": str(tiny_data), "WEIGHTS": str(weights)}
    *argv, sentence = (re.sub("|".join(names), lambda match: names[match[0]], text) for text in (*case[0], case[1]))
    assert errors.run(cli.main, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64], ids=["empty", "text", "header"])
def test_damaged_weights_are_a_user_error(content: bytes, tmp_path: Path, capsys) -> None:
    file = damaged(tmp_path / "final.safetensors", content)
    assert errors.run(cli.main, ["predict", str(file)]) == 2
    assert f"{file} is damaged or was not written by this program" in capsys.readouterr().err


def test_weights_can_be_used_without_a_run_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "final.safetensors").write_bytes((run / "final.safetensors").read_bytes())
    trained = load_trained(tmp_path / "final.safetensors")
    assert trained.step == 12
    assert not trained.model.training
    assert trained.model(torch.randn(2, 3, 64, 64)).shape == (2, 200)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["a.zip", "--download"],
        ["a.zip", "--val-images", "x.npy"],
        ["--synthetic", "--classes", "c.txt"],
        ["--download", "--size", "32"],
        ["--synthetic", "--val-share", "0.1"],
    ],
)
def test_prepare_asks_for_exactly_one_source(argv: list[str]) -> None:
    with pytest.raises(UserError, match=r"exactly one source.*zip.*--train-images.*--download.*--synthetic"):
        cli.main(["prepare", *argv])


def test_fit_alone_asks_for_a_size() -> None:
    with pytest.raises(UserError, match="^--fit pad says how --size scales images; add --size"):
        cli.main(["prepare", "folder", "--fit", "pad"])


@pytest.mark.parametrize("size", ["0", "31", "129"])
def test_a_size_out_of_range_is_refused(size: str) -> None:
    with pytest.raises(UserError, match=f"^--size {size} is not between 32 and 128 pixels; give such a number"):
        cli.main(["prepare", "folder", "--size", size])


@pytest.mark.parametrize(("options", "fit"), [([], "crop"), (["--fit", "stretch"], "stretch")])
def test_size_crops_unless_told_otherwise(
    options: list[str], fit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoded_in_this_process: None
) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80), "red").save(tmp_path / "source" / name)
    out = ["--out", str(tmp_path / "out"), "--val-share", "0.5"]
    cli.main(["prepare", str(tmp_path / "source"), *out, "--size", "48", *options])
    assert f"scaled to 48x48 pixels (--fit {fit}: " in capsys.readouterr().out


def test_named_arrays_are_scaled_too(tmp_path: Path) -> None:
    files = arrays_in(tmp_path / "npy", 32)
    named = [option for role, file in files.items() for option in (f"--{role.replace('_', '-')}", str(file))]
    cli.main(["prepare", *named, "--out", str(tmp_path / "out"), "--size", "48", "--fit", "pad"])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["image_size"], manifest["fit"]) == (48, "pad")


def test_the_classes_option_applies_to_a_folder_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays_in(tmp_path / "npy")
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\ne\n")
    out = str(tmp_path / "out")
    cli.main(["prepare", str(tmp_path / "npy"), "--out", out, "--classes", str(tmp_path / "ids.txt")])
    assert "8 train, 4 val, 2 test images of 5 classes" in capsys.readouterr().out
