"""Soft labels from teacher networks: for the right images, in their file, the same in all attempts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from tinyimnet import cli, train
from tinyimnet.commands import soft_labels as soft_labels_command
from tinyimnet.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from tinyimnet.data import loading, soft_labels
from tinyimnet.data.batches import TrainBatches
from tinyimnet.data.dataset import Dataset, open_dataset, tuning_split
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import UserError
from tinyimnet.evaluation import analysis, pictures
from tinyimnet.evaluation.weights import load_trained, metadata_of, save_weights
from tinyimnet.model.network import build_model

NETWORK = ModelConfig(block="basic", widths=(8,), depths=(1,), width=1.0, stem_stride=2)
MIXING = AugmentConfig(mixup_probability=0.4, cutmix_probability=0.4, label_smoothing=0.1)


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data, verify=False)


@pytest.fixture(scope="module")
def teachers(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    files = [tmp_path_factory.mktemp("teacher") / f"{seed}.safetensors" for seed in range(2)]
    about = metadata_of(Config(model=NETWORK, train=TrainConfig(precision="fp32")), dataset)
    for seed, file in enumerate(files):
        save_weights(file, build_model(NETWORK, len(dataset.classes), seed), 7, about)
    return files


@pytest.fixture
def write_with(teachers: list[Path], tiny_data: Path, tmp_path: Path):
    """Return a function that runs `soft-labels` with more options and returns the file that it writes."""

    def write(*options: str) -> Path:
        out = tmp_path / "made" / "soft_labels.safetensors"
        files = map(str, teachers)
        assert cli.main(["soft-labels", *files, "--data", str(tiny_data), "--out", str(out), *options]) == 0
        return out

    return write


@pytest.fixture
def written(write_with) -> Path:
    """The file that `soft-labels` writes."""
    return write_with()


@pytest.mark.parametrize("tta", ["flip", "none"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_softmax_of_the_file_is_the_mean_prediction_of_the_teachers(
    precision: str, tta: str, write_with, teachers: list[Path], dataset: Dataset, monkeypatch
) -> None:
    monkeypatch.setattr(soft_labels_command, "quicker_precision", lambda: precision)
    logits = soft_labels.add(dataset, write_with("--tta", tta)).soft_labels
    networks = [replace(load_trained(file), precision=precision) for file in teachers]
    logs = [analysis.log_probabilities(each, dataset.images["train"], flip=tta == "flip") for each in networks]
    expected = sum(log.double().exp() for log in logs) / 2
    assert logits is not None and logits.dtype == np.float16
    np.testing.assert_allclose(torch.from_numpy(logits).double().softmax(1), expected, rtol=3e-3)


def test_a_file_keeps_small_probabilities(dataset: Dataset, tmp_path: Path) -> None:
    logs = np.tile(np.linspace(-32, 0, 200), (200, 1))
    soft_labels.write(tmp_path / "made.safetensors", logs, dataset, ["a network"])
    read, _ = soft_labels.read(tmp_path / "made.safetensors")
    np.testing.assert_allclose(np.exp(read.astype(np.float64)), np.exp(logs), rtol=0.01)


def test_an_output_that_cannot_be_written_is_named_before_the_work(
    teachers: list[Path], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "log_probabilities", None)
    with pytest.raises(UserError, match="--out .*5.* cannot be written .*; choose another file"):
        out = teachers[0] / "5"  # inside a file
        cli.main(["soft-labels", str(teachers[0]), "--data", str(tiny_data), "--out", str(out)])


def test_soft_labels_change_neither_images_nor_the_targets_from_labels(dataset: Dataset, teacher_logits) -> None:
    config = Config(augment=MIXING, train=TrainConfig(epochs=1, global_batch_size=64))
    both = dataset, soft_labels.add(dataset, teacher_logits)
    without, with_them = (TrainBatches.of_run(config, each, torch.device("cpu")) for each in both)
    images, targets = with_them.load(drawn := with_them.draw(0), slice(0, 64), 0)
    same_images, of_labels = without.load(drawn, slice(0, 64), 0)
    assert drawn.mixed and targets.soft_labels is not None and of_labels.soft_labels is None
    assert torch.equal(images, same_images) and torch.equal(targets.labels, of_labels.labels)


def test_the_tuning_split_keeps_soft_labels_with_their_images(dataset: Dataset) -> None:
    images = np.repeat(dataset.images["train"], 4, axis=0)
    images[:, 0, 0, 0] = np.arange(800) % 256
    numbered = np.arange(800, dtype=np.float16)[:, None]
    whole = replace(
        dataset,
        images={**dataset.images, "train": images},
        labels={**dataset.labels, "train": np.repeat(dataset.labels["train"], 4)},
        soft_labels=numbered,
    )
    split = tuning_split(whole)
    assert split.soft_labels is not None and len(split.soft_labels) == len(split.labels["train"]) == 600
    assert np.array_equal(split.soft_labels[:, 0] % 256, split.images["train"][:, 0, 0, 0])


def _missing(file: Path, dataset: Dataset) -> None:
    file.unlink()


def _damaged(file: Path, dataset: Dataset) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _of_other_images(file: Path, dataset: Dataset) -> None:
    soft_labels.write(file, np.zeros((200, 200)), replace(dataset, digest="0123456789abcdef"), ["a network"])


def _of_an_earlier_version(file: Path, dataset: Dataset) -> None:
    metadata = json.dumps({"data": dataset.digest, "teachers": ["a network"]})
    file.write_bytes(save({"probabilities": np.full((200, 200), 1 / 200, np.float16)}, {"metadata": metadata}))


MISTAKES = {
    "soft_labels.safetensors does not exist; write it with": _missing,
    "soft_labels.safetensors is damaged or not a soft-label file": _damaged,
    "was computed for different data than data.root .* 0123456789ab, not": _of_other_images,
    "holds probabilities, from an earlier version, and must hold logits; write it .* again.$": _of_an_earlier_version,
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_an_unusable_file_is_a_user_error(sentence: str, written: Path, tiny_data: Path, dataset: Dataset) -> None:
    MISTAKES[sentence](written, dataset)
    with pytest.raises(UserError, match=f"^data.soft_labels .*{sentence}"):
        loading.ready_dataset(DataConfig(root=str(tiny_data), soft_labels=str(written)), Rendezvous(environ={}))


def test_inspect_shows_the_targets_of_the_training(
    tiny_data: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, titles = np.zeros((len(dataset.labels["train"]), 200)), []
    said[:, 3] = 20
    soft_labels.write(tmp_path / "all_of_class_3.safetensors", said, dataset, ["a network"])
    monkeypatch.setattr(pictures, "image_grid", lambda images, names, out: titles.extend(names))
    options = [f"--data.root={tiny_data}", f"--data.soft_labels={tmp_path}/all_of_class_3.safetensors"]
    batch = ["--train.global_batch_size=32", "--augment.soft_label_weight=1"]
    assert cli.main(["inspect", "--augmented", "--count=8", *options, *batch]) == 0
    assert titles == [dataset.names[3]] * 8


def test_a_run_resumes_only_with_the_soft_labels_it_started_with(
    written: Path, arguments, dataset: Dataset, tmp_path: Path
) -> None:
    options = arguments(data__soft_labels=written, train__epochs=1)
    assert train.main(options) == 0
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "with their labels and with soft labels of other networks (soft_labels.safetensors)" in card
    soft_labels.write(written, np.zeros((200, 200)), dataset, ["another teacher"])
    with pytest.raises(UserError, match="different data than the run was trained on"):
        train.main([*options, "--train.epochs=2"])
    with pytest.raises(UserError, match=r"data.soft_labels: .*soft_labels.safetensors -> "):
        train.main([*options, "--data.soft_labels="])
