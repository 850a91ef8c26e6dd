"""The range of every configuration key."""

from dataclasses import asdict

from tinyimnet.config import Config, flatten
from tinyimnet.errors import UserError


def check(config: Config) -> None:
    """Raise a UserError for the first value that is out of range or inconsistent with another."""
    run, model, augment, optim, train = config.run, config.model, config.augment, config.optim, config.train
    share = "between 0 and 1"
    rules: list[tuple[str, bool, str]] = [
        ("train.epochs", 1 <= train.epochs <= 100_000, "between 1 and 100,000"),
        ("run.seed", 0 <= run.seed < 2**63, "between 0 and 2**63 - 1"),
        ("run.log_every", run.log_every >= 1, "1 or more"),
        ("run.eval_every", run.eval_every >= 1, "1 or more"),
        ("run.save_every", run.save_every >= 1, "1 or more"),
        ("run.keep_checkpoints", run.keep_checkpoints >= 1, "1 or more"),
        ("run.stop_before_end", run.stop_before_end >= 0, "0 seconds or more"),
        ("run.max_attempts", run.max_attempts >= 1, "1 or more"),
        ("run.profile", 0 <= run.profile <= 1000, "between 0 and 1,000 steps"),
        ("data.root", bool(config.data.root), "a folder"),
        ("model.widths", bool(model.widths) and all(1 <= width <= 100_000 for width in model.widths),
         "one positive number for each stage, at most 100,000"),
        ("model.depths", len(model.depths) == len(model.widths) and all(1 <= depth <= 200 for depth in model.depths),
         f"one positive number for each of the {len(model.widths)} stages in model.widths, at most 200"),
        ("model.width", model.width == "auto" or 0 < model.width <= 10_000, "auto or a positive number up to 10,000"),
        ("model.expansion", 0 < model.expansion <= 16, "above 0 and at most 16"),
        ("model.se_ratio", 0 <= model.se_ratio <= 1, share),
        ("model.head_width", 0 <= model.head_width <= 100_000, "between 0 and 100,000"),
        ("model.drop_path", 0 <= model.drop_path < 1, "at least 0 and below 1"),
        ("model.max_parameters", 1 <= model.max_parameters <= 100_000_000, "between 1 and 100,000,000"),
        # The smallest images have 32 px, and a reflection reaches to the edge of an image at most.
        ("augment.crop_padding", 0 <= augment.crop_padding < 32, "between 0 and 31 px"),
        ("augment.mixup_probability", 0 <= augment.mixup_probability <= 1, share),
        ("augment.cutmix_probability", 0 <= augment.cutmix_probability <= 1 - augment.mixup_probability,
         f"between 0 and 1 - augment.mixup_probability ({1 - augment.mixup_probability:g})"),
        ("augment.mixup_alpha", 0 < augment.mixup_alpha < float("inf"), "positive"),
        ("augment.cutmix_alpha", 0 < augment.cutmix_alpha < float("inf"), "positive"),
        ("augment.mix_until", 0 <= augment.mix_until <= 1, share),
        ("augment.label_smoothing", 0 <= augment.label_smoothing < 1, "at least 0 and below 1"),
        ("augment.soft_label_weight", 0 < augment.soft_label_weight <= 1, "above 0 and at most 1"),
        ("augment.soft_label_temperature", 0 < augment.soft_label_temperature < float("inf"), "positive"),
        ("augment.start_resolution", augment.start_resolution in range(16, 65, 8),
         "a multiple of 8 between 16 and 64 px"),
        ("augment.full_resolution_from", 0 <= augment.full_resolution_from <= 1, share),
        ("augment.end_resolution", augment.end_resolution in range(64, 129, 8),
         "a multiple of 8 between 64 and 128 px"),
        ("augment.end_resolution_from", 0 <= augment.end_resolution_from <= 1, share),
        ("optim.lr", 0 < optim.lr < float("inf"), "positive"),
        ("optim.sgd_lr", 0 < optim.sgd_lr < float("inf"), "positive"),
        ("optim.momentum", 0 < optim.momentum < 1, "above 0 and below 1"),
        ("optim.betas", all(0 <= beta < 1 for beta in optim.betas), "two numbers, each at least 0 and below 1"),
        ("optim.weight_decay", 0 <= optim.weight_decay < float("inf"), "0 or more"),
        ("optim.warmup_epochs", 0 <= optim.warmup_epochs <= train.epochs,
         f"between 0 and train.epochs ({train.epochs})"),
        ("optim.clip_grad_norm", 0 <= optim.clip_grad_norm < float("inf"), "0 or more"),
        ("optim.ema_decay", 0 <= optim.ema_decay < 1, "at least 0 and below 1"),
        ("train.global_batch_size", train.global_batch_size >= 1, "1 or more"),
        ("train.device_batch_size", train.device_batch_size >= 0, "0 or more"),
        ("train.cuda_graph", not (train.cuda_graph and train.precision == "fp16"), "false with train.precision fp16"),
        ("train.max_skipped_steps", train.max_skipped_steps >= 1, "1 or more"),
        ("train.timeout", train.timeout >= 1, "1 second or more"),
        ("tracking.project", bool(config.tracking.project), "a name"),
        ("tracking.finish_timeout", config.tracking.finish_timeout >= 1, "1 second or more"),
    ]  # fmt: skip
    values = flatten(asdict(config))
    # Timers, shapes and counters hold no larger number.
    rules += [(key, value < 2**31, "below 2**31") for key, value in values.items()
              if isinstance(value, int) and key != "run.seed"]  # fmt: skip
    for key, holds, expected in rules:
        if not holds:
            raise UserError(f"{key} is {values[key]!r} and must be {expected}.")
