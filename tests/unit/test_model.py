"""The parameter budget is enforced, and the blocks have their documented structure."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from tinyimnet import config_cli
from tinyimnet.config import ModelConfig
from tinyimnet.errors import UserError
from tinyimnet.model.casting import CastWeights
from tinyimnet.model.network import (
    Block,
    DropPath,
    build_model,
    count_parameters,
    model_summary,
    resolve_width,
    round_channels,
)

SHIPPED = sorted(path.name for path in config_cli.CONFIGS.glob("*.yaml"))
SMALL = ModelConfig(block="basic", widths=(16, 32), depths=(1, 2), width=1.0, expansion=1.0)
KINDS = [
    SMALL,
    replace(SMALL, se_ratio=0.25),
    replace(SMALL, block="bottleneck", expansion=0.5, se_ratio=0.25),
    replace(SMALL, block="inverted", expansion=3.0, se_ratio=0.25, activation="silu", head_width=24),
]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_uses_at_least_99_5_percent_of_the_budget(name: str) -> None:
    settings = config_cli.load(["--config", str(config_cli.CONFIGS / name)])
    assert settings.model.max_parameters == 1_000_000
    n = count_parameters(build_model(settings.model, 200))
    assert 995_000 <= n <= 1_000_000


def test_a_network_above_the_budget_is_refused_with_the_count_by_stage() -> None:
    with pytest.raises(UserError, match=r"max_parameters is 1,000,000 and the network has 3,6.*stage3 2,7"):
        build_model(ModelConfig(width=3.0), 200)


def test_one_parameter_above_the_budget_is_too_many() -> None:
    n = count_parameters(build_model(SMALL, 10))
    assert count_parameters(build_model(replace(SMALL, max_parameters=n), 10)) == n
    with pytest.raises(UserError, match="max_parameters"):
        build_model(replace(SMALL, max_parameters=n - 1), 10)


def test_auto_width_finds_the_widest_network_that_fits() -> None:
    auto = replace(SMALL, width="auto", max_parameters=100_000)
    found = resolve_width(auto, 10)
    step = 8 / max(found.widths)
    assert count_parameters(build_model(found, 10)) <= 100_000
    with pytest.raises(UserError, match="max_parameters"):
        build_model(replace(found, width=float(found.width) + step), 10)


def test_a_budget_that_no_width_fits_is_refused() -> None:
    with pytest.raises(UserError, match="too few for model.depths"):
        build_model(replace(SMALL, width="auto", max_parameters=100), 10)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.block}-{kind.se_ratio}")
def test_stages_halve_the_resolution_and_the_summary_counts_everything(kind: ModelConfig) -> None:
    model = build_model(kind, 10)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    rows = {row.name: row for row in model_summary(model)}
    assert rows["stem"].shape == (16, 64, 64)
    assert rows["stage2"].shape == (32, 32, 32)
    assert sum(row.parameters for row in rows.values()) == count_parameters(model)
    assert rows["stem"].macs == 64 * 64 * 16 * 3 * 9


@pytest.mark.parametrize("size", [*range(8, 65, 4), 73, 84, 128, 256])
def test_every_training_resolution_fits_through_every_stage(size: int) -> None:
    model = build_model(replace(SMALL, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), stem_stride=2), 10)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_the_summary_is_for_an_image_of_the_given_size() -> None:
    stem = model_summary(build_model(SMALL, 10), 96)[0]
    assert (stem.shape, stem.macs) == ((16, 96, 96), 96 * 96 * 16 * 3 * 9)


def test_a_strided_stem_halves_the_resolution() -> None:
    assert model_summary(build_model(replace(SMALL, stem_stride=2), 10))[0].shape == (16, 32, 32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.block}-{kind.se_ratio}")
def test_a_new_block_is_its_shortcut_because_its_last_norm_is_zero(kind: ModelConfig) -> None:
    block = Block(kind, 16, 16, stride=1, drop_path=0.0).eval()
    x = torch.randn(2, 16, 8, 8)
    expected = x if kind.block == "inverted" else block.activation(x.clone())
    torch.testing.assert_close(block(x), expected)


def test_the_strided_shortcut_averages_before_it_projects() -> None:
    shortcut = Block(SMALL, 16, 32, stride=2, drop_path=0.0).shortcut
    assert isinstance(shortcut[0], nn.AvgPool2d)
    assert shortcut[1].stride == (1, 1)


@pytest.mark.parametrize("block, groups", [("basic", [1, 1]), ("bottleneck", [1]), ("inverted", [96])])
def test_only_the_inverted_block_has_depthwise_convolutions(block: str, groups: list[int]) -> None:
    made = Block(replace(SMALL, block=block, expansion=3.0), 32, 32, stride=1, drop_path=0.0)
    spatial = [m for m in made.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.groups for m in spatial] == groups


def test_the_initial_variance_of_a_filter_preserves_that_of_gradients() -> None:
    """He et al., arXiv 1502.01852: variance 2 / (k^2 * output channels that an input channel reaches)."""
    config = ModelConfig(block="inverted", widths=(64, 128), depths=(2, 2), width=1.0, expansion=3.0)
    network = build_model(config, 200)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 1500):
        reached = conv.out_channels // conv.groups * conv.kernel_size[0] ** 2
        assert conv.weight.var().item() == pytest.approx(2 / reached, rel=0.15)


def test_drop_path_rises_linearly_to_the_last_block() -> None:
    model = build_model(replace(SMALL, drop_path=0.2), 10)
    assert [m.probability for m in model.modules() if isinstance(m, DropPath)] == pytest.approx([0, 0.1, 0.2])


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 2, 3, 3)
    torch.manual_seed(0)
    y = DropPath(0.25).train()(x)
    per_image = y.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert (per_image[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(x), x)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    first = build_model(SMALL, 10, seed=5).state_dict()
    torch.rand(10)
    second, other = build_model(SMALL, 10, seed=5).state_dict(), build_model(SMALL, 10, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_channels_are_multiples_of_8() -> None:
    assert [round_channels(c) for c in (1, 11, 12, 100)] == [8, 8, 16, 104]


def test_weights_are_in_channels_last() -> None:
    weight = build_model(SMALL, 10).stage2[0].branch[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_compile_makes_one_graph_of_the_whole_network() -> None:
    """With several graphs, blocks were compiled one by one, and not at all from the ninth block on."""
    counter = CompileCounter()
    model = build_model(replace(SMALL, depths=(6, 6)), 10)
    model.compile(backend=counter)
    model(torch.zeros(2, 3, 64, 64))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_cast_together_give_the_bits_of_autocast(dtype: torch.dtype) -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = build_model(replace(SMALL, se_ratio=0.25), 10)  # with biases
    model.get_parameter("stem.0.weight").requires_grad_(False)

    def logits_and_gradients(network: nn.Module) -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype):
            logits = network(images)
        logits.square().mean().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        model.zero_grad()
        return [logits.detach(), *gradients]

    apart, together = logits_and_gradients(model), logits_and_gradients(CastWeights(model))
    assert len(apart) == len(list(model.parameters()))  # the logits, and all but the stem
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(apart, together, strict=True))
    assert all(isinstance(weight, nn.Parameter) and weight.dtype == torch.float32 for weight in model.parameters())
