"""The start and the end of a run: console lines, result files, markers for the job script."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tinyimnet.console import command, console, counted, short
from tinyimnet.distributed.preemption import wants_requeue
from tinyimnet.errors import UserError
from tinyimnet.evaluation import analysis, pictures
from tinyimnet.evaluation.model_card import CARD, model_card
from tinyimnet.evaluation.weights import BEST, FINAL, as_trained, save_best, save_weights
from tinyimnet.files import read_lines, read_text, write_atomically
from tinyimnet.model.network import count_parameters
from tinyimnet.run.folder import Attempt, mark, read_config
from tinyimnet.run.lock import RunLock
from tinyimnet.run.record import read_object
from tinyimnet.run.states import FAILED, FINISHED, STOPPED
from tinyimnet.tracking.mode import wandb_mode
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.training.page import write_page
from tinyimnet.training.trainer import Trainer

logger = logging.getLogger(__name__)
AUGMENTED = "augmented.png"


def started(run_dir: Path, trainer: Trainer) -> None:
    """Print what is about to run and where; write the picture of augmented images, once."""
    config, accelerator = trainer.config, trainer.accelerator
    split = (accelerator.num_processes, len(trainer.micro_batches), trainer.state.micro_batch_size)
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "CPU"
    size, mode = trainer.batches.image_size, wandb_mode(config.tracking)
    wandb = mode if mode.name == "disabled" else f"project {config.tracking.project}, {mode}"
    console.print(
        f"{counted(config.train.epochs, 'epoch')} of {len(trainer.batches.images):,} images of {size} px, "
        f"{count_parameters(trainer.bare):,} parameters, {config.train.precision} on {device}\n"
        f"batch {config.train.global_batch_size} = {' x '.join(map(str, split))} (processes x micro-batches x images)\n"
        f"run folder: {short(run_dir)}; W&B: {wandb}"
    )
    if not (run_dir / AUGMENTED).exists():
        images, titles = pictures.augmented(trainer.batches, trainer.state.metadata["names"], step=0, count=32)
        pictures.image_grid(images, titles, run_dir / AUGMENTED)


def stopped(run_dir: Path, tracker: Tracker, reason: str, step: int, attempt: Attempt) -> None:
    """Report a run that stopped and saved; write the marker REQUEUE if its scheduler asked for it."""
    if wants_requeue(reason):
        marker = {"reason": reason, "attempt": [attempt.job, attempt.restart], "steps": step - attempt.step}
        mark(run_dir, "REQUEUE", json.dumps(marker))
        if not marker["steps"]:
            tracker.alert("No progress", f"stopped by {reason} before the first step of the attempt, at step {step}")
    console.print(f"{STOPPED} by {reason}: saved at step {step}; rerun the same command to resume")


def failed(run_dir: Path, lock: RunLock, error: UserError) -> None:
    """Write the marker ERROR, unless another process owns the folder or it cannot be written."""
    with suppress(UserError, OSError):
        lock.check()
        mark(run_dir, "ERROR", str(error))


def last_page(run_dir: Path, lock: RunLock, *, failed: bool) -> None:
    """Write the page of a run that stopped or failed and print its path, unless another process owns the folder."""
    with suppress(UserError, OSError):
        lock.check()
        if write_page(run_dir, FAILED if failed else STOPPED):
            console.print(f"page: {short(run_dir / 'report.html')}")


def finish(run_dir: Path, trainer: Trainer) -> dict[str, float | int]:
    """Export the EMA weights and analyse their errors; every process calls it.

    Returns on the main process the results that are not in the metrics: size, length, flip averaging, calibration.
    """
    resolution = trainer.batches.resolution(trainer.total_steps)
    flipped = trainer.evaluator.measure(trainer.ema.module, "val/ema_", flip=True, resolution=resolution)
    network = trainer.evaluator.consolidated(trainer.ema.module)
    if not trainer.accelerator.is_main_process:
        return {}
    save_weights(run_dir / FINAL, network, trainer.step, trainer.state.metadata)
    best: dict[str, float | int] = {"best_ema_top1": trainer.state.best_top1}
    try:
        best["best_step"] = save_best(run_dir)
    except UserError as error:  # the run itself is complete
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
    """Complete the run folder of a run that reached its last step: curves, model card, DONE, page."""
    from tinyimnet.evaluation import plots  # here: matplotlib takes half a second to import

    lines = read_lines(run_dir / "metrics.jsonl")
    plots.curves(lines, run_dir / "curves.png")
    results = {**lines[-1], **results}
    info = json.loads(read_text(run_dir / "run_info.json"))
    write_atomically(run_dir / CARD, model_card(read_config(run_dir), info, results))
    mark(run_dir, "DONE", json.dumps(results, indent=1))
    write_page(run_dir)
    tracker.alert("Finished", f"EMA top-1 {lines[-1]['val/ema_top1']:.2f} %", level=logging.INFO)
    show(run_dir)


def show(run_dir: Path) -> None:
    """Print the results of a finished run, the main files and the next command."""
    try:
        results = json.loads(read_text(run_dir / "DONE"))
        results["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run_dir / 'DONE'} is damaged ({error}); delete it and rerun the same command.") from None
    classes = read_object(run_dir / "run_info.json").get("classes", 200)
    place = short(run_dir)
    console.print(
        f"{place} is {FINISHED}: {counted(results['epochs'], 'epoch')}, {counted(results['steps'], 'step')}, "
        f"{results['parameters']:,} parameters\n"
        f"  val top-1  {results['val/ema_top1']:.2f} %, top-5 {results['val/ema_top5']:.2f} % "
        f"(EMA weights; chance is {100 / classes:.2f} %)\n"
        f"  also       {results['val/top1']:.2f} % raw weights, {results['val/ema_top1_flip']:.2f} % flip averaging, "
        f"{results['best_ema_top1']:.2f} % best epoch\n"
        f"  page       {place / 'report.html'}\n"
        f"  weights    {place / FINAL}\n"
        f"next: {command('evaluate', place, '--tta', 'flip')}"
    )
