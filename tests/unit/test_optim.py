"""Schedules are functions of the step, and weight decay skips norms and biases."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tinyimnet.config import ModelConfig, OptimConfig
from tinyimnet.model.batchnorm import flatten_statistics
from tinyimnet.model.network import build_model
from tinyimnet.training.ema import Ema
from tinyimnet.training.muon import Batch, Muon, batches_of
from tinyimnet.training.optim import build_optimizer, ema_decay_at, lr_scale, parameter_groups

COSINE = OptimConfig(warmup_epochs=2, schedule="cosine")
STEPS = {"total_steps": 100, "steps_per_epoch": 10}
MODEL = ModelConfig(block="basic", widths=(8,), depths=(1,), width=1.0, se_ratio=0.25)


def fill_gradients(model: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    """Set random gradients in the memory layout of the weights, as autograd does and fused kernels assume."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)


def test_warm_up_rises_linearly_to_the_peak() -> None:
    assert [lr_scale(step, COSINE, **STEPS) for step in (0, 9, 19)] == pytest.approx([0.05, 0.5, 1.0])


@pytest.mark.parametrize("schedule, half", [("cosine", 0.5), ("linear", 0.5)])
def test_after_the_warm_up_the_learning_rate_falls_to_zero(schedule: str, half: float) -> None:
    config = replace(COSINE, schedule=schedule)
    assert lr_scale(20, config, **STEPS) == pytest.approx(1)
    assert lr_scale(60, config, **STEPS) == pytest.approx(half)
    assert 0 < lr_scale(99, config, **STEPS) < 0.02


def test_the_two_schedules_differ_in_between() -> None:
    assert lr_scale(40, COSINE, **STEPS) > lr_scale(40, replace(COSINE, schedule="linear"), **STEPS)


def test_a_schedule_that_is_all_warm_up_never_divides_by_zero() -> None:
    config = replace(COSINE, warmup_epochs=10)
    assert lr_scale(99, config, **STEPS) == pytest.approx(1)


def test_only_weights_with_more_than_one_dimension_decay() -> None:
    model = build_model(MODEL, 10)
    decayed, spared = parameter_groups(model, OptimConfig(weight_decay=0.1))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name, kind", [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_configured_one(name: str, kind: type) -> None:
    optimizer = build_optimizer(build_model(MODEL, 10), OptimConfig(name=name, momentum=0.8, betas=(0.8, 0.9)))
    assert isinstance(optimizer, kind)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True) if name == "sgd" else group["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_skipped_step_leaves_no_trace_even_if_it_is_the_first(name: str) -> None:
    """The loop relies on `found_inf` of torch's fused optimizers to skip a non-finite step without a sync."""

    def train(gradients: list[float]) -> torch.Tensor:
        model = build_model(MODEL, 10)
        optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1))
        for gradient in gradients:
            fill_gradients(model, seed=0, scale=gradient)
            optimizer.found_inf = torch.tensor(float(gradient != gradient))
            optimizer.grad_scale = None
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    bad = float("nan")
    assert torch.equal(train([bad]), train([]))
    assert torch.equal(train([bad, 1.0, bad, -0.5]), train([1.0, -0.5]))
    assert not torch.equal(train([1.0, -0.5]), train([1.0]))


def test_muon_takes_the_filters_after_the_stem_and_sgd_the_rest() -> None:
    model = build_model(replace(MODEL, block="inverted", head_width=16), 10)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, decayed, spared = parameter_groups(model, OptimConfig(name="muon", lr=0.05, sgd_lr=0.2, weight_decay=0.1))
    assert {names[p] for p in muon["params"]} == {
        "stage1.0.branch.0.weight",
        "stage1.0.branch.6.reduce.weight",
        "stage1.0.branch.6.expand.weight",
        "stage1.0.branch.7.weight",
        "head.0.weight",
    }
    assert {names[p] for p in decayed["params"]} == {
        "stem.0.weight",
        "stage1.0.branch.3.weight",  # depthwise: its rows are filters of separate channels
        "classifier.2.weight",
    }
    assert [group["peak_lr"] for group in (muon, decayed, spared)] == [0.05, 0.2, 0.2]
    assert [group["weight_decay"] for group in (muon, decayed, spared)] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (64, 8, 1, 1), (16, 16, 1, 1)])
