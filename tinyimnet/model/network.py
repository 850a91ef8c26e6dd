"""The network: a residual CNN of at most `max_parameters`, widened to that limit with `width: auto`.

    stem 3x3 -> stages of blocks, each stage at half the resolution of the one before -> [head 1x1] -> pool -> linear

Blocks follow ResNet (He et al., arXiv 1512.03385) with the tweaks of ResNet-D (arXiv 1812.01187): average pool before
the strided shortcut, last BatchNorm of a block initialised to zero. Inverted blocks are as in MobileNetV2 (arXiv
1801.04381), squeeze-and-excitation as in arXiv 1709.01507. To add a block, add a case to `_branch` and a name to
config.ModelConfig.block.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyimnet.config import ModelConfig
from tinyimnet.data.dataset import IMAGE_SIZE
from tinyimnet.errors import UserError
from tinyimnet.model.batchnorm import BatchNorm

# SiLU is not in place, because its gradient needs the input and autograd would have to copy it.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "silu": nn.SiLU}
CHANNEL_MULTIPLE = 8  # vector units and tensor cores process 8 or more channels at a time


class DropPath(nn.Module):
    """Drop the residual branch for whole images (stochastic depth, Huang et al., arXiv 1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3f}"


def drop_path_generator(device: torch.device) -> torch.Generator:
    """The generator of DropPath's numbers on a device; torch.manual_seed looks for all kinds of devices, in 0.15 ms."""
    return torch.default_generator if device.type != "cuda" else torch.cuda.default_generators[device.index or 0]


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the spatial averages of all channels."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu())
        return x * gate.sigmoid()


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, BatchNorm(c_out)]


class Block(nn.Module):
    """Residual block of any of the three kinds: act(shortcut(x) + drop_path(branch(x)))."""

    def __init__(self, config: ModelConfig, c_in: int, c_out: int, stride: int, drop_path: float):
        super().__init__()
        inner = round_channels(c_out * config.expansion)
        layers = _branch(config, c_in, inner, c_out, stride)
        last_norm = [layer for layer in layers if isinstance(layer, BatchNorm)][-1]
        nn.init.zeros_(last_norm.weight)
        self.branch = nn.Sequential(*layers)
        self.shortcut = _shortcut(c_in, c_out, stride)
        self.drop_path = DropPath(drop_path)
        # MobileNetV2's linear bottleneck: an inverted block has no activation after the sum.
        self.activation = nn.Identity() if config.block == "inverted" else ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.drop_path(self.branch(x)))


def _branch(config: ModelConfig, c_in: int, inner: int, c_out: int, stride: int) -> list[nn.Module]:
    act = ACTIVATIONS[config.activation]

    def squeeze_excite(channels: int) -> list[nn.Module]:
        return [SqueezeExcite(channels, max(8, round(channels * config.se_ratio)))] if config.se_ratio else []

    if config.block == "basic":
        first, second = conv_bn(c_in, inner, 3, stride), conv_bn(inner, c_out, 3)
        return [*first, act(), *second, *squeeze_excite(c_out)]
    groups = inner if config.block == "inverted" else 1
    first, spatial, last = (
        conv_bn(c_in, inner, 1),
        conv_bn(inner, inner, 3, stride, groups),
        conv_bn(inner, c_out, 1),
    )
    return [*first, act(), *spatial, act(), *squeeze_excite(inner), *last]


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    # ceil_mode rounds odd resolutions (40 px halved three times) up, as the strided convolution does.
    pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    layers: list[nn.Module] = [pool] if stride > 1 else []
    if c_in != c_out:
        layers += conv_bn(c_in, c_out, 1)
    return nn.Sequential(*layers)


