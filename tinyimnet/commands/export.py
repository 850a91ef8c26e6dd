"""Export a trained network as one file that runs without this program, and compare the two.

tinyimnet export runs/tiny1m --out model.onnx                             # needs pip install '.[onnx]'
tinyimnet export results/tiny1m_cpu.safetensors --format torch --out model.pt2

It takes `images`, (N, S, S, 3) uint8 RGB of any N and of the S px of the training images, and gives their
`probabilities`, (N, K) float32; resizing to the resolution of the network and normalisation are inside. The class names
are in the metadata.
"""

import argparse
from pathlib import Path

import numpy as np

from tinyimnet.commands.trained_run import data_config_of, dataset_of
from tinyimnet.data.dataset import is_prepared
from tinyimnet.errors import writing
from tinyimnet.evaluation.export import FORMATS, exported, largest_difference
from tinyimnet.evaluation.weights import Trained, load_trained
from tinyimnet.files import exists, write_atomically

COMPARED = 256  # images, which take 10 s on one CPU core with a million parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or .safetensors file; EMA weights")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="(default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: model.onnx or model.pt2)")
    whose = "prepared folder with images to compare on (default: the run's data.root, else noise)"
    parser.add_argument("--data", type=Path, help=whose)


def main(args: argparse.Namespace) -> int:
    """Write the file if it computes what the network computes."""
    out = args.out or Path(f"model{FORMATS[args.format]}")
    trained = load_trained(args.run)  # on the CPU, where both compute alike
    size = trained.image_size
    images, origin = _images(trained, args.run, args.data)
    content = exported(trained, args.format)
    difference = largest_difference(trained, content, args.format, images)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, content)
    print(
        f"{trained.origin} (step {trained.step:,}): {out}, {len(content) / 1e6:.1f} MB\n"
        f"images (N, {size}, {size}, 3) uint8 RGB -> probabilities (N, {len(trained.classes)}) float32\n"
        f"compared on {len(images)} {origin}: all top-1 agree, largest difference of a probability {difference:.1e}"
    )
    return 0


def _images(trained: Trained, run: Path, root: Path | None) -> tuple[np.ndarray, str]:
    """(n, S, S, 3) uint8 to compare on, and what they are."""
    in_a_run = exists((run.parent if run.is_file() else run) / "config.yaml")
    if root or (in_a_run and is_prepared(Path(data_config_of(run)["root"]))):
        dataset = dataset_of(trained, run, root)
        images = dataset.images["val"]
        rows = np.linspace(0, len(images) - 1, min(COMPARED, len(images))).astype(int)  # of all classes
        return images[rows], f"validation images of {dataset.root}"
    size = trained.image_size
    noise = np.random.default_rng(0).integers(0, 256, (COMPARED, size, size, 3), np.uint8)
    return noise, "images of noise (give a prepared data set with --data for real ones)"