def test_muon_moves_all_directions_of_a_filter_bank_equally(shape: tuple[int, ...]) -> None:
    updates = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).flatten(1) for seed in (0, 1)]
    found = torch.stack([1000 * updates[0], updates[1]])
    (batch,) = batches_of([found])
    batch.orthogonalise_()
    rows, columns = updates[0].shape
    for update, result in zip(updates, found, strict=True):
        u, _, v = torch.linalg.svd(update, full_matrices=False)
        singular = torch.linalg.svdvals(result) / max(1, rows / columns) ** 0.5
        assert singular.max() < 1.25
        assert singular.median() > 0.6
        # Same directions as the update, and the same sign: u v' is the nearest semi-orthogonal matrix.
        assert torch.nn.functional.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_joins_similar_shapes_with_the_result_of_each_alone() -> None:
    shapes = [(6, 32, 288), (2, 32, 16), (3, 16, 32), (1, 40, 288), (9, 128, 288)]
    alone = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed, shape in enumerate(shapes)]
    joined = [bank.clone() for bank in alone]
    batches = batches_of(joined)
    assert [tuple(batch.padded.shape) for batch in batches] == [(12, 40, 288), (9, 128, 288)]
    for batch in [*batches, *(Batch([bank]) for bank in alone)]:
        batch.orthogonalise_()
        batch.orthogonalise_()  # the zeros are still there
    torch.testing.assert_close(joined, alone)


@pytest.mark.parametrize("shape", [(24, 16), (16, 40)])
def test_muon_matches_torchs_muon_on_matrices(shape: tuple[int, int]) -> None:
    """torch.optim.Muon iterates in bf16, so it agrees to about two digits."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    filters, matrix = nn.Parameter(start[:, :, None, None].clone()), nn.Parameter(start.clone())
    options = {"lr": 0.1, "weight_decay": 0.2}
    ours = Muon([{"params": [filters], "orthogonal": True, **options}], momentum=0.9)
    theirs = torch.optim.Muon([matrix], momentum=0.9, ns_steps=3, **options)
    for seed in range(4):
        matrix.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        filters.grad = matrix.grad[:, :, None, None].clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(filters.detach().flatten(1), matrix.detach(), atol=0.01, rtol=0)


def test_muon_without_orthogonal_groups_is_sgd() -> None:
    """torch.optim.SGD with Nesterov momentum is the reference."""
    models = [build_model(replace(MODEL, se_ratio=0), 10) for _ in range(2)]
    config = OptimConfig(lr=0.3, weight_decay=0.0)
    muon = Muon(parameter_groups(models[0], config), momentum=0.9)
    sgd = build_optimizer(models[1], config)
    for step in range(3):
        for model in models:
            fill_gradients(model, seed=step)
        muon.step()
        sgd.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_muon_decays_all_weights_except_norms_and_biases() -> None:
    model = build_model(MODEL, 10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = OptimConfig(name="muon", lr=0.5, sgd_lr=0.2, weight_decay=0.1)
    fill_gradients(model, seed=0, scale=0.0)
    build_optimizer(model, config).step()
    for (name, after), old in zip(model.named_parameters(), before, strict=True):
        lr = 0.2 if name.startswith(("stem", "classifier")) else 0.5
        torch.testing.assert_close(after, old * (1 - lr * 0.1) if old.ndim > 1 else old)


def test_ema_decay_warms_up_to_its_value() -> None:
    assert [ema_decay_at(step, 0.999) for step in (0, 90)] == pytest.approx([0.1, 0.91])
    assert ema_decay_at(100_000, 0.999) == 0.999


def test_ema_averages_weights_and_batchnorm_statistics() -> None:
    model = build_model(MODEL, 10)
    ema = Ema(model, flatten_statistics(model))
    before = {name: tensor.clone() for name, tensor in ema.module.state_dict().items()}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)
    ema.update(decay=0.75)
    after = ema.module.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor + 0.25)


def test_ema_without_decay_is_the_model() -> None:
    model = build_model(MODEL, 10)
    ema = Ema(model, flatten_statistics(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    ema.update(decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(ema.module.parameters(), model.parameters(), strict=True))
