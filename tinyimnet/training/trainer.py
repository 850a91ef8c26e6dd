"""The training loop: steps (step.py), and between them log lines, evaluations and checkpoints.

The host reads values back from the device only to log a line.
"""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from tinyimnet.config import Config
from tinyimnet.console import Progress
from tinyimnet.data import batches
from tinyimnet.data.dataset import Dataset
from tinyimnet.distributed import reduction
from tinyimnet.distributed.preemption import StopRequest
from tinyimnet.distributed.process_group import from_main
from tinyimnet.errors import UserError
from tinyimnet.evaluation.evaluator import Evaluator
from tinyimnet.evaluation.weights import initial_weights, metadata_of
from tinyimnet.model.batchnorm import flatten_statistics
from tinyimnet.model.casting import CastWeights
from tinyimnet.model.network import Network, build_model, compile_in_place
from tinyimnet.model.whitening import N_IMAGES, freeze_stem, whitening_filters
from tinyimnet.run.checkpoint import Saver
from tinyimnet.run.metrics import TOP1
from tinyimnet.tracking.tracker import Tracker
from tinyimnet.training import optim
from tinyimnet.training.ema import Ema
from tinyimnet.training.page import LivePage
from tinyimnet.training.profile import Profile
from tinyimnet.training.state import TrainState
from tinyimnet.training.step import TrainStep
from tinyimnet.training.timing import StepClock
from tinyimnet.training.utilisation import Utilisation, peak_flops

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a run on this process, from its newest checkpoint to its last step.

    Args:
        config: the configuration.
        accelerator: the process group.
        dataset: the data set to train on.
        saved: the newest checkpoint; None for a new run.
        tracker: receives the metrics.
        saver: writes the checkpoints.
        stop: tells when to save and exit.

    Attributes:
        state: what a checkpoint stores: weights, optimizer, counters, step.
        bare: the network; `model` is the same network wrapped by Accelerate.
        train_step: takes a step when called.
        ema: the moving average of its weights.

    Raises:
        UserError: the global batch does not divide evenly, or the checkpoint or train.init_from does not fit.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        dataset: Dataset,
        *,
        saved: dict[str, Any] | None,
        tracker: Tracker,
        saver: Saver,
        stop: StopRequest,
    ):
        self.config, self.accelerator = config, accelerator
        self.tracker, self.saver, self.stop = tracker, saver, stop
        device = accelerator.device
        train, ranks = config.train, (accelerator.num_processes, accelerator.process_index)
        self.micro_batches = batches.micro_batches(train.global_batch_size, train.device_batch_size, *ranks)
        self.batches = batches.TrainBatches.of_run(config, dataset, device)
        self.steps_per_epoch, self.total_steps = self.batches.steps_per_epoch, self.batches.total_steps

        self.bare = self._build_network(len(dataset.classes))
        evaluating, normalise = partial(self.alive, "evaluating"), self.batches.normalise
        self.evaluator = Evaluator(accelerator, self.bare, dataset, normalise, train.precision, evaluating)
        network = self.bare.train()
        if config.train.compile:  # joins the casts with other operations
            compile_in_place(network)
        else:
            network = CastWeights(network)
        optimizer = optim.build_optimizer(self.bare, config.optim)
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        if accelerator.num_processes > 1 and train.ordered_reduction:
            self.model.register_comm_hook(reduction.most_gathered(device), reduction.average_gradients)
        statistics = flatten_statistics(self.bare)  # after `prepare`, which moves a network on several CPUs once more
        self.ema = Ema(self.bare, statistics)

        metadata, rows = metadata_of(config, dataset), self.micro_batches[0]
        self.state = TrainState(
            accelerator, self.bare, self.ema, self.optimizer, statistics, metadata, rows.stop - rows.start
        )
        lengths = self.total_steps, self.steps_per_epoch
        self.progress = Progress(*lengths, self.batches.work_left, enabled=accelerator.is_main_process)
        self.clock, self.save_seconds = StepClock(device), 0.0
        peak = accelerator.num_processes * peak_flops(device, train.precision)
        self.utilisation = Utilisation(cast(Network, self.ema.module), self.batches.image_size, peak)
        profiled = config.run.profile if accelerator.is_main_process else 0
        self.profile = Profile(profiled, saver.folder.parent / "profile", self.clock)
        self.page = LivePage(saver.folder.parent, enabled=accelerator.is_main_process)
        self.train_step = TrainStep(
            config, accelerator, self.model, self.state, self.batches, self.micro_batches, self.clock
        )
        self._begin(saved)
        to_come = self.batches.resolutions[self.step :].tolist() if config.train.compile else []
        self._to_compile = set(to_come)

    def _build_network(self, n_classes: int) -> nn.Module:
        """Build the initial network on the device."""
        bare = build_model(self.config.model, n_classes, self.config.run.seed).to(self.accelerator.device)
        if self.config.model.whiten_stem:
            # Computed on rank 0, because signs and last digits of eigenvectors may differ between machines.
            filters = from_main(self.accelerator, lambda: whitening_filters(self.batches.plain(N_IMAGES)))
            freeze_stem(bare.get_parameter("stem.0.weight"), filters)
        return bare

    def _begin(self, saved: dict[str, Any] | None) -> None:
        """Resume from a checkpoint, or start from the weights of train.init_from if it is set."""
        if saved:  # the file of train.init_from is no longer needed
            self.state.restore(saved)
        elif run := self.config.train.init_from:
            weights = from_main(self.accelerator, lambda: initial_weights(Path(run), self.bare, self.state.metadata))
            for model in (self.bare, self.ema.module):
                model.load_state_dict(weights)

    # ---- the loop -------------------------------------------------------------------------------------------

    def fit(self) -> str:
        """Train to the last step and return ""; if stopped earlier, save and return the reason.

        Raises:
            UserError: the last checkpoint could not be written, too many consecutive steps were non-finite, or another
                process took over the run folder.
        """
        logger.info("training from step %d of %d", self.step, self.total_steps)
        if self.step:
            self.progress.resumed(self.step)
        if self._to_compile:
            self.progress.compiling(sorted(self._to_compile))
        reason = ""
        with self.progress, self.profile:
            self.clock.restart()
            while self.step < self.total_steps and not reason:
                if reason := self.stop.agreed(self.accelerator):
                    self.save(best=False)
                else:
                    self.take_step()
                    self.at_boundary()
                    self.alive("training")
        self.stop.end_loop()
        from_main(self.accelerator, self.finish_saving)
        return reason

    def take_step(self) -> None:
        """Take a step; the first one at a resolution compiles the network if train.compile is on."""
        resolution, started = self.batches.resolution(self.step), time.perf_counter()
        with self.profile.step():
            self.train_step()
        if resolution in self._to_compile:
            self._to_compile.remove(resolution)
            self.progress.compiled(resolution, time.perf_counter() - started, len(self._to_compile))

    def at_boundary(self) -> None:
        """Log, evaluate and save after a step, as due."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        last = self.step == self.total_steps
        evaluate_now = place == 0 and (epoch % self.config.run.eval_every == 0 or last)
        metrics: dict[str, float] = {}
        if self.step % self.config.run.log_every == 0 or evaluate_now:
            metrics = self.train_metrics()
        best = False
        if evaluate_now:
            started = time.perf_counter()
            metrics |= self.validate()
            metrics["perf/eval_s"] = time.perf_counter() - started
            best = metrics[TOP1] > self.state.best_top1
            self.state.best_top1 = max(self.state.best_top1, metrics[TOP1])
        if metrics:
            self.tracker.log(self.step, metrics)
            self.progress.update(self.step, metrics)
        self.report_failed_save(wait=False)
        if evaluate_now or self.step % self.config.run.save_every == 0:
            self.save(best=best)
        if evaluate_now:
            self.page.update()
            self.clock.restart()  # exclude the evaluation, its checkpoint and the page

    def alive(self, doing: str) -> None:
        """Note that the loop is not stuck."""
        self.stop.alive()
        self.progress.alive(self.step, doing)

    # ---- numbers --------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    def train_metrics(self) -> dict[str, float]:
        """Metrics since the last log line; the only place where the training waits for the device."""
        values = torch.cat([self.state.counters, self.ema.distance()[None]])
        loss_sum, loss_steps, grad_norm, skipped_in_a_row, skipped_steps, ema_distance = reduction.mean_over_ranks(
            values
        ).tolist()
        speed = self.clock.read(self.config.train.global_batch_size)
        resolution = self.batches.resolution(self.step - 1)
        speed |= self.utilisation.of(speed["perf/images_per_s"], resolution)
        speed |= {"perf/save_s": self.save_seconds, "perf/failed_saves": self.saver.failed}
        self.clock.restart()
        self.save_seconds = 0.0
        torch._foreach_zero_([self.state.loss_sum, self.state.loss_steps])
        if skipped_in_a_row >= self.config.train.max_skipped_steps:
            reason = (
                f"the gradient was not finite in {skipped_in_a_row:.0f} consecutive steps up to step {self.step} "
                f"(train.max_skipped_steps is {self.config.train.max_skipped_steps}) and the last checkpoint is kept; "
                "lower optim.lr or set optim.clip_grad_norm, and start again in another --run.dir."
            )
            self.tracker.alert("Training diverged", reason)
            raise UserError(reason)
        return {
            "epoch": self.step / self.steps_per_epoch,
            "train/loss": loss_sum / loss_steps if loss_steps else float("nan"),
            "train/lr": self.config.optim.lr * self.train_step.lr_scale(self.step - 1),
            "train/grad_norm": grad_norm,
            "train/ema_distance": ema_distance,
            "train/skipped_steps": skipped_steps,
            "train/resolution": resolution,
            **speed,
        }

    def validate(self) -> dict[str, float]:
        """Metrics of the raw and the averaged weights on the validation set.

        They are measured at the resolution of the last step: a network trained only at 32 to 56 px loses 10 points at
        64 px (trial 10 in docs/experiments.md). At the end of the run they are measured as they will be used.
        """
        last = self.step == self.total_steps
        resolution = self.batches.resolution(self.step if last else self.step - 1)
        raw = self.evaluator.measure(self.bare, "val/", resolution=resolution)
        return raw | self.evaluator.measure(self.ema.module, "val/ema_", resolution=resolution)

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def save(self, *, best: bool) -> None:
        """Start writing a checkpoint after the previous one is written; all ranks call it, rank 0 writes."""
        started = time.perf_counter()
        snapshot, copied = self.state.snapshot()
        if self.accelerator.is_main_process:
            self.report_failed_save(wait=True)
            self.saver.submit(snapshot, copied, step=self.step, best=best)
        self.save_seconds += time.perf_counter() - started

    def report_failed_save(self, *, wait: bool) -> str:
        """Report a failed save and return its reason, or ""; the next save tries again."""
        if reason := self.saver.collect(wait=wait):
            what_now = "training continues, the earlier checkpoints are intact and the next save tries again"
            self.tracker.alert("Checkpoint not written", f"{reason}; {what_now}")
        return reason

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is on disk, retrying once if the write failed; rank 0 calls it.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if self.report_failed_save(wait=True):
            self.saver.retry()
        if reason := self.saver.collect(wait=True):
            raise UserError(
                f"the checkpoint of step {self.step} could not be written to {self.saver.folder.parent} ({reason}); "
                "fix that and rerun the same command to resume from the previous checkpoint."
            )
