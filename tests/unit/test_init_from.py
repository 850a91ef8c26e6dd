"""train.init_from: a run that starts with the weights of a finished one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.program import small_run
from tinyimnet import config_cli, train
from tinyimnet.data.dataset import open_dataset
from tinyimnet.errors import UserError
from tinyimnet.evaluation.weights import FINAL, load_trained, metadata_of, save_weights

# Six steps whose learning rate is too small to change a weight: a run and its EMA end with the initial weights.
STILL = {"run__seed": 5, "train__epochs": 1, "optim__lr": 1e-30, "optim__warmup_epochs": 0}


@pytest.fixture
def file(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the weights of the finished run."""
    copy = tmp_path / "begin.safetensors"
    copy.write_bytes((finished_run / FINAL).read_bytes())
    return copy


def learned(file: Path) -> dict[str, torch.Tensor]:
    """Return weights without BatchNorm's statistics, which follow the images in any case."""
    return {name: tensor for name, tensor in load_file(file).items() if tensor.ndim and "running" not in name}


@pytest.mark.parametrize("given", ["", FINAL])
def test_it_starts_with_the_ema_weights_of_a_run_folder_or_a_file(
    given: str, finished_run: Path, arguments, tmp_path: Path
) -> None:
    assert train.main(arguments(train__init_from=finished_run / given, **STILL)) == 0
    ends, begun = learned(tmp_path / "run" / FINAL), learned(finished_run / FINAL)
    torch.testing.assert_close(ends, begun, rtol=1e-6, atol=0)
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert f"trained from {given or 'run'} on the images" in card


def _missing(file: Path, tiny_data: Path) -> None:
    file.unlink()


def _damaged(file: Path, tiny_data: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _for_other_classes(file: Path, tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data, verify=False)
    model = load_trained(file).model
    backwards = replace(dataset, classes=dataset.classes[::-1])
    settings = config_cli.load(small_run(tiny_data, file.parent))
    save_weights(file, model, 12, metadata_of(settings, backwards))


MISTAKES = {
    r"cannot be used: .*begin.safetensors does not exist": _missing,
    r"cannot be used: .*begin.safetensors is damaged": _damaged,
    r".*begin.safetensors does not have the classes of data.root in the same order": _for_other_classes,
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_an_unusable_file_is_a_user_error(
    sentence: str, file: Path, tiny_data: Path, arguments, tmp_path: Path
) -> None:
    MISTAKES[sentence](file, tiny_data)
    with pytest.raises(UserError, match=f"^train.init_from {sentence}"):
        train.main(arguments(train__init_from=file))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_error_for_a_different_network_names_a_weight_that_differs(file: Path, arguments) -> None:
    sentence = r"^train.init_from .* is a different network \(classifier.2.weight: \(200, 16\), here \(200, 24\)\)"
    with pytest.raises(UserError, match=sentence):
        train.main(arguments(train__init_from=file, model__widths="[16,24]"))
