"""Schedules are functions of the step; decay spares norms and biases."""

from dataclasses import replace

import pytest
import torch

from tinyimnet.config import ModelConfig, OptimConfig
from tinyimnet.ema import Ema
from tinyimnet.model import build_model
from tinyimnet.optim import build_optimizer, ema_decay_at, lr_at, parameter_groups

COSINE = OptimConfig(lr=0.8, warmup_epochs=2, schedule="cosine")
STEPS = {"total_steps": 100, "steps_per_epoch": 10}
MODEL = ModelConfig(block="basic", widths=(8,), depths=(1,), width=1.0, se_ratio=0.25)


def test_warm_up_rises_linearly_to_the_peak() -> None:
    assert [lr_at(step, COSINE, **STEPS) for step in (0, 9, 19)] == pytest.approx([0.04, 0.4, 0.8])


@pytest.mark.parametrize("schedule, half", [("cosine", 0.4), ("linear", 0.4)])
def test_after_the_warm_up_it_falls_to_zero(schedule: str, half: float) -> None:
    config = replace(COSINE, schedule=schedule)
    assert lr_at(20, config, **STEPS) == pytest.approx(0.8)
    assert lr_at(60, config, **STEPS) == pytest.approx(half)
    assert 0 < lr_at(99, config, **STEPS) < 0.02


def test_the_two_schedules_differ_in_between() -> None:
    assert lr_at(40, COSINE, **STEPS) > lr_at(40, replace(COSINE, schedule="linear"), **STEPS)


def test_a_schedule_that_is_all_warm_up_never_divides_by_zero() -> None:
    config = replace(COSINE, warmup_epochs=10)
    assert lr_at(99, config, **STEPS) == pytest.approx(0.8)


def test_only_weights_with_more_than_one_dimension_decay() -> None:
    model = build_model(MODEL, 10)
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name, kind", [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_one_asked_for(name: str, kind: type) -> None:
    optimizer = build_optimizer(
        build_model(MODEL, 10), OptimConfig(name=name, momentum=0.8, betas=(0.8, 0.9))
    )
    assert isinstance(optimizer, kind)
    group = optimizer.param_groups[0]
    assert (
        (group["momentum"], group["nesterov"]) == (0.8, True)
        if name == "sgd"
        else group["betas"] == (0.8, 0.9)
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_skipped_step_leaves_no_trace_even_if_it_is_the_first(name: str) -> None:
    """The loop relies on `found_inf` of torch's fused optimizers to skip a non-finite step without a sync."""

    def train(gradients: list[float]) -> torch.Tensor:
        module = torch.nn.ParameterDict({"p": torch.nn.Parameter(torch.ones(1000))})
        optimizer = build_optimizer(module, OptimConfig(name=name))
        for gradient in gradients:
            module["p"].grad = torch.full((1000,), gradient)
            optimizer.found_inf = torch.tensor(float(gradient != gradient))
            optimizer.grad_scale = None
            optimizer.step()
        return module["p"].detach()

    bad = float("nan")
    assert torch.equal(train([bad]), torch.ones(1000))
    assert torch.equal(train([bad, 1.0, bad, 0.5]), train([1.0, 0.5]))


def test_ema_decay_warms_up_to_its_value() -> None:
    assert [ema_decay_at(step, 0.999) for step in (0, 90)] == pytest.approx([0.1, 0.91])
    assert ema_decay_at(100_000, 0.999) == 0.999


def test_ema_averages_weights_and_batchnorm_statistics() -> None:
    model = build_model(MODEL, 10)
    ema = Ema(model)
    before = {name: tensor.clone() for name, tensor in ema.module.state_dict().items()}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)
    ema.update(model, decay=0.75)
    after = ema.module.state_dict()
    for name, tensor in before.items():
        expected = tensor if "num_batches" in name else tensor + 0.25
        torch.testing.assert_close(after[name], expected)


def test_ema_without_decay_is_the_model() -> None:
    model = build_model(MODEL, 10)
    ema = Ema(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    ema.update(model, decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(ema.module.parameters(), model.parameters(), strict=True))
