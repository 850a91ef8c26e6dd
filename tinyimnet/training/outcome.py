"""How a run starts and ends: a few words for the person, the marker for the job script."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tinyimnet.console import console, print_table
from tinyimnet.distributed.preemption import wants_requeue
from tinyimnet.errors import UserError
from tinyimnet.evaluation import analysis, pictures
from tinyimnet.evaluation.model_card import CARD, model_card
from tinyimnet.evaluation.weights import BEST, FINAL, as_trained, save_best, save_weights
from tinyimnet.files import read_lines, write_atomically
from tinyimnet.model.network import count_parameters
from tinyimnet.run.folder import Attempt, mark, read_config
from tinyimnet.run.lock import RunLock
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.training.trainer import Trainer

logger = logging.getLogger(__name__)
AUGMENTED = "augmented.png"


def started(run_dir: Path, trainer: Trainer) -> None:
    """Say what is about to run, and where; a picture of images as the network sees them, once."""
    config, world_size = trainer.config.train, trainer.accelerator.num_processes
    accumulation_steps = len(trainer.micro_batches)
    console.print(
        f"{_short(run_dir)}: {count_parameters(trainer.bare):,} parameters, {len(trainer.batches.images):,} training and "
        f"{len(trainer.evaluator.images):,} validation images\n"
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps of {config.global_batch_size} images "
        f"(processes x accumulation steps x images: {world_size} x {accumulation_steps} x {trainer.state.micro_batch_size}) in {config.precision} on {trainer.accelerator.device}, "
        f"{torch.get_num_threads()} CPU threads a process"
    )
    if not (run_dir / AUGMENTED).exists():
        images, titles = pictures.augmented(trainer.batches, trainer.state.metadata["names"], step=0, count=32)
        pictures.image_grid(images, titles, run_dir / AUGMENTED)


def stopped(run_dir: Path, tracker: Tracker, reason: str, step: int, attempt: Attempt) -> None:
    """Report a run that stopped and saved; leave the marker REQUEUE if its scheduler asked, and not a person."""
    if wants_requeue(reason):
        marker = {"reason": reason, "attempt": [attempt.job, attempt.restart], "steps": step - attempt.step}
        mark(run_dir, "REQUEUE", json.dumps(marker))
        if not marker["steps"]:
            tracker.alert("No progress", f"stopped by {reason} before one step was done, at step {step}")
    console.print(f"stopped by {reason}: saved at step {step}; the same command goes on from there")


def failed(run_dir: Path, lock: RunLock, error: UserError) -> None:
    """Leave the marker ERROR, unless the folder is another process's by now or cannot be written."""
    with suppress(UserError, OSError):
        lock.check()
        mark(run_dir, "ERROR", str(error))


def finish(run_dir: Path, trainer: Trainer) -> dict[str, float | int]:
    """Export the averaged weights and look at what they get wrong; every process calls it.

    Returns on the main process what is not in the metrics: size, length, accuracy with flip averaging, calibration.
    """
    flipped = trainer.evaluator.measure(trainer.ema.module, "val/ema_", flip=True)
    network = trainer.evaluator.consolidated(trainer.ema.module)
    if not trainer.accelerator.is_main_process:
        return {}
    save_weights(run_dir / FINAL, network, trainer.step, trainer.state.metadata)
    best: dict[str, float | int] = {"best_ema_top1": trainer.state.best_top1}
    try:
        best["best_step"] = save_best(run_dir)
    except UserError as error:  # no reason to lose the run at its end
        logger.warning("%s is not written: %s", BEST, error)
    return {
        "parameters": count_parameters(network),
        "steps": trainer.step,
        "epochs": trainer.config.train.epochs,
        "val/ema_top1_flip": flipped["val/ema_top1"],
        **best,
        "ece": _analyse(run_dir, trainer, network)["ece"],
    }


def _analyse(run_dir: Path, trainer: Trainer, network: torch.nn.Module) -> dict[str, Any]:
    trained = as_trained(network, run_dir / FINAL, trainer.step, trainer.state.metadata)
    images, labels = (tensor.cpu().numpy() for tensor in (trainer.evaluator.images, trainer.evaluator.labels))
    found = analysis.log_probabilities(trained, images)
    split = "held-out train" if trainer.config.data.tune_split else "val"
    return analysis.write(run_dir / "evaluation", trained, images, labels, found, split=split, tta="none")


def finished(run_dir: Path, tracker: Tracker, results: dict[str, float | int]) -> None:
    """A run that reached its last step: curves, model card, DONE, table."""
    from tinyimnet.evaluation import plots  # here: matplotlib takes half a second to import

    lines = read_lines(run_dir / "metrics.jsonl")
    plots.curves(lines, run_dir / "curves.png")
    results = {**lines[-1], **results}
    info = json.loads((run_dir / "run_info.json").read_text())
    write_atomically(run_dir / CARD, model_card(read_config(run_dir), info, results).encode())
    mark(run_dir, "DONE", json.dumps(results, indent=1))
    tracker.alert("Finished", f"EMA top-1 {lines[-1]['val/ema_top1']:.2f} %", level=logging.INFO)
    show(run_dir)


def show(run_dir: Path) -> None:
    """Print what a finished run reached and where everything lies."""
    try:
        results = json.loads((run_dir / "DONE").read_text())
        results["parameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run_dir / 'DONE'} is damaged ({error}); delete it and give the same command again."
        ) from None
    place = _short(run_dir)
    rows = [
        ("parameters", f"{results['parameters']:,}"),
        ("trained", f"{results['epochs']} epochs, {results['steps']:,} steps"),
        (
            "val top-1 / top-5, EMA weights",
            f"{results['val/ema_top1']:.2f} % / {results['val/ema_top5']:.2f} %",
        ),
        ("val top-1, EMA, mirror image averaged", f"{results['val/ema_top1_flip']:.2f} %"),
        ("val top-1 / top-5, raw weights", f"{results['val/top1']:.2f} % / {results['val/top5']:.2f} %"),
        ("best val top-1 of an epoch, EMA", f"{results['best_ema_top1']:.2f} %"),
        ("weights", str(place / FINAL)),
        ("metrics and curves", f"{place / 'metrics.jsonl'}, {place / 'curves.png'}"),
        ("look closer", f"python -m tinyimnet evaluate {place}"),
    ]
    print_table(f"{place} is finished", rows)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
