"""Everything that a checkpoint holds, and nothing else does: a run goes on from it bit for bit."""

import json
import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from tinyimnet.ema import Ema, float_buffers, unflatten
from tinyimnet.errors import UserError, one_line

logger = logging.getLogger(__name__)


class TrainState:
    """Weights, their average, the optimizer, what is counted on the device, and where the run is.

    Args:
        accelerator: the process group.
        model: the bare network.
        ema: its average.
        optimizer: as Accelerate wrapped it.
        about: what weights mean (export.description).
        pass_size: images in a forward pass of a process.

    Attributes:
        step: optimizer steps done.
        best_top1: best val/ema_top1 so far, in percent.
        statistics: BatchNorm's running means and variances, those of this rank.
        loss_sum, loss_steps: loss summed since the last log line, and its steps; on the device, as all of `tallies`.
        grad_norm: of the last step.
        bad_in_a_row, bad_steps: steps with a non-finite gradient: the last ones in a row, and all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        ema: Ema,
        optimizer: AcceleratedOptimizer,
        about: dict,
        pass_size: int,
    ):
        self.accelerator, self.model, self.ema, self.optimizer = accelerator, model, ema, optimizer
        self.about, self.pass_size = about, pass_size
        self.step, self.best_top1 = 0, -1.0
        self.statistics = float_buffers(model)
        self.tallies = list(torch.zeros(5, device=accelerator.device).unbind())
        self.loss_sum, self.loss_steps, self.grad_norm, self.bad_in_a_row, self.bad_steps = self.tallies

    def _of_rank(self) -> dict[str, list[Tensor]]:
        """What differs between ranks."""
        return {
            "model": self.statistics,
            "ema": float_buffers(self.ema.module),
            "tallies": self.tallies,
        }

    def snapshot(self) -> tuple[dict[str, Any], Callable[[], None]]:
        """A copy in the host's memory, and a function that waits until it is whole; every rank calls it, rank 0 gets it.

        The device copies in the order of its work, and only the thread that writes the copy waits for it. To read the tensors from
        there one by one would wait for all that the training has queued meanwhile, each time.
        """
        by_rank = {
            name: self.accelerator.gather(torch.cat([t.flatten() for t in tensors])[None])
            for name, tensors in self._of_rank().items()
        }
        if not self.accelerator.is_main_process:
            return {}, lambda: None
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "best_top1": self.best_top1,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "about": json.dumps(self.about),
            "pass_size": self.pass_size,
            "by_rank": by_rank,
        }
        copy = _on_host(state)
        if self.accelerator.device.type != "cuda":
            return copy, lambda: None
        copied = torch.cuda.Event()
        copied.record()
        return copy, copied.synchronize

    def restore(self, saved: dict[str, Any]) -> None:
        """Become what `snapshot` saw.

        Taken by another number of ranks, what differs between ranks is averaged.

        Raises:
            UserError: it does not fit this network, or is of other data.
        """
        try:
            self.step, self.best_top1 = saved["step"], saved["best_top1"]
            data = json.loads(saved["about"])["data"]
            if data != self.about["data"]:
                raise UserError(
                    f"data.root holds other data than the run was trained on, or data.soft_labels (sha256 "
                    f"{self.about['data'][:12]}, not {data[:12]}); give those that it began with, or another --run.dir."
                )
            self.model.load_state_dict(saved["model"])
            self.ema.module.load_state_dict(saved["ema"])
            entries = [group.keys() for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(saved["optimizer"])
            if [group.keys() for group in self.optimizer.param_groups] != entries:  # torch takes over any
                raise ValueError("its parameter groups have other entries")
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            for name, tensors in self._of_rank().items():
                by_rank = saved["by_rank"][name]
                same_world = len(by_rank) == self.accelerator.num_processes
                unflatten(by_rank[self.accelerator.process_index] if same_world else by_rank.mean(0), tensors)
            if saved["pass_size"] != self.pass_size and self.accelerator.is_main_process:
                logger.warning(
                    "a forward pass has %d images and had %d: BatchNorm normalises other groups of images from here on, "
                    "so the result is another one; train.device_batch_size sets the size.",
                    self.pass_size, saved["pass_size"],
                )  # fmt: skip
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint does not fit this version of the program ({type(error).__name__}: {one_line(error)}); "
                "resume it with the version that wrote it, or start in another --run.dir."
            ) from error


def _on_host(value: Any) -> Any:
    """Dictionaries and lists with a copy of each tensor, which a GPU writes into pinned memory while the host goes on."""
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_host(item) for item in value]
    if isinstance(value, Tensor):
        copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return copy.copy_(value.detach(), non_blocking=True)
    return value
