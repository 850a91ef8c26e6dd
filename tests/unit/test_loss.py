"""The loss with soft labels is that of its formula, written here in float64 with elementary operations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyimnet.config import AugmentConfig
from tinyimnet.data.augment import Targets, softened
from tinyimnet.data.batches import Draw, TrainBatches
from tinyimnet.training.loss import batch_loss

N, K, B = 96, 20, 32
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(0, K, (N,), generator=GENERATOR)
TEACHERS = torch.randn(N, K, generator=GENERATOR).mul(3).sub(5).half()
STUDENT = torch.randn(B, K, generator=GENERATOR).mul(2)
MIXING = AugmentConfig(mixup_probability=0.4, cutmix_probability=0.4, label_smoothing=0.1, soft_label_weight=0.8)
CONFIGS = {
    "neither": MIXING,
    "temperature": replace(MIXING, soft_label_temperature=3.0),
    "Z-score": replace(MIXING, soft_label_standardise=True),
    "both": replace(MIXING, soft_label_temperature=3.0, soft_label_standardise=True),
    "soft labels only": replace(MIXING, soft_label_temperature=3.0, soft_label_weight=1.0),
    "nothing mixed": AugmentConfig(soft_label_temperature=3.0, soft_label_standardise=True, soft_label_weight=0.3),
}


def batch(config: AugmentConfig, teachers: Tensor | None = TEACHERS) -> tuple[Draw, Targets]:
    """The first batch of a training set with these soft labels."""
    source = TrainBatches(
        torch.zeros(N, 32, 32, 3, dtype=torch.uint8), LABELS, K, mean=(0.5,) * 3, std=(0.25,) * 3, config=config,
        soft_labels=teachers, seed=3, epochs=2, global_batch_size=B,
    )  # fmt: skip
    drawn = source.draw(0)
    return drawn, source.load(drawn, slice(0, B), 0)[1]


def formula(logits: Tensor, drawn: Draw, config: AugmentConfig) -> Tensor:
    """The loss of float64 logits."""
    weight, temperature = config.soft_label_weight, config.soft_label_temperature

    def soft(z: Tensor) -> Tensor:
        if config.soft_label_standardise:
            deviation = z - z.mean(1, keepdim=True)
            z = deviation / (deviation.square().mean(1, keepdim=True).sqrt() + 1e-7)
        return z / temperature

    def mixed(rows: Tensor) -> Tensor:
        share = torch.from_numpy(drawn.own_share()).double()[:, None]
        own, partners = drawn.views[:, 0], drawn.views[drawn.partners, 0]
        return share * rows[own] + (1 - share) * rows[partners]

    def cross_entropy(targets: Tensor, z: Tensor) -> Tensor:
        return -(targets * (z - z.exp().sum(1, keepdim=True).log())).sum(1).mean()

    labels = torch.eye(K).double()[LABELS] * (1 - config.label_smoothing) + config.label_smoothing / K
    exponentials = soft(TEACHERS.double()).exp()
    teachers = exponentials / exponentials.sum(1, keepdim=True)
    of_labels, of_teachers = cross_entropy(mixed(labels), logits), cross_entropy(mixed(teachers), soft(logits))
    return (1 - weight) * of_labels + weight * temperature**2 * of_teachers


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_and_its_gradient_are_those_of_the_formula(name: str) -> None:
    config = CONFIGS[name]
    drawn, targets = batch(config)
    assert drawn.mixed == (name != "nothing mixed")
    logits, exact = STUDENT.clone().requires_grad_(), STUDENT.double().requires_grad_()
    loss, expected = batch_loss(logits, targets, config), formula(exact, drawn, config)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-8)


def test_without_soft_labels_the_loss_is_that_of_the_labels_bit_for_bit() -> None:
    targets = batch(MIXING, teachers=None)[1]
    assert targets.soft_labels is None
    assert torch.equal(batch_loss(STUDENT, targets, MIXING), F.cross_entropy(STUDENT, targets.labels))


def test_at_temperature_1_it_is_the_loss_of_the_mean_target() -> None:
    targets = batch(MIXING)[1]
    mean = 0.2 * targets.labels + 0.8 * targets.soft_labels
    torch.testing.assert_close(batch_loss(STUDENT, targets, MIXING), F.cross_entropy(STUDENT, mean))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_number_added_to_all_logits_of_an_image_changes_nothing(name: str) -> None:
    shift = torch.arange(N)[:, None] / 8  # exact in float16
    moved, plain = batch(CONFIGS[name], TEACHERS.float() + shift)[1], batch(CONFIGS[name], TEACHERS.float())[1]
    torch.testing.assert_close(moved.soft_labels, plain.soft_labels, rtol=1e-4, atol=1e-7)
    losses = (batch_loss(logits, plain, CONFIGS[name]) for logits in (STUDENT, STUDENT + shift[:B]))
    torch.testing.assert_close(*losses)


def test_standardised_logits_of_an_image_may_be_multiplied_by_any_number() -> None:
    config, factor = CONFIGS["both"], torch.arange(1, N + 1)[:, None] / 8
    scaled, plain = batch(config, TEACHERS.float() * factor)[1], batch(config, TEACHERS.float())[1]
    torch.testing.assert_close(scaled.soft_labels, plain.soft_labels, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(softened(STUDENT * factor[:B], config), softened(STUDENT, config), rtol=1e-4, atol=1e-6)


def test_equal_logits_are_standardised_without_a_division_by_zero() -> None:
    config = CONFIGS["both"]
    targets, logits = batch(config, torch.full((N, K), -5.3))[1], torch.zeros(B, K, requires_grad=True)
    loss = batch_loss(logits, targets, config)
    loss.backward()
    np.testing.assert_allclose(targets.soft_labels, 1 / K, rtol=1e-5)
    assert loss.isfinite() and logits.grad.isfinite().all()
