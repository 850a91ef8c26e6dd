"""A run that ends above the resolution of its images: whatever uses its weights enlarges the images as it did."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.here import train_here
from helpers.program import REPO
from tinyimnet import cli
from tinyimnet.commands import soft_labels as soft_labels_command
from tinyimnet.data import augment
from tinyimnet.data.dataset import Dataset, open_dataset
from tinyimnet.data.soft_labels import add
from tinyimnet.evaluation import export
from tinyimnet.evaluation.evaluator import Evaluator
from tinyimnet.evaluation.weights import BEST, FINAL, as_trained, load_trained
from tinyimnet.files import read_lines
from tinyimnet.model.network import model_summary
from tinyimnet.run import checkpoint

EVALUATED: list[int] = []  # resolutions in px, in the order of the run


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps, the last 6 of them at 80 px."""
    measure = Evaluator.measure

    def noted(self: Evaluator, *arguments: Any, **options: Any) -> dict[str, float]:
        EVALUATED.append(options["resolution"])
        return measure(self, *arguments, **options)

    keys = {"augment__end_resolution": 80, "augment__end_resolution_from": 0.5, "augment__start_resolution": 64}
    # Whitened filters weight fine detail: at 64 px a probability differs by 2 % on average, without them by 0.2 %.
    keys |= {"model__whiten_stem": True, "optim__ema_decay": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "measure", noted)
        return train_here(tiny_data, tmp_path_factory.mktemp("ended") / "run", **keys)


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data, verify=False)


def probabilities(run: Path, images: np.ndarray, resolution: int) -> torch.Tensor:
    """Return the probabilities (N, K) of enlarged images, as the final weights give them."""
    trained = load_trained(run)
    normalise = augment.Normalise(trained.mean, trained.std, torch.device("cpu"))
    return trained.model(normalise(augment.resize(torch.from_numpy(images), resolution))).softmax(1)


def loss(run: Path, dataset: Dataset, resolution: int) -> float:
    found = probabilities(run, dataset.images["val"], resolution)
    return torch.nn.functional.nll_loss(found.log(), torch.from_numpy(dataset.labels["val"])).item()


def test_a_run_is_evaluated_at_the_resolution_of_its_last_step(run: Path, dataset: Dataset) -> None:
    """Twice after each epoch, of raw and EMA weights, and at the end once more with flip averaging."""
    assert [line["train/resolution"] for line in read_lines(run / "metrics.jsonl")] == [64, 64, 64, 80, 80, 80]
    assert EVALUATED == [64, 64, 80, 80, 80]
    last = json.loads((run / "DONE").read_text())["val/ema_loss"]
    assert loss(run, dataset, 80) == pytest.approx(last, rel=1e-5)
    assert loss(run, dataset, 64) != pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("file", ["", FINAL])
def test_evaluate_repeats_the_last_evaluation_of_the_run(file: str, run: Path, tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(run / file), "--out", str(tmp_path)]) == 0
    found, own = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path, run / "evaluation"))
    assert found == {**own, "weights": found["weights"]}
    assert found["resolution"] == 80
    assert found["loss"] == pytest.approx(json.loads((run / "DONE").read_text())["val/ema_loss"], rel=1e-6)


def test_predict_gives_the_probabilities_of_the_enlarged_images(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    assert cli.main(["predict", str(run), "--split", "val", "--out", str(tmp_path / "a.jsonl")]) == 0
    found = [line["probabilities"][0] for line in read_lines(tmp_path / "a.jsonl")]
    assert found == pytest.approx(probabilities(run, dataset.images["val"], 80).amax(1).tolist(), rel=1e-4)


def test_soft_labels_are_those_of_the_enlarged_images(run: Path, dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    out, images = tmp_path / "soft.safetensors", dataset.images["train"]
    monkeypatch.setattr(soft_labels_command, "quicker_precision", lambda: "fp32")
    assert cli.main(["soft-labels", str(run), "--tta", "none", "--out", str(out)]) == 0
    found = torch.from_numpy(add(dataset, out).soft_labels).double().softmax(1)
    np.testing.assert_allclose(found, probabilities(run, images, 80), rtol=3e-3)


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_exported_file_enlarges_the_images_itself(form: str, run: Path, dataset: Dataset, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), "--format", form, "--out", str(tmp_path / "file")]) == 0
    images = np.concatenate([dataset.images["val"][:50], np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3))])
    its = export.probabilities((tmp_path / "file").read_bytes(), form, images := images.astype(np.uint8))
    torch.testing.assert_close(torch.from_numpy(its), probabilities(run, images, 80), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("size", "resolution"), [(64, 72), (64, 80), (64, 96), (64, 128), (32, 40), (84, 105)])
def test_an_exported_file_enlarges_with_the_bits_of_the_training(size: int, resolution: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, size, size, 3), np.uint8)
    images = torch.from_numpy(np.concatenate([noise, noise // 128 * 255]))
    its = export.Resize(size, resolution)(images.movedim(3, 1).float())
    assert torch.equal(its.movedim(1, 3), augment.resize(images, resolution).float())


def test_the_card_and_the_costs_are_for_the_enlarged_images(run: Path) -> None:
    info = json.loads((run / "run_info.json").read_text())
    assert (info["image_size"], info["resolution"]) == (64, 80)
    assert info["macs"] == sum(stage.macs for stage in model_summary(load_trained(run).model, 80))
    card = (run / "MODEL_CARD.md").read_text()
    assert "classes of 64 x 64 images" in card and "\nIt sees images enlarged to 80 x 80; " in card
    assert '("picture.jpg").convert("RGB"), (64, 64))' in card


def test_weights_from_before_the_last_resolution_are_for_plain_images(run: Path) -> None:
    state = checkpoint.load_newest(run / "checkpoints")
    assert state is not None
    metadata, model = json.loads(state["metadata"]), torch.nn.Module()
    assert [as_trained(model, run, step, metadata).resolution for step in (1, 6, 7, 12)] == [64, 64, 80, 80]
    best = load_trained(run / BEST)
    assert best.resolution == {6: 64, 12: 80}[best.step]


@pytest.mark.parametrize("size", [None, 96])
def test_older_weights_are_for_images_of_their_own_size(size: int | None) -> None:
    old = {"classes": (), "names": (), "mean": (), "std": (), "precision": "fp32", "model": {}}
    old |= {"image_size": size} if size else {}
    assert as_trained(torch.nn.Module(), Path(), 7, old).resolution == (size or 64)
    assert load_trained(REPO / "results" / "tiny1m_cpu.safetensors").resolution == 64


def test_a_run_at_64_px_continues_from_weights_of_80_px(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    still = {"train__epochs": 1, "optim__lr": 1e-30, "optim__warmup_epochs": 0}  # too small to change a weight
    other = train_here(tiny_data, tmp_path / "run", train__init_from=run / FINAL, **still)
    begun, ended = load_trained(run), load_trained(other)
    assert (begun.resolution, ended.resolution) == (80, 64)
    torch.testing.assert_close(ended.model.classifier[2].weight, begun.model.classifier[2].weight, rtol=1e-6, atol=0)
