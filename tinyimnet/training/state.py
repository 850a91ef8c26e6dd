"""Everything that a checkpoint holds, and nothing else does: a run goes on from it bit for bit."""

import json
import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from tinyimnet.errors import UserError, one_line
from tinyimnet.model.batchnorm import float_buffers, unflatten
from tinyimnet.training.ema import Ema

logger = logging.getLogger(__name__)


class TrainState:
    """Weights, their average, the optimizer, what is counted on the device, and where the run is.

    Args:
        accelerator: the process group.
        model: the bare network.
        ema: its average.
        optimizer: as Accelerate wrapped it.
        metadata: of the weights (weights.metadata_of).
        micro_batch_size: images in a forward pass of a process.

    Attributes:
        step: optimizer steps done.
        best_top1: best val/ema_top1 so far, in percent.
        statistics: BatchNorm's running means and variances, those of this rank.
        loss_sum, loss_steps: loss summed since the last log line, and its steps; on the device, as all of `counters`.
        grad_norm: of the last step.
        skipped_in_a_row, skipped_steps: steps with a non-finite gradient: the last ones in a row, and all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        ema: Ema,
        optimizer: AcceleratedOptimizer,
        metadata: dict,
        micro_batch_size: int,
    ):
        self.accelerator, self.model, self.ema, self.optimizer = accelerator, model, ema, optimizer
        self.metadata, self.micro_batch_size = metadata, micro_batch_size
        self.step, self.best_top1 = 0, -1.0
        self.statistics = float_buffers(model)
        self._kept_statistics = [statistic.clone() for statistic in self.statistics]
        self.counters = list(torch.zeros(5, device=accelerator.device).unbind())
        self.loss_sum, self.loss_steps, self.grad_norm, self.skipped_in_a_row, self.skipped_steps = self.counters

    def keep_statistics(self) -> None:
        """Keep BatchNorm's statistics ahead of a step: one that is skipped gives them back."""
        torch._foreach_copy_(self._kept_statistics, self.statistics)

    def count_step(self, loss: Tensor, grad_norm: Tensor, finite: Tensor) -> None:
        """Count a step that was done or, where its gradient was not finite, skipped; never waits for the device.

        Args:
            loss: of this rank, ().
            grad_norm: over the global batch, ().
            finite: whether the norm is, () bool.
        """
        skipped = (~finite).float()
        for statistic, kept in zip(self.statistics, self._kept_statistics, strict=True):
            torch.where(finite, statistic, kept, out=statistic)  # they have seen the bad batch by now
        self.loss_sum += torch.where(finite, loss, 0)
        self.loss_steps += 1 - skipped
        self.grad_norm.copy_(grad_norm)
        self.skipped_in_a_row.add_(1).mul_(skipped)
        self.skipped_steps += skipped

    def _of_rank(self) -> dict[str, list[Tensor]]:
        """What differs between ranks."""
        return {
            "model": self.statistics,
            "ema": float_buffers(self.ema.module),
            "counters": self.counters,
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
            "metadata": json.dumps(self.metadata),
            "micro_batch_size": self.micro_batch_size,
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
            data = json.loads(saved["metadata"])["data"]
            if data != self.metadata["data"]:
                raise UserError(
                    f"data.root holds other data than the run was trained on, or data.soft_labels (sha256 "
                    f"{self.metadata['data'][:12]}, not {data[:12]}); give those that it began with, or another --run.dir."
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
            if saved["micro_batch_size"] != self.micro_batch_size and self.accelerator.is_main_process:
                logger.warning(
                    "a micro-batch has %d images and had %d: BatchNorm normalises other groups of images from here on, "
                    "so the result is another one; train.device_batch_size sets the size.",
                    self.micro_batch_size, saved["micro_batch_size"],
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
