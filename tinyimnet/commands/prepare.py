"""Turn a data set into the arrays that a run reads: decoded once, checksummed, written atomically.

tinyimnet prepare --download                          # Tiny ImageNet: 248 MB, resumes, checks size and sha256
tinyimnet prepare /path/to/tiny-imagenet-200.zip      # a local copy, or its unpacked folder
tinyimnet prepare --synthetic                         # a data set drawn by the program: no download
tinyimnet prepare FOLDER --out data/mine              # your images: CLASS/*.jpg, or train/CLASS/ and val/CLASS/
tinyimnet prepare FOLDER --out data/mine --val-share 0.1 --size 64     # hold out 10 %; scale to 64x64 pixels
tinyimnet prepare SOURCE --out data/mine              # a zip or tar archive of these; .npy or .npz; Parquet
tinyimnet prepare SOURCE --out data/cifar --size 32   # any of these; images of 32x32 pixels are kept as they are
tinyimnet prepare --train-images x.npy --train-labels y.npy --val-images xv.npy --val-labels yv.npy --out data/mine
"""

import argparse
import os
from pathlib import Path

from tinyimnet.config import DataConfig
from tinyimnet.data import npy
from tinyimnet.data.array_roles import ROLES
from tinyimnet.data.dataset import IMAGE_SIZE, SIZES
from tinyimnet.data.findings import Findings
from tinyimnet.data.images import FITS
from tinyimnet.data.prepare import prepare, prepare_missing
from tinyimnet.data.writer import interruptible
from tinyimnet.errors import UserError
from tinyimnet.files import expanded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        help="Tiny ImageNet or a folder of images per class, or a zip or tar of it; .npy, .npz or Parquet files",
    )
    parser.add_argument(
        "--out", type=Path, help="$DATA_ROOT or data/tiny-imagenet-200; data/synthetic-200 with --synthetic"
    )
    for role in ROLES:
        parser.add_argument(f"--{role.replace('_', '-')}", type=Path, metavar="FILE", help=f"{role} as .npy or .npz")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="with arrays and Parquet: one class id per line, in label order"
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="of each class to hold out, if a source has no val, such as 0.1",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help=f"scale other images to NxN pixels, {SIZES[0]} to {SIZES[-1]} (default: refuse all but 64x64)",
    )
    parser.add_argument(
        "--fit", choices=tuple(FITS), help="what --size does to the shape: crop the centre (default), pad, stretch"
    )
    parser.add_argument("--strict", action="store_true", help="refuse a source with files that would be skipped")
    parser.add_argument("--download", action="store_true", help="download the official archive (248 MB)")
    parser.add_argument("--synthetic", action="store_true", help="draw a data set of 8,000 images")


def main(args: argparse.Namespace) -> int:
    """Prepare the data and print what was written; a signal leaves no partial files."""
    real = expanded(os.environ.get("DATA_ROOT") or DataConfig.root, "DATA_ROOT")  # slurm/site.env
    out = args.out or Path("data/synthetic-200" if args.synthetic else real)
    with interruptible():
        manifest = _prepare(args, out)
    counts = ", ".join(f"{n:,} {split}" for split, n in manifest["counts"].items())
    print(f"{out}: {counts} images of {len(manifest['classes'])} classes, from {manifest['origin']}")
    if manifest["layout"]:
        print(f"layout: {manifest['layout']}")
    if manifest["fit"]:
        size, fit = manifest["image_size"], manifest["fit"]
        print(f"images of other sizes: scaled to {size}x{size} pixels (--fit {fit}: {FITS[fit]})")
    if manifest["skipped"]:
        print(f"not used: {Findings(manifest['skipped'])}")
    return 0


def _prepare(args: argparse.Namespace, out: Path) -> dict:
    files = {role: path for role in ROLES if (path := getattr(args, role))}
    own = args.classes or args.val_share is not None or args.size is not None  # options for data of the user
    ways = (bool(args.source), bool(files), args.download, args.synthetic)
    if sum(ways) != 1 or (own and (args.download or args.synthetic)):
        raise UserError(
            "prepare takes exactly one source: the path of Tiny ImageNet, of a folder of images per class, of a zip or "
            "tar archive of these, of .npy or .npz files or of Parquet files; or --train-images and so on; or "
            "--download; or --synthetic (and --classes, --val-share and --size only with your data)."
        )
    if args.fit and args.size is None:
        raise UserError(f"--fit {args.fit} says how --size scales images; add --size.")
    if args.size is not None and args.size not in SIZES:
        raise UserError(f"--size {args.size} is not between {SIZES[0]} and {SIZES[-1]} pixels; give such a number.")
    size, fit = (args.size, args.fit or "crop") if args.size else (IMAGE_SIZE, None)
    if args.download or args.synthetic:
        return prepare_missing(out, "synthetic" if args.synthetic else "tiny-imagenet")
    if files:
        return npy.prepare_npy(
            files, out, args.classes, val_share=args.val_share, size=size, fit=fit, strict=args.strict
        )
    return prepare(args.source, out, args.classes, val_share=args.val_share, size=size, fit=fit, strict=args.strict)
