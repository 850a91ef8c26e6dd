"""A run that begins with the weights of a finished one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_run
from lives import Death, live
from safetensors.torch import load_file

import train
from tinyimnet import commandline, data, export
from tinyimnet.errors import UserError
from tinyimnet.files import read_lines

# Six steps that move no weight: a run ends with those that it began with, and so does their average.
STILL = {"train__epochs": 1, "optim__lr": 1e-30, "optim__warmup_epochs": 0}
# A pass has as many images whatever the number of processes, so BatchNorm normalises the same groups.
BY_16 = {"train__device_batch_size": 16}


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed."""
    root = tmp_path_factory.mktemp("finished")
    assert live(small_run(tiny_data, root / "run", run__seed=5), root / "log") == [0]
    return root / "run"


@pytest.fixture
def file(finished: Path, tmp_path: Path) -> Path:
    """A copy of its weights."""
    copy = tmp_path / "begin.safetensors"
    copy.write_bytes((finished / export.FINAL).read_bytes())
    return copy


def learned(file: Path) -> dict[str, torch.Tensor]:
    """Without BatchNorm's statistics, which follow the images in any case."""
    return {name: tensor for name, tensor in load_file(file).items() if tensor.ndim and "running" not in name}


@pytest.mark.parametrize("given", ["", export.FINAL])
def test_it_begins_with_the_averaged_weights_of_a_run_folder_or_a_file(
    given: str, finished: Path, arguments, tmp_path: Path
) -> None:
    assert train.main(arguments(train__init_from=finished / given, **STILL)) == 0
    ends, begun = learned(tmp_path / "run" / export.FINAL), learned(finished / export.FINAL)
    torch.testing.assert_close(ends, begun, rtol=1e-6, atol=0)
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert f"trained from {given or 'run'} on the images" in card


def test_and_so_does_each_of_several_processes(finished: Path, tiny_data: Path, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        options = small_run(
            tiny_data, run := tmp_path / str(processes), train__init_from=finished, **STILL, **BY_16
        )
        assert live(options, tmp_path / "log", processes=processes) == [0] * processes
        losses.append([line["train/loss"] for line in read_lines(run / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_killed_it_goes_on_to_the_same_end_and_once_saved_without_that_file(
    file: Path, tiny_data: Path, tmp_path: Path
) -> None:
    whole, killed = (
        small_run(tiny_data, tmp_path / name, train__init_from=file) for name in ("whole", "killed")
    )
    log = tmp_path / "log"
    assert live(whole, log) == [0]
    assert live(killed, log, death=Death("step", 3)) == [-9]
    assert live(killed, log, death=Death("step", 9)) == [-9]
    file.unlink()
    assert live(killed, log) == [0]
    ends = [load_file(tmp_path / name / export.FINAL) for name in ("whole", "killed")]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def _missing(file: Path, tiny_data: Path) -> None:
    file.unlink()


def _damaged(file: Path, tiny_data: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _for_other_classes(file: Path, tiny_data: Path) -> None:
    dataset = data.open_dataset(tiny_data, verify=False)
    model = export.load_trained(file).model
    backwards = replace(dataset, classes=dataset.classes[::-1])
    settings = commandline.load(small_run(tiny_data, file.parent))
    export.save_weights(file, model, 12, export.description(settings, backwards))


MISTAKES = {
    r"cannot be used: .*begin.safetensors is not a run folder": _missing,
    r"cannot be used: .*begin.safetensors is damaged": _damaged,
    r".*begin.safetensors knows other classes than data.root has": _for_other_classes,
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_file_that_cannot_serve_is_one_sentence(
    sentence: str, file: Path, tiny_data: Path, arguments, tmp_path: Path
) -> None:
    MISTAKES[sentence](file, tiny_data)
    with pytest.raises(UserError, match=f"^train.init_from {sentence}"):
        train.main(arguments(train__init_from=file))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_another_network_is_named_by_a_weight_that_differs(file: Path, arguments) -> None:
    sentence = (
        r"^train.init_from .* is another network \(classifier.2.weight: \(200, 16\), here \(200, 24\)\)"
    )
    with pytest.raises(UserError, match=sentence):
        train.main(arguments(train__init_from=file, model__widths="[16,24]"))
