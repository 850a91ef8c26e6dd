"""A step that is repeated like a CUDA graph: only its inputs change, and it does what a launched step does."""

from pathlib import Path

import pytest
import torch

from helpers.recording import Launched, Recorded
from helpers.trainings import DISTILLED, EVERYTHING, equal
from tinyimnet.errors import UserError
from tinyimnet.training import captured, optim
from tinyimnet.training.trainer import Trainer

STEPS = 9  # of 12, in 6 of which images are mixed; from 32 px to 64


@pytest.fixture
def after(trainer, tmp_path: Path):
    """Return a function that takes STEPS steps and returns the trainer."""

    def take(graphs: type | None, **overrides: object) -> Trainer:
        name = graphs.__name__ if graphs else "none"
        settings = {**EVERYTHING, "augment__mix_until": 0.5, **overrides, "run__dir": tmp_path / name}
        made = trainer(**settings)
        made.train_step.graphs = graphs(made.train_step.work) if graphs else None
        for _ in range(STEPS):
            made.train_step()
        return made

    return take


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_repeated_step_has_the_bits_of_a_launched_one(optimizer: str, precision: str, after) -> None:
    settings = {"optim__name": optimizer, "train__precision": precision}
    repeated, launched = after(Recorded, **settings), after(Launched, **settings)
    assert 2 * len(repeated.train_step.graphs.recordings) < STEPS
    assert equal(repeated.state.snapshot()[0], launched.state.snapshot()[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_repeated_step_of_a_distillation_has_the_bits_of_a_launched_one(precision, teacher_logits, after) -> None:
    settings = DISTILLED | {"data__soft_labels": teacher_logits, "train__precision": precision}
    repeated, launched = after(Recorded, **settings), after(Launched, **settings)
    assert equal(repeated.state.snapshot()[0], launched.state.snapshot()[0])


def test_what_would_be_a_constant_in_a_graph_is_noticed(after, monkeypatch) -> None:
    clip = optim.clip_
    seen: list[float] = []

    def changing(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
        seen.append(max_norm)
        return clip(gradients, 0.01 * max_norm * len(seen))  # a number that the host changes from step to step

    monkeypatch.setattr(optim, "clip_", changing)
    repeated = after(Recorded)
    seen.clear()
    launched = after(Launched)
    assert not equal(repeated.state.snapshot()[0]["model"], launched.state.snapshot()[0]["model"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_inputs_on_the_device_round_rates_to_fp32_and_change_nothing_else(optimizer: str, after) -> None:
    settings = {"optim__name": optimizer, "train__precision": "fp32"}
    on_device, on_host = after(Launched, **settings), after(None, **settings)
    for found, expected in zip(on_device.bare.parameters(), on_host.bare.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_a_repeated_step_holds_no_memory_of_the_graph(after) -> None:
    groups = after(Recorded).state.optimizer.state_dict()["param_groups"]
    assert all(isinstance(group["lr"], float) for group in groups)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("cpu", 1, 1), "an NVIDIA GPU, and torch sees none"),
        (("cuda", 2, 1), "a single process, not 2"),
        (("cuda", 1, 4), r"a batch in one piece, not in 4 micro-batches \(train.device_batch_size\)"),
    ],
)
def test_what_a_graph_cannot_repeat_is_refused(arguments: tuple[str, int, int], reason: str) -> None:
    with pytest.raises(UserError, match=f"train.cuda_graph is true and needs {reason}; leave it false"):
        captured.check(torch.device(arguments[0]), *arguments[1:])


def test_a_graph_on_a_machine_without_a_gpu_is_refused(trainer) -> None:
    with pytest.raises(UserError, match="train.cuda_graph is true and needs an NVIDIA GPU"):
        trainer(train__cuda_graph=True)
