"""Every configuration key with its type, unit and default; config_cli.py reads files and options."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyimnet import config_file
from tinyimnet.files import expanded


@dataclass(frozen=True)
class RunConfig:
    """Run folder and intervals; of these keys only the seed changes the weights."""

    dir: str = ""
    """Run folder; empty: named after the config file, in $RUNS_ROOT or runs/."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation and DropPath."""
    log_every: int = 50
    """Optimizer steps between two log lines."""
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    save_every: int = 500
    """Optimizer steps between two checkpoints; each evaluation saves one as well."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept beside best.pt."""
    stop_before_end: int = 120
    """Seconds before the end of a Slurm job (SLURM_JOB_END_TIME) at which the run saves and stops."""
    max_attempts: int = 100
    """Attempts of one Slurm job after which it is not requeued."""
    profile: int = 0
    """Steps of each attempt, after its first ten, that rank 0 records for the folder profile; 0: none."""


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and where it is."""

    root: str = "data/tiny-imagenet-200"
    """Folder written by `tinyimnet prepare`."""
    source: Literal["tiny-imagenet", "synthetic"] = "tiny-imagenet"
    """How to create a missing `root`: download the official archive, or draw the embedded data set."""
    stage: str = ""
    """Node-local folder, such as /dev/shm, to copy the arrays to once; empty: read them in place."""
    soft_labels: str = ""
    """File of teacher logits (`tinyimnet soft-labels`) for distillation; empty: none."""
    tune_split: bool = False
    """Validate on a fixed 5 % of the training images of each class, held out: for choosing hyperparameters."""


@dataclass(frozen=True)
class ModelConfig:
    """The network: stem, stages of residual blocks, an optional 1x1 head, average pool, classifier."""

    block: Literal["basic", "bottleneck", "inverted"] = "bottleneck"
    """basic: two 3x3; bottleneck: 1x1, 3x3, 1x1; inverted: 1x1 expand, depthwise 3x3, 1x1 project."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Output channels of each stage before `width` scales them; the stem has the first width."""
    depths: tuple[int, ...] = (2, 4, 4)
    """Blocks in each stage; every stage after the first halves the resolution."""
    width: float | Literal["auto"] = "auto"
    """Multiplier of `widths`; auto: the widest network that fits into max_parameters."""
    expansion: float = 0.25
    """Channels inside a block as a multiple of its output channels."""
    se_ratio: float = 0.0
    """Squeeze-and-excitation channels as a share of the channels it scales; 0: none."""
    activation: Literal["relu", "silu"] = "relu"
    """Non-linearity."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the 3x3 stem."""
    whiten_stem: bool = False
    """Freeze the stem's filters at those that whiten patches of the training images."""
    head_width: int = 0
    """Channels of a 1x1 convolution before the pool, 0: none; width auto adds what is left of the budget."""
    drop_path: float = 0.0
    """Probability of dropping the last block's residual branch; earlier blocks rise linearly to it."""
    max_parameters: int = 1_000_000
    """Hard limit; a larger network is an error."""


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of a training batch, on the device."""

    crop_padding: int = 4
    """Pixels of reflection padding before the random crop; 0: no crop."""
    flip: bool = True
    """Flip each image horizontally in every other epoch."""
    mixup_probability: float = 0.0
    """Share of the images to blend with a partner (Mixup)."""
    mixup_alpha: float = 0.2
    """Mixup's lambda is drawn from Beta(alpha, alpha)."""
    cutmix_probability: float = 0.0
    """Share of the images to paste a box of a partner into (CutMix); at most 1 - mixup_probability."""
    cutmix_alpha: float = 1.0
    """CutMix's lambda is drawn from Beta(alpha, alpha)."""
    mix_until: float = 1.0
    """Fraction of the steps after which Mixup and CutMix stop."""
    label_smoothing: float = 0.0
    """Share of each target that is uniform over all classes."""
    soft_label_weight: float = 0.5
    """w in the loss (1 - w) CE(labels) + w T^2 CE(soft labels), with data.soft_labels; any ratio a : b of the two terms
    is w = b / (a + b), so the 0.1 : 9 of Sun et al. (arXiv 2403.01427) is 0.989."""
    soft_label_temperature: float = 1.0
    """T: divides the logits of the network and of data.soft_labels in the second term."""
    soft_label_standardise: bool = False
    """Give both logits of each image mean 0 and standard deviation 1 before the temperature."""
    start_resolution: int = 64
    """Pixels of an image of 64 px in the first step, in proportion for other sizes; 64: no progressive resizing."""
    full_resolution_from: float = 0.8
    """Fraction of the steps at which the resolution, raised by an eighth of the full one at a time, is full."""
    end_resolution: int = 64
    """Pixels of an image of 64 px in the last steps and whenever the network is used after them, in proportion for
    other sizes; 64: no upsampling."""
    end_resolution_from: float = 0.9
    """Fraction of the steps after which the resolution is end_resolution, if that is above 64."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule; the learning rate is a function of the step."""

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    """SGD with Nesterov momentum, AdamW, or Muon for the convolutions after the stem with SGD for the rest."""
    lr: float = 0.5
    """Peak learning rate, for the global batch."""
    sgd_lr: float = 0.1
    """Peak learning rate of the SGD part: stem, classifier, depthwise filters, norms, biases (muon)."""
    momentum: float = 0.9
    """Nesterov momentum (sgd, muon)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moment estimates (adamw)."""
    weight_decay: float = 5e-4
    """Decay of convolution and linear weights only; decoupled (lr * weight_decay) for adamw and muon."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up from zero."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay to zero after the warm-up."""
    clip_grad_norm: float = 0.0
    """Largest global gradient norm; 0: not clipped."""
    ema_decay: float = 0.999
    """Decay of the weight average, warmed up as (1 + step) / (10 + step); 0: the average is the raw weights."""


