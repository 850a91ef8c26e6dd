"""Turn a data set into the arrays that a run reads: decoded once, checksummed, written atomically.

tinyimnet prepare --download                          # Tiny ImageNet: 248 MB, resumes, checks size and sha256
tinyimnet prepare /path/to/tiny-imagenet-200.zip      # a local copy, or its unpacked folder
tinyimnet prepare --synthetic                         # a data set drawn by the program: no download
tinyimnet prepare FOLDER --out data/mine              # your images of 64x64 pixels as .npy files
tinyimnet prepare --train-images x.npy --train-labels y.npy --val-images xv.npy --val-labels yv.npy --out data/mine
"""

import argparse
import os
from pathlib import Path

from tinyimnet.config import DataConfig
from tinyimnet.data import npy
from tinyimnet.data.findings import Findings
from tinyimnet.data.prepare import prepare, prepare_missing
from tinyimnet.data.writer import interruptible
from tinyimnet.errors import UserError
from tinyimnet.files import expanded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "source", nargs="?", type=Path, help="tiny-imagenet-200.zip, its unpacked folder, or a folder of .npy files"
    )
    parser.add_argument(
        "--out", type=Path, help="$DATA_ROOT or data/tiny-imagenet-200; data/synthetic-200 with --synthetic"
    )
    for role in npy.ROLES:
        parser.add_argument(f"--{role.replace('_', '-')}", type=Path, metavar="FILE", help=f"{role} as .npy")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="with .npy files: one class id per line, in label order"
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
    if manifest["skipped"]:
        print(f"not used: {Findings(manifest['skipped'])}")
    return 0


def _prepare(args: argparse.Namespace, out: Path) -> dict:
    files = {role: path for role in npy.ROLES if (path := getattr(args, role))}
    ways = (bool(args.source), bool(files), args.download, args.synthetic)
    if sum(ways) != 1 or (args.classes and (args.download or args.synthetic)):
        raise UserError(
            "prepare takes exactly one source: the path of tiny-imagenet-200.zip, of its unpacked folder or "
            "of a folder of .npy files; or --train-images and so on; or --download; or --synthetic "
            "(and --classes only with .npy files)."
        )
    if args.download or args.synthetic:
        return prepare_missing(out, "synthetic" if args.synthetic else "tiny-imagenet")
    if files:
        return npy.prepare_npy(files, out, args.classes, strict=args.strict)
    return prepare(args.source, out, args.classes, strict=args.strict)
