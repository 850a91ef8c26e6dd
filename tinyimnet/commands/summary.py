"""Print the network of a configuration: parameters, multiply-accumulates and output shape of each stage.

tinyimnet summary --config tiny1m
tinyimnet summary --config tiny1m --model.block basic --model.depths [3,3,3,3]

Takes train.py's options.
"""

import argparse
from pathlib import Path

from tinyimnet import config_cli
from tinyimnet.console import print_table
from tinyimnet.data.dataset import IMAGE_SIZE, is_prepared, open_dataset
from tinyimnet.model.network import build_model, count_parameters, model_summary, resolve_width


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None beyond train.py's."""


def main(args: argparse.Namespace) -> int:
    """Print the table and the share of the parameter budget."""
    config = config_cli.load(args.options, prog="tinyimnet summary")
    root = Path(config.data.root)
    n_classes, size = 200, IMAGE_SIZE
    if is_prepared(root):
        dataset = open_dataset(root, verify=False)
        n_classes, size = len(dataset.classes), dataset.image_size
    resolved = resolve_width(config.model, n_classes)
    model = build_model(resolved, n_classes)
    stages = model_summary(model, size)
    total, limit = count_parameters(model), config.model.max_parameters
    rows = [(s.name, f"{s.parameters:,}", f"{s.macs / 1e6:.2f}", " x ".join(map(str, s.shape))) for s in stages]
    rows.append(("total", f"{total:,}", f"{sum(s.macs for s in stages) / 1e6:.2f}", f"{n_classes} classes, {size} px"))
    title = f"{resolved.block}, width x {float(resolved.width):.4g}: {total / limit:.2%} of {limit:,} parameters"
    print_table(title, rows, ("stage", "parameters", "MMACs", "output"))
    return 0
