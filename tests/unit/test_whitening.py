"""A whitened stem: uncorrelated responses of equal variance, each with its negative, and never trained."""

import torch
import torch.nn.functional as F
from torch import nn

from tinyimnet.data import synthetic
from tinyimnet.model.whitening import EPSILON, freeze_stem, whitening_filters


def images() -> torch.Tensor:
    pixels = torch.from_numpy(synthetic.draw(range(200), seed=0)).permute(0, 3, 1, 2).float()
    return (pixels - 120) / 70


def test_responses_to_patches_are_uncorrelated_and_of_unit_variance() -> None:
    source = images()
    filters = whitening_filters(source)
    assert filters.shape == (27, 3, 3, 3)
    responses = F.conv2d(source, filters, stride=3).movedim(1, 0).flatten(1).double()
    second_moment = responses @ responses.T / responses.shape[1]
    variances = second_moment.diagonal()
    assert (variances <= 1.001).all() and variances[0] > 0.99
    assert (variances.diff() <= 1e-6).all()  # sorted by falling variance v of the component: v / (v + EPSILON)
    torch.testing.assert_close(second_moment, variances.diag(), atol=1e-3, rtol=0)


def test_filters_are_bounded_where_the_images_have_no_variance() -> None:
    filters = whitening_filters(1e-4 * torch.randn(50, 3, 63, 63, generator=torch.Generator().manual_seed(0)))
    assert filters.flatten(1).norm(dim=1).max() <= 1.001 * EPSILON**-0.5


def test_a_stem_gets_the_first_filters_and_their_negatives_and_is_frozen() -> None:
    filters, stem = whitening_filters(images()), nn.Conv2d(3, 32, 3)
    freeze_stem(stem.weight, filters)
    assert torch.equal(stem.weight, torch.cat([filters[:16], -filters[:16]]))
    assert not stem.weight.requires_grad


def test_channels_without_a_whitening_filter_keep_their_initial_weights() -> None:
    filters, stem = whitening_filters(images()), nn.Conv2d(3, 64, 3)
    drawn = stem.weight.detach().clone()
    freeze_stem(stem.weight, filters)
    assert torch.equal(stem.weight[54:], drawn[54:])
    assert torch.equal(stem.weight[27:54], -filters)
