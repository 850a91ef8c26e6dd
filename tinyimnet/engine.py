"""The training loop.

A step: learning rate -> gather and augment -> forward under autocast -> backward -> clip -> optimizer -> EMA. Nothing
in it waits for the device; the host reads a number back only where a line is logged.
"""

import json
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from tinyimnet import batches, checkpoint, export, optim
from tinyimnet.config import Config
from tinyimnet.console import Progress
from tinyimnet.data import Dataset
from tinyimnet.ema import Ema
from tinyimnet.errors import UserError
from tinyimnet.evaluation import Evaluator, float_buffers, unflatten
from tinyimnet.model import build_model, count_parameters
from tinyimnet.preemption import StopRequest
from tinyimnet.tracking import Tracker


class Trainer:
    """One run on this process, from its newest checkpoint to its last step.

    Attributes:
        step: optimizer steps done.
        total_steps: optimizer steps of the whole run.
        best_top1: best val/ema_top1 so far, in percent.
        model: the network as Accelerate wrapped it; `bare` is the same without the wrapper.
        ema: its moving average.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        dataset: Dataset,
        run_dir: Path,
        stop: StopRequest,
    ):
        self.config, self.accelerator, self.run_dir = config, accelerator, run_dir
        self.stop = stop
        device, world_size = accelerator.device, accelerator.num_processes
        self.micro_batches = batches.micro_batches(
            config.train.global_batch_size,
            config.train.device_batch_size,
            world_size,
            accelerator.process_index,
        )
        on_device = {s: torch.from_numpy(dataset.images[s]).to(device) for s in ("train", "val")}
        labels = {s: torch.from_numpy(dataset.labels[s]).to(device) for s in ("train", "val")}
        self.batches = batches.TrainBatches(
            on_device["train"],
            labels["train"],
            len(dataset.classes),
            mean=dataset.mean,
            std=dataset.std,
            config=config.augment,
            seed=config.run.seed,
            epochs=config.train.epochs,
            global_batch_size=config.train.global_batch_size,
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = config.train.epochs * self.steps_per_epoch

        self.bare = build_model(config.model, len(dataset.classes), config.run.seed).to(device)
        self.ema = Ema(self.bare)
        self.evaluator = Evaluator(
            accelerator,
            self.bare,
            on_device["val"],
            labels["val"],
            normalise=self.batches.normalise,
            precision=config.train.precision,
        )
        if config.train.compile:
            self.bare.compile()  # in place: the names of the weights stay as they are
        self.model, self.optimizer = accelerator.prepare(
            self.bare, optim.build_optimizer(self.bare, config.optim)
        )

        self.statistics = float_buffers(self.bare)
        self.kept_statistics = [statistic.clone() for statistic in self.statistics]
        self.about = export.description(config, dataset)
        self.step, self.best_top1 = 0, -1.0
        # On the device, read where a line is logged: loss summed since the last line, its steps, gradient norm,
        # non-finite steps in a row and in all.
        self.loss_sum, self.loss_steps, self.grad_norm, self.bad_in_a_row, self.bad_steps = self.tallies = (
            list(torch.zeros(5, device=device).unbind())
        )
        self.progress = Progress(self.total_steps, self.steps_per_epoch, enabled=accelerator.is_main_process)
        self.timed_from, self.timed_images = time.perf_counter(), 0

    # ---- the loop -------------------------------------------------------------------------------------------

    def fit(self, tracker: Tracker) -> str:
        """Train to the last step; returns why it stopped earlier, after a save, or an empty string.

        Raises:
            UserError: all checkpoints damaged, or too many non-finite steps in a row.
        """
        self.tracker = tracker
        self.resume()
        with self.progress:
            self.restart_clock()
            while self.step < self.total_steps:
                if reason := self.stop.agreed(self.accelerator):
                    self.save(best=False)
                    return reason
                self.train_step()
                self.at_boundary()
        return ""

    def train_step(self) -> None:
        """One optimizer step over the global batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        drawn = self.batches.draw(self.step)
        self.model.train()
        torch._foreach_copy_(self.kept_statistics, self.statistics)
        loss = self.backward(drawn)
        grad_norm = self.accelerator.clip_grad_norm_(
            self.bare.parameters(), self.config.optim.clip_grad_norm or float("inf")
        )
        self.step_unless_bad(loss, grad_norm)
        self.optimizer.zero_grad()
        self.ema.update(self.bare, optim.ema_decay_at(self.step, self.config.optim.ema_decay))
        self.step += 1
        self.timed_images += self.config.train.global_batch_size

    def backward(self, drawn: batches.Draw) -> Tensor:
        """Gradients of the mean loss over the global batch, in as many passes as it takes; returns this rank's loss."""
        total, passes = torch.zeros((), device=self.accelerator.device), len(self.micro_batches)
        for i, rows in enumerate(self.micro_batches):
            images, targets = self.batches.load(drawn, rows, self.step)
            torch.manual_seed(
                batches.model_seed(self.config.run.seed, self.step, self.accelerator.process_index, i)
            )
            # DDP averages gradients over ranks in the last pass only.
            with self.accelerator.no_sync(self.model) if i + 1 < passes else nullcontext():
                loss = F.cross_entropy(self.model(images), targets) / passes
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def step_unless_bad(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Step the optimizer, except where the gradient is not finite: the fused kernel reads that on the device.

        BatchNorm's running statistics have seen the bad batch by then and go back to what they were.
        """
        bad = (~torch.isfinite(grad_norm)).float()
        for statistic, kept in zip(self.statistics, self.kept_statistics, strict=True):
            torch.where(bad == 0, statistic, kept, out=statistic)
        self.optimizer.optimizer.found_inf = bad  # under fp16 the GradScaler puts its own in this place
        self.optimizer.optimizer.grad_scale = None
        self.optimizer.step()
        self.loss_sum += torch.where(bad == 0, loss, 0)
        self.loss_steps += 1 - bad
        self.grad_norm.copy_(grad_norm)
        self.bad_in_a_row.add_(1).mul_(bad)
        self.bad_steps += bad

    def at_boundary(self) -> None:
        """What is due after a step: a log line, an evaluation, a checkpoint."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        last = self.step == self.total_steps
        evaluate_now = place == 0 and (epoch % self.config.run.eval_every == 0 or last)
        metrics: dict[str, float] = {}
        if self.step % self.config.run.log_every == 0 or evaluate_now:
            metrics = self.train_metrics()
        best = False
        if evaluate_now:
            metrics |= self.validate()
            best = metrics["val/ema_top1"] > self.best_top1
            self.best_top1 = max(self.best_top1, metrics["val/ema_top1"])
        if metrics:
            self.tracker.log(self.step, metrics)
            self.progress.update(self.step, metrics)
        if evaluate_now or self.step % self.config.run.save_every == 0:
            self.save(best=best)
        if evaluate_now:
            self.restart_clock()

    def finish(self) -> dict[str, float | int]:
        """Export the averaged weights; returns what is not in the metrics: size, length, accuracy with flip averaging."""
        flipped = self.evaluator.measure(self.ema.module, "val/ema_", flip=True)
        network = self.evaluator.consolidated(self.ema.module)
        if self.accelerator.is_main_process:
            export.save_final(self.run_dir, network, self.step, self.about)
        return {
            "parameters": count_parameters(network),
            "steps": self.step,
            "epochs": self.config.train.epochs,
            "val/ema_top1_flip": flipped["val/ema_top1"],
            "best_ema_top1": self.best_top1,
        }

    # ---- numbers --------------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """Learning rate of the step that comes next."""
        return optim.lr_at(self.step, self.config.optim, self.total_steps, self.steps_per_epoch)

    def train_metrics(self) -> dict[str, float]:
        """Means since the last log line; the one place where the training waits for the device."""
        loss_sum, loss_steps, grad_norm, bad_in_a_row, bad_steps = self.accelerator.reduce(
            torch.stack(self.tallies), "mean"
        ).tolist()
        seconds = time.perf_counter() - self.timed_from
        rate = self.timed_images / seconds
        self.restart_clock()
        self.loss_sum.zero_()
        self.loss_steps.zero_()
        if bad_in_a_row >= self.config.train.max_bad_steps:
            raise UserError(
                f"the gradient was not finite in {bad_in_a_row:.0f} steps in a row up to step {self.step} "
                f"(train.max_bad_steps is {self.config.train.max_bad_steps}); the last checkpoint is kept: "
                "lower optim.lr or set optim.clip_grad_norm, in another --run.dir."
            )
        return {
            "epoch": self.step / self.steps_per_epoch,
            "train/loss": loss_sum / loss_steps if loss_steps else float("nan"),
            "train/lr": optim.lr_at(self.step - 1, self.config.optim, self.total_steps, self.steps_per_epoch),
            "train/grad_norm": grad_norm,
            "train/bad_steps": bad_steps,
            "perf/images_per_s": rate,
        }

    def restart_clock(self) -> None:
        """Measure images/s from here: evaluations do not count, checkpoints do."""
        self.timed_from, self.timed_images = time.perf_counter(), 0

    def validate(self) -> dict[str, float]:
        """Metrics of the raw weights and of their average on the validation set."""
        return self.evaluator.measure(self.bare, "val/") | self.evaluator.measure(self.ema.module, "val/ema_")

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def rank_tensors(self) -> dict[str, list[Tensor]]:
        """What differs between ranks: BatchNorm statistics, those of the average, and the tallies."""
        return {
            "model": self.statistics,
            "ema": float_buffers(self.ema.module),
            "tallies": self.tallies,
        }

    def save(self, *, best: bool) -> None:
        """Write a checkpoint; all ranks call it, rank 0 writes."""
        by_rank = {
            name: self.accelerator.gather(torch.cat([t.flatten() for t in tensors])[None]).cpu()
            for name, tensors in self.rank_tensors().items()
        }
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "best_top1": self.best_top1,
                "model": self.bare.state_dict(),
                "ema": self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "about": json.dumps(self.about),
                "by_rank": by_rank,
            }
            self.tracker.flush()
            checkpoint.save(
                self.run_dir / "checkpoints",
                state,
                step=self.step,
                epoch=self.step // self.steps_per_epoch,
                keep=self.config.run.keep_checkpoints,
                best=best,
            )

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one.

        Written by another number of ranks, its per-rank statistics are averaged: equal up to the order of additions.
        """
        state = checkpoint.load_newest(self.run_dir / "checkpoints")
        if state is None:
            self.tracker.rewind(0)
            return
        self.step, self.best_top1 = state["step"], state["best_top1"]
        self.bare.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, tensors in self.rank_tensors().items():
            by_rank = state["by_rank"][name]
            same_world = len(by_rank) == self.accelerator.num_processes
            unflatten(by_rank[self.accelerator.process_index] if same_world else by_rank.mean(0), tensors)
        self.tracker.rewind(self.step)
        self.progress.resumed(self.step)
