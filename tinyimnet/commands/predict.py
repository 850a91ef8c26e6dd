"""Predict the classes of images and write them as CSV: filename,label.

tinyimnet predict runs/tiny1m                                   # the test images of its data set
tinyimnet predict results/tiny1m_cpu.safetensors --images FOLDER --label name --out labels.csv
"""

import argparse
from pathlib import Path

from tinyimnet.commands.trained_run import dataset_of, load_network
from tinyimnet.data.prepare import read_images
from tinyimnet.errors import UserError, writing
from tinyimnet.evaluation import analysis
from tinyimnet.files import write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="of the data set (default: test)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of images or .npy file, instead of a split; of the size of the training data, or scaled as there",
    )
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="(default: submission.csv)")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirrored image")
    parser.add_argument("--label", choices=("wnid", "index", "name"), default="wnid", help="(default: wnid)")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the run's data.root)")


def main(args: argparse.Namespace) -> int:
    """Write one row per image, in file order."""
    trained = load_network(args.run)
    if args.images:
        files, images = read_images(args.images, trained.fit, trained.image_size)
    else:
        dataset = dataset_of(trained, args.run, args.data)
        if args.split not in dataset.images:
            raise UserError(f"--split {args.split}: {dataset.root} has no {args.split} images; use --images.")
        images = dataset.images[args.split]
        numbered = [f"{args.split}_{i}" for i in range(len(images))]
        files = list(dataset.test_files) if args.split == "test" and dataset.test_files else numbered
    flip = args.tta == "flip"
    predicted = analysis.log_probabilities(trained, images, flip=flip).argmax(1).tolist()
    label = {"wnid": trained.classes, "index": range(len(trained.classes)), "name": trained.names}[args.label]
    with writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        rows = ([name, label[index]] for name, index in zip(files, predicted, strict=True))
        write_csv(args.out, [["filename", "label"], *rows])
    print(f"{len(files):,} predictions of {trained.origin} (step {trained.step:,}): {args.out}")
    if args.images and trained.fit:
        size = trained.image_size
        print(f"images of other sizes: scaled to {size}x{size} pixels as in the training data ({trained.fit})")
    return 0
