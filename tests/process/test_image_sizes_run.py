"""Images of 32 and of 96 pixels, as a user takes them from `prepare` over a training to a prediction."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.here import train_here
from helpers.program import python
from tinyimnet import cli
from tinyimnet.errors import UserError
from tinyimnet.evaluation import analysis, export
from tinyimnet.evaluation.weights import FINAL, load_trained
from tinyimnet.files import read_lines
from tinyimnet.model.network import model_summary


def arrays(folder: Path, size: int) -> Path:
    """Write 64 train, 20 val and 5 test images of ten classes, each around the colour of its class, as .npy files."""
    folder.mkdir()
    rng = np.random.default_rng(size)
    colours = rng.integers(0, 256, (10, 1, 1, 3))
    for split, n in (("train", 64), ("val", 20), ("test", 5)):
        labels = np.arange(n) % 10
        images = rng.normal(colours[labels], 60, (n, size, size, 3)).clip(0, 255).astype(np.uint8)
        np.save(folder / f"x_{split}.npy", images)
        if split != "test":
            np.save(folder / f"y_{split}.npy", labels)
    return folder


def predicted(run: Path, *options: object) -> list[str]:
    out = run.with_name("labels.csv")
    assert cli.main(["predict", str(run), "--out", str(out), *map(str, options)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        return [label for _, label in list(csv.reader(file))[1:]]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("sources") / "cifar", 32)


@pytest.fixture(scope="module")
def data(cifar: Path) -> Path:
    out = cifar.with_name("data")
    result = python("-m", "tinyimnet", "prepare", str(cifar), "--out", str(out), "--size", "32")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    return train_here(data, data.with_name("run"))


def test_arrays_of_32_px_are_prepared_as_they_are(cifar: Path, data: Path) -> None:
    for split in ("train", "val", "test"):
        assert (data / f"{split}_images.npy").read_bytes() == (cifar / f"x_{split}.npy").read_bytes()


def test_the_summary_of_a_network_is_for_the_images_of_the_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "--config", "smoke", "--data.root", str(data)]) == 0
    assert "10 classes, 32 px" in capsys.readouterr().out


def test_a_run_on_them_grows_to_32_px(run: Path) -> None:
    lines = read_lines(run / "metrics.jsonl")
    assert [line["train/resolution"] for line in lines] == [20, 28]
    info, trained = json.loads((run / "run_info.json").read_text()), load_trained(run)
    assert (info["image_size"], trained.image_size) == (32, 32)
    assert info["macs"] == sum(stage.macs for stage in model_summary(trained.model, 32))
    assert "classes of 32 x 32 images" in (run / "MODEL_CARD.md").read_text()


def test_evaluating_the_run_repeats_its_last_result(run: Path, tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(run), "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["loss"] == pytest.approx(json.loads((run / "DONE").read_text())["val/ema_loss"], rel=1e-6)


def test_new_images_of_32_px_and_of_other_sizes_are_predicted(run: Path, cifar: Path, tmp_path: Path) -> None:
    expected = predicted(run, "--split", "val")
    assert predicted(run, "--images", cifar / "x_val.npy") == expected
    for row, pixels in enumerate(np.load(cifar / "x_val.npy")):
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
    Image.new("RGB", (100, 80)).save(tmp_path / "photo.jpg")
    assert predicted(run, "--images", tmp_path)[:-1] == expected
    np.save(tmp_path / "large.npy", np.load(cifar / "x_val.npy").repeat(2, axis=1).repeat(2, axis=2))
    assert len(predicted(run, "--images", tmp_path / "large.npy")) == 20


@pytest.mark.parametrize("weights", ["", FINAL])
def test_its_export_takes_images_of_32_px(weights: str, run: Path, cifar: Path, tmp_path: Path, capsys) -> None:
    """Compared on validation images of the run, or on noise for a file of weights alone."""
    source = tmp_path / "alone.safetensors" if weights else run
    if weights:
        source.write_bytes((run / weights).read_bytes())
    assert cli.main(["export", str(source), "--out", str(tmp_path / "model.onnx")]) == 0
    assert "images (N, 32, 32, 3) uint8 RGB" in capsys.readouterr().out
    images = np.load(cifar / "x_test.npy")
    its = export.probabilities((tmp_path / "model.onnx").read_bytes(), "onnx", images)
    own = analysis.log_probabilities(load_trained(run), images).exp()
    torch.testing.assert_close(torch.from_numpy(its), own, rtol=1e-4, atol=1e-7)


def test_the_example_of_its_card_scales_pictures_to_32_px(run: Path) -> None:
    assert 'ImageOps.fit(Image.open("picture.jpg").convert("RGB"), (32, 32))' in (run / "MODEL_CARD.md").read_text()


def test_data_of_another_size_is_refused(run: Path, cifar: Path, tmp_path: Path) -> None:
    assert cli.main(["prepare", str(cifar), "--out", str(tmp_path / "data"), "--size", "64"]) == 0
    sentence = r"has images of 64 px, and .*run.* was trained on those of 32 px; give data of that size"
    with pytest.raises(UserError, match=sentence):
        cli.main(["evaluate", str(run), "--data", str(tmp_path / "data")])


def test_images_of_96_px_continue_from_weights_of_32_px(run: Path, tmp_path: Path) -> None:
    source = arrays(tmp_path / "large", 96)
    assert cli.main(["prepare", str(source), "--out", str(tmp_path / "data"), "--size", "96"]) == 0
    # The learning rate is too small to change a weight.
    still = {"train__epochs": 1, "optim__lr": 1e-30, "optim__warmup_epochs": 0}
    large = train_here(tmp_path / "data", tmp_path / "run", train__init_from=run, **still)
    begun, ended = (
        {name: tensor for name, tensor in load_file(folder / FINAL).items() if tensor.ndim and "running" not in name}
        for folder in (run, large)
    )
    torch.testing.assert_close(ended, begun, rtol=1e-6, atol=0)
    assert read_lines(large / "metrics.jsonl")[-1]["train/resolution"] == 72
    assert len(predicted(large, "--images", source / "x_test.npy")) == 5