@dataclass(frozen=True)
class TrainConfig:
    """Initial weights, length, batch size and precision."""

    init_from: str = ""
    """Run folder or .safetensors file whose EMA weights to start from (fine-tuning), but for other classes with a new
    classifier; empty: random."""
    epochs: int = 300
    """Passes over the training set."""
    global_batch_size: int = 1024
    """Images per optimizer step over all processes; per-process batch and accumulation steps are derived."""
    device_batch_size: int = 0
    """Largest micro-batch of a process, larger batches are accumulated; 0: no limit."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Autocast type of the forward pass; weights stay fp32."""
    compile: bool = False
    """torch.compile the network."""
    cuda_graph: bool = False
    """Launch a step as one CUDA graph, not kernel by kernel; one process, not with fp16. Not run on a GPU yet."""
    ordered_reduction: bool = True
    """Add gradients in rank order: equal bits on any network; false: DDP's all-reduce, faster, in any order."""
    max_skipped_steps: int = 20
    """Consecutive steps skipped for a non-finite gradient that end the run; checked at each log line."""
    timeout: int = 600
    """Seconds until a collective operation times out."""


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases; metrics.jsonl in the run folder is always written."""

    wandb: Literal["online", "offline", "disabled"] = "online"
    """online falls back to offline without a key or network and never prompts; WANDB_MODE can override it."""
    project: str = "tiny-imagenet-1m"
    """W&B project."""
    per_rank: bool = False
    """Send system metrics of every process, not only of rank 0."""
    log_code: bool = False
    """Send the source files of the program and its configurations."""
    finish_timeout: int = 60
    """Seconds that W&B has at the end of an attempt to finish uploading."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    """Run folder, seed and intervals"""
    data: DataConfig = field(default_factory=DataConfig)
    """Data set"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training"""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Weights & Biases"""


KEYS = tuple(
    f"{section}.{key}"
    for section, kind in Config.__dataclass_fields__.items()
    for key in kind.default_factory.__dataclass_fields__  # type: ignore[union-attr, misc]
)
# Keys that hold a path: `~` and $VARIABLES in them are expanded.
PATHS = ("run.dir", "data.root", "data.stage", "data.soft_labels", "train.init_from")
# Keys that a resumed run may change, besides a larger train.epochs: paths, reporting, timeouts.
MAY_CHANGE = ("run.log_every", "run.eval_every", "run.save_every", "run.keep_checkpoints", "run.stop_before_end",
              "run.max_attempts", "run.profile", "run.dir", "data.root", "data.stage", "train.timeout", "tracking.",
              # The micro-batch depends on the machine, as the number of processes does.
              "train.device_batch_size")  # fmt: skip

# Keys in which runs of one recipe may differ: paths, reporting, the seed, timeouts.
NO_RECIPE = ("run.", "tracking.", "data.root", "data.stage", "train.timeout")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'lr': 1}} -> {'optim.lr': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def dump(config: Config) -> str:
    """The configuration as YAML; `load` of it gives the same configuration."""
    return config_file.write(_plain(asdict(config)))


def defaults() -> dict[str, Any]:
    """The default of each key, such as {"optim.lr": 0.5}, as config.yaml has it."""
    return flatten(_plain(asdict(Config())))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'key: old -> new' for each key of two nested configurations that differs and must not change on resume.

    A key that an earlier version did not have counts with its default.
    """
    defaults = {section: keys for section, keys in asdict(Config()).items() if section in old}
    before, after = flatten(_plain(defaults)) | flatten(_plain(old)), flatten(_plain(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        and not key.startswith(MAY_CHANGE)
        and not (key == "train.epochs" and before.get(key, 0) < after[key])
    ]


def _plain(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return list(tree) if isinstance(tree, tuple) else tree


def runs_root() -> Path:
    """The parent of run folders: $RUNS_ROOT (slurm/site.env), else runs."""
    return expanded(os.environ.get("RUNS_ROOT") or "runs", "RUNS_ROOT")