class Network(nn.Sequential):
    """Map (B, 3, S, S) float to (B, n_classes) logits; the children are stem, stage1 ..., head, classifier."""

    def __init__(self, config: ModelConfig, n_classes: int):
        widths = [round_channels(width * float(config.width)) for width in config.widths]
        act = ACTIVATIONS[config.activation]
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["stem"] = nn.Sequential(*conv_bn(3, widths[0], 3, config.stem_stride), act())
        channels, n_blocks, built = widths[0], sum(config.depths), 0
        for stage, (width, depth) in enumerate(zip(widths, config.depths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                drop_path = config.drop_path * built / max(1, n_blocks - 1)
                stride = 2 if i == 0 and stage > 1 else 1
                blocks.append(Block(config, channels, width, stride, drop_path))
                channels, built = width, built + 1
            parts[f"stage{stage}"] = nn.Sequential(*blocks)
        if config.head_width:
            parts["head"] = nn.Sequential(*conv_bn(channels, config.head_width, 1), act())
            channels = config.head_width
        parts["classifier"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))
        super().__init__(parts)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of `images`."""
        # torch.compile captures this method as one graph. It skips the forward of nn.Sequential and would compile each
        # block separately, up to its limit of 8 variants.
        for part in self:
            images = part(images)
        return images


def round_channels(channels: float) -> int:
    """Round `channels` to the nearest positive multiple of CHANNEL_MULTIPLE."""
    return max(1, int(channels / CHANNEL_MULTIPLE + 0.5)) * CHANNEL_MULTIPLE


def build_model(config: ModelConfig, n_classes: int, seed: int = 0) -> Network:
    """Build and initialise the network; the weights of a given architecture depend only on the seed.

    Raises:
        UserError: the network has more than config.max_parameters parameters; the message lists them by stage.
    """
    config = resolve_width(config, n_classes)
    outline = _on_meta(config, n_classes)
    if count_parameters(outline) > config.max_parameters:
        by_stage = ", ".join(f"{name} {count_parameters(part):,}" for name, part in outline.named_children())
        raise UserError(
            f"model.max_parameters is {config.max_parameters:,} and the network has {count_parameters(outline):,} "
            f"({by_stage}); lower model.width, widths or depths, or set model.width to auto."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Network(config, n_classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                # fan_out counts all output channels, but an input channel reaches only those of its group.
                module.weight.data *= module.groups**0.5
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_in_place(model: nn.Module) -> None:
    """Have torch.compile make one graph for each of at most 8 resolutions; in place, to keep the weight names.

    `deterministic` stops Inductor from choosing kernels by timing: another node may choose one that rounds differently.
    """
    torch._dynamo.config.optimize_ddp = False  # it would split the graph under DDP, whose gradients are in one bucket
    model.compile(dynamic=False, options={"deterministic": True})


@lru_cache(maxsize=1)  # builds tens of outlines, which takes 0.5 s
def resolve_width(config: ModelConfig, n_classes: int) -> ModelConfig:
    """Replace `width: auto` with the widest multiplier that fits, then spend the remaining budget on the head, if any.

    Raises:
        UserError: not even the narrowest network fits.
    """
    if config.width != "auto":
        return config

    def fits(candidate: ModelConfig) -> bool:
        return count_parameters(_on_meta(candidate, n_classes)) <= config.max_parameters

    # Widths are rounded to CHANNEL_MULTIPLE, so only the multipliers at which one of them steps up are candidates.
    steps = {
        (k + 0.5) * CHANNEL_MULTIPLE / width for width in config.widths for k in range(1, 1 + 2048 // CHANNEL_MULTIPLE)
    }
    candidates = sorted({0.0, *steps})
    low, high = 0, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(replace(config, width=candidates[middle])) else (low, middle)
    widest = replace(config, width=candidates[low])
    if not fits(widest):
        raise UserError(
            f"model.max_parameters is {config.max_parameters:,}, too few for model.depths {config.depths} "
            f"with model.block {config.block} at any width; use fewer blocks."
        )
    while widest.head_width and fits(wider := replace(widest, head_width=widest.head_width + CHANNEL_MULTIPLE)):
        widest = wider
    return widest


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, including frozen ones but not buffers (BatchNorm statistics) or the EMA copy."""
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class StageSummary:
    """One row of the summary: name, parameters, multiply-accumulates for one image, output shape."""

    name: str
    parameters: int
    macs: int
    shape: tuple[int, ...]


def model_summary(model: Network, size: int = IMAGE_SIZE) -> list[StageSummary]:
    """Parameters, multiply-accumulates and output shape of each stage, for one image of `size` px."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        part.register_forward_hook(lambda _m, _x, y, name=name: shapes.__setitem__(name, tuple(y.shape[1:])))
        for name, part in model.named_children()
    ]
    training = model.training
    counter = FlopCounterMode(display=False)
    device = next(model.parameters()).device
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    flops = counter.get_flop_counts()
    return [
        StageSummary(name, count_parameters(part), sum(flops[f"Network.{name}"].values()) // 2, shapes[name])
        for name, part in model.named_children()
    ]


def count_macs(model: Network, size: int) -> int:
    """Multiply-accumulates for one image of `size` px."""
    return sum(stage.macs for stage in model_summary(model, size))


def _on_meta(config: ModelConfig, n_classes: int) -> Network:
    with torch.device("meta"):
        return Network(config, n_classes)
