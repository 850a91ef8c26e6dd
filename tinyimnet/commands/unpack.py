"""Write the images of a prepared data set as PNG files by class, with exactly the pixels that a run reads.

tinyimnet unpack data/tiny-imagenet-200 --out pictures

Writes pictures/train/CLASS/ROW.png, pictures/val/CLASS/ROW.png and pictures/test/NAME.png. CLASS is the id of the
class, ROW the number of the image in the array.
"""

import argparse
from pathlib import Path

from tinyimnet.data.unpack import unpack
from tinyimnet.data.writer import interruptible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("data", type=Path, metavar="DATA", help="prepared folder, such as data/tiny-imagenet-200")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to create")


def main(args: argparse.Namespace) -> int:
    """Write the files and print how many; a signal leaves no partial files."""
    with interruptible():
        counts = unpack(args.data, args.out)
    print(f"{args.out}: {', '.join(f'{n:,} {split}' for split, n in counts.items())} images as PNG files")
    return 0
