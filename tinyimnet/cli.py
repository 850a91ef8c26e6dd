"""Everything besides the training: data, inspection, evaluation, watching.

python -m tinyimnet prepare | inspect | summary | preflight | evaluate | predict | soft-labels | report | sync | dashboard

Imports are made in the commands: the worker processes of `prepare` import this module and need no torch.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tinyimnet import dashboard, inspection, page, prepare, sync
from tinyimnet.errors import Parser, UserError

if TYPE_CHECKING:
    from tinyimnet.data import Dataset
    from tinyimnet.export import Trained


def main(argv: list[str]) -> int:
    """Dispatch to a command; returns the exit code."""
    parser = Parser(prog="python -m tinyimnet", description=str(__doc__).split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(
        name: str, action: Callable[[argparse.Namespace], int], text: str, *, takes_options: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(action=action, takes_options=takes_options)
        return sub

    prepare.add_arguments(command("prepare", prepare.main, "turn a source into arrays"))
    text = "write a PNG grid of images with their classes"
    inspection.add_arguments(command("inspect", inspection.main, text, takes_options=True))
    text = "parameters, multiply-accumulates and shapes by stage; takes train.py's options"
    command("summary", summary, text, takes_options=True)
    _evaluate_arguments(command("evaluate", evaluate, "accuracy, calibration and confused classes of a run"))
    text = "check the nodes of a job: under srun or accelerate launch; takes train.py's options"
    command("preflight", preflight, text, takes_options=True)
    _predict_arguments(command("predict", predict, "write filename,label for images without labels"))
    text = "write what a network says of the training images, for data.soft_labels of another run"
    _soft_labels_arguments(command("soft-labels", soft_labels, text))
    page.add_arguments(command("report", page.main, "a run, or several side by side, as one HTML page"))
    sync.add_arguments(command("sync", sync.main, "send to W&B what it does not have yet of runs"))
    text = "a view of the project on W&B, a report of runs"
    dashboard.add_arguments(command("dashboard", dashboard.main, text))
    args, options = parser.parse_known_args(argv)
    args.options = options
    if args.options and not args.takes_options:
        raise UserError(
            f"unrecognized arguments: {' '.join(args.options)}; see `python -m tinyimnet {args.command} --help`."
        )
    return args.action(args)


# ---- preflight ----------------------------------------------------------------------------------------------


def preflight(args: argparse.Namespace) -> int:
    """Check the nodes of a job."""
    from tinyimnet.preflight import main

    return main(args.options)


# ---- summary ------------------------------------------------------------------------------------------------


def summary(args: argparse.Namespace) -> int:
    """Print the network of a configuration, stage by stage, and the share of the parameter budget it uses."""
    from tinyimnet import commandline, console, data
    from tinyimnet.model import build_model, count_parameters, resolve_width, summarise

    settings = commandline.load(args.options, prog="python -m tinyimnet summary")
    root = Path(settings.data.root)
    n_classes = len(data.open_dataset(root, verify=False).classes) if data.is_prepared(root) else 200
    resolved = resolve_width(settings.model, n_classes)
    model = build_model(resolved, n_classes)
    stages = summarise(model)
    total, limit = count_parameters(model), settings.model.max_parameters
    rows = [
        (s.name, f"{s.parameters:,}", f"{s.macs / 1e6:.2f}", " x ".join(map(str, s.shape))) for s in stages
    ]
    rows.append(("total", f"{total:,}", f"{sum(s.macs for s in stages) / 1e6:.2f}", f"{n_classes} classes"))
    title = (
        f"{resolved.block}, width x {float(resolved.width):.4g}: {total / limit:.2%} of {limit:,} parameters"
    )
    console.table(title, rows, ("stage", "parameters", "MMACs", "output"))
    return 0


# ---- evaluate -----------------------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument(
        "--tta", choices=("none", "flip"), default="none", help="flip: average the mirrored image in"
    )
    whose = "prepared folder (default: the run's data.root, split as by its data.tune_split)"
    parser.add_argument("--data", type=Path, help=whose)
    parser.add_argument(
        "--out", type=Path, help="folder for the tables and pictures (default: RUN/evaluation)"
    )


def evaluate(args: argparse.Namespace) -> int:
    """Print top-1, top-5, loss and calibration error; write the tables and pictures of RUN/evaluation."""
    from tinyimnet import analysis, console, data

    trained = _load_trained(args.run)
    dataset, split = _dataset_of(trained, args.run, args.data), args.split
    if not args.data and _data_of(args.run).get("tune_split"):
        dataset, split = data.tuning_split(dataset), split.replace("val", "held-out train")
    images, labels = dataset.images[args.split], dataset.labels[args.split]
    out = args.out or (args.run.parent if args.run.is_file() else args.run) / "evaluation"
    log_probabilities = analysis.log_probabilities(trained, images, flip=args.tta == "flip")
    with _writing(out, "folder"):
        results = analysis.write(out, trained, images, labels, log_probabilities, split=split, tta=args.tta)
    rows = [
        ("top-1", f"{results['top1']:.2f} %"),
        ("top-5", f"{results['top5']:.2f} %"),
        ("loss", f"{results['loss']:.4f}"),
        ("calibration error (ECE)", f"{results['ece']:.2f} %"),
        ("images", f"{results['images']:,} ({split}, tta {args.tta})"),
        ("weights", f"{trained.origin}, step {trained.step:,}"),
        ("written", f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}"),
    ]
    console.table(f"evaluation of {args.run}", rows)
    return 0


# ---- predict ------------------------------------------------------------------------------------------------


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="of the prepared data"
    )
    parser.add_argument("--images", type=Path, help="instead of a split: a folder of images or an .npy file")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="(default: submission.csv)")
    parser.add_argument(
        "--tta", choices=("none", "flip"), default="none", help="flip: average the mirrored image in"
    )
    parser.add_argument("--label", choices=("wnid", "index", "name"), default="wnid", help="(default: wnid)")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the run's data.root)")


def predict(args: argparse.Namespace) -> int:
    """Write filename,label, one row an image, in file order."""
    import csv

    from tinyimnet import analysis

    trained = _load_trained(args.run)
    if args.images:
        files, images = prepare.read_images(args.images)
    else:
        dataset = _dataset_of(trained, args.run, args.data)
        if args.split not in dataset.images:
            raise UserError(f"--split {args.split}: {dataset.root} has no {args.split} images; use --images.")
        images = dataset.images[args.split]
        numbered = [f"{args.split}_{i}" for i in range(len(images))]
        files = list(dataset.test_files) if args.split == "test" and dataset.test_files else numbered
    flip = args.tta == "flip"
    predicted = analysis.log_probabilities(trained, images, flip=flip).argmax(1).tolist()
    label = {"wnid": trained.classes, "index": range(len(trained.classes)), "name": trained.names}[args.label]
    with _writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["filename", "label"])
            writer.writerows([name, label[index]] for name, index in zip(files, predicted, strict=True))
    print(f"{len(files):,} predictions of {trained.origin} (step {trained.step:,}): {args.out}")
    return 0


# ---- soft-labels --------------------------------------------------------------------------------------------


def _soft_labels_arguments(parser: argparse.ArgumentParser) -> None:
    several = "run folder or .safetensors file of a teacher; of several, the mean counts"
    parser.add_argument("runs", type=Path, metavar="RUN", nargs="+", help=several)
    parser.add_argument("--data", type=Path, help="prepared folder (default: the first run's data.root)")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def soft_labels(args: argparse.Namespace) -> int:
    """Write the teachers' mean probabilities for all training images, averaged with those of the mirror images."""
    import tempfile

    import numpy as np

    from tinyimnet import analysis
    from tinyimnet.soft_labels import write

    with _writing(args.out):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out.parent).close()  # before the minutes of computing, not after them
    teachers = [_load_trained(run) for run in args.runs]
    datasets = [_dataset_of(teacher, args.runs[0], args.data) for teacher in teachers]
    images, labels = datasets[0].images["train"], datasets[0].labels["train"]
    said = []
    for teacher in teachers:  # minutes on a CPU
        print(f"{teacher.origin} looks at {len(images):,} training images", file=sys.stderr, flush=True)
        said.append(analysis.log_probabilities(teacher, images, flip=True).exp().numpy())
    probabilities = np.mean(said, axis=0)
    with _writing(args.out):
        write(args.out, probabilities, datasets[0], [str(teacher.origin) for teacher in teachers])
    top1 = (probabilities.argmax(1) == labels).mean()
    print(
        f"{len(labels):,} soft labels of {len(said)} network(s), which have {top1:.1%} of them right: {args.out}"
    )
    return 0


# ---- shared -------------------------------------------------------------------------------------------------


@contextmanager
def _writing(out: Path, what: str = "file") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another {what}.") from None


def _load_trained(run: Path) -> "Trained":
    import torch

    from tinyimnet.distributed import keep_freed_memory
    from tinyimnet.export import load_trained

    trained = load_trained(run)
    if torch.cuda.is_available():
        trained.model.to("cuda")
    else:
        keep_freed_memory()
    return trained


def _dataset_of(trained: "Trained", run: Path, root: Path | None) -> "Dataset":
    from tinyimnet import data

    root = root or Path(_data_of(run)["root"])
    dataset = data.open_dataset(root)
    if dataset.classes != trained.classes:
        raise UserError(f"{root} has other classes than {trained.origin} was trained on; choose --data.")
    return dataset


def _data_of(run: Path) -> dict:
    """The section `data` of the configuration of a run, or of the run beside a file with its weights."""
    from tinyimnet import runfolder

    return runfolder.read_config(run.parent if run.is_file() else run)["data"]
