"""train.init_from: a run that starts with the weights of a finished one."""

import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.program import REPO
from helpers.sources import with_classes
from tinyimnet import config_cli, train
from tinyimnet.data.dataset import open_dataset
from tinyimnet.errors import UserError
from tinyimnet.evaluation.weights import FINAL, initial_weights
from tinyimnet.model.network import build_model, resolve_width

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


MISTAKES = {
    r"cannot be used: .*begin.safetensors does not exist": _missing,
    r"cannot be used: .*begin.safetensors is damaged": _damaged,
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


CLASSES = {
    "fewer": [f"c{i}" for i in range(10)],
    "others": [f"c{i}" for i in range(200)],
    "the same in another order": None,
}


@pytest.mark.parametrize("ids", CLASSES.values(), ids=CLASSES)
def test_for_other_classes_the_body_is_kept_and_the_classifier_is_new(
    ids: list[str] | None, file: Path, tiny_data: Path, arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ids or list(open_dataset(tiny_data).classes[::-1])
    data = with_classes(tiny_data, tmp_path / "other", ids)
    options = arguments(data__root=data, train__init_from=file, augment__start_resolution=32, **STILL)
    assert train.main(options) == 0
    assert f"(200 there, {len(ids)} here); the classifier starts anew\n" in capsys.readouterr().out
    fresh = build_model(config_cli.load(options).model, len(ids), seed=5).state_dict()
    begun, ends = learned(file), learned(tmp_path / "run" / FINAL)
    assert ends.keys() == begun.keys()
    for name, tensor in ends.items():
        expected = fresh[name] if name.startswith("classifier.") else begun[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=0)


def test_for_the_same_classes_nothing_is_said(file: Path, arguments, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(arguments(train__init_from=file, **STILL)) == 0
    assert "classifier" not in capsys.readouterr().out


def test_the_error_gives_the_options_that_fit_where_the_width_is_automatic() -> None:
    """With fewer classes the budget leaves room for a wider network."""

    def initial(*options: str) -> dict[str, torch.Tensor]:
        config = config_cli.load(["--config=configs/tiny1m_cpu.yaml", *options]).model
        metadata = {"classes": CLASSES["fewer"], "model": asdict(resolve_width(config, 10))}
        return initial_weights(REPO / "results/tiny1m_cpu.safetensors", build_model(config, 10), metadata)

    with pytest.raises(UserError, match="; add --model.width=0.96875 --model.head_width=144.$") as raised:
        initial()
    advice = str(raised.value).partition("; add ")[2].removesuffix(".")
    assert initial(*shlex.split(advice))["classifier.2.weight"].shape == (10, 144)
