"""The training state that a checkpoint stores; resuming from it is bit-identical."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from tinyimnet.distributed import reduction
from tinyimnet.errors import UserError, one_line
from tinyimnet.training.ema import Ema

logger = logging.getLogger(__name__)


class TrainState:
    """Weights, their EMA, the optimizer, the counters on the device and the progress of the run.

    Args:
        accelerator: the process group.
        model: the bare network.
        ema: the moving average of its weights.
        optimizer: the optimizer, wrapped by Accelerate.
        statistics: BatchNorm statistics of the network as one tensor (batchnorm.flatten_statistics).
        metadata: metadata of the weights (weights.metadata_of).
        micro_batch_size: images per forward pass on one process.

    Attributes:
        step: optimizer steps done.
        best_top1: best val/ema_top1 so far, in percent.
        statistics: BatchNorm statistics of this rank.
        loss_sum, loss_steps: sum of the loss since the last log line and its number of steps; like all of `counters`,
            on the device.
        grad_norm: gradient norm of the last step.
        skipped_in_a_row, skipped_steps: steps with a non-finite gradient: the latest consecutive ones, and all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        ema: Ema,
        optimizer: AcceleratedOptimizer,
        statistics: Tensor,
        metadata: dict,
        micro_batch_size: int,
    ):
        self.accelerator, self.model, self.ema, self.optimizer = accelerator, model, ema, optimizer
        self.metadata, self.micro_batch_size = metadata, micro_batch_size
        self.step, self.best_top1 = 0, -1.0
        self.statistics, self._kept_statistics = statistics, statistics.clone()
        self.counters = torch.zeros(5, device=accelerator.device)
        self.loss_sum, self.loss_steps, self.grad_norm, self.skipped_in_a_row, self.skipped_steps = self.counters

    def keep_statistics(self) -> None:
        """Back up the BatchNorm statistics before a step, so that a skipped step can restore them."""
        self._kept_statistics.copy_(self.statistics)

    def count_step(self, loss: Tensor, grad_norm: Tensor, finite: Tensor) -> None:
        """Count a step as done, or as skipped if its gradient was not finite, without waiting for the device.

        Args:
            loss: loss of this rank, shape ().
            grad_norm: gradient norm over the global batch, shape ().
            finite: whether the norm is finite, shape () bool.
        """
        skipped = (~finite).float()
        # Undo the update by the skipped batch.
        torch.where(finite, self.statistics, self._kept_statistics, out=self.statistics)
        self.loss_sum += torch.where(finite, loss, 0)
        self.loss_steps += 1 - skipped
        self.grad_norm.copy_(grad_norm)
        self.skipped_in_a_row.add_(1).mul_(skipped)
        self.skipped_steps += skipped

    def _of_rank(self) -> dict[str, Tensor]:
        """Tensors (n,) that differ between ranks."""
        return {"model": self.statistics, "ema": self.ema.statistics, "counters": self.counters}

    def snapshot(self) -> tuple[dict[str, Any], Callable[[], None]]:
        """Copy the state to host memory; every rank calls it, rank 0 gets the copy.

        The device makes the copies in the order of its work, and only the thread that writes the checkpoint waits for
        them. If that thread read the tensors one by one instead, each read would wait for all work that the training
        has queued meanwhile.

        Returns:
            The copy, and a function that waits until it is complete.
        """
        by_rank = {name: reduction.of_all_ranks(tensor) for name, tensor in self._of_rank().items()}
        if not self.accelerator.is_main_process:
            return {}, lambda: None
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "best_top1": self.best_top1,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": _scaler_state(scaler) if scaler else None,
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
        """Restore the state that `snapshot` copied.

        If the snapshot has a different number of ranks, values that differ between ranks are averaged.

        Raises:
            UserError: the checkpoint does not fit this network or was trained on different data.
        """
        try:
            self.step, self.best_top1 = saved["step"], saved["best_top1"]
            data = json.loads(saved["metadata"])["data"]
            if data != self.metadata["data"]:
                raise UserError(
                    "data.root or data.soft_labels holds different data than the run was trained on (sha256 "
                    f"{self.metadata['data'][:12]}, not {data[:12]}); restore the original data to resume the run, "
                    "or choose another --run.dir."
                )
            self.model.load_state_dict(saved["model"])
            self.ema.module.load_state_dict(saved["ema"])
            entries = [group.keys() for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(saved["optimizer"])
            if [group.keys() for group in self.optimizer.param_groups] != entries:  # torch accepts any entries
                raise ValueError("its parameter groups have different entries")
            if self.accelerator.scaler:
                numbers = {key: x.item() if isinstance(x, Tensor) else x for key, x in saved["scaler"].items()}
                self.accelerator.scaler.load_state_dict(numbers)
            for name, tensor in self._of_rank().items():
                by_rank = saved["by_rank"][name]
                same_world = len(by_rank) == self.accelerator.num_processes
                tensor.copy_(by_rank[self.accelerator.process_index] if same_world else by_rank.mean(0))
            if saved["micro_batch_size"] != self.micro_batch_size and self.accelerator.is_main_process:
                logger.warning(
                    "a micro-batch now has %d images instead of %d, so BatchNorm normalises different groups of images "
                    "and the results will differ; train.device_batch_size sets the micro-batch size.",
                    self.micro_batch_size, saved["micro_batch_size"],
                )  # fmt: skip
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint does not fit this version of the program ({type(error).__name__}: {one_line(error)}); "
                "resume it with the version that wrote it, or choose another --run.dir."
            ) from error


def _scaler_state(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """What `scaler.state_dict()` returns, but tensors stay tensors, because reading them would wait for the device."""
    if scaler._scale is None:  # before the first step
        return scaler.state_dict()
    return {
        "scale": scaler._scale,
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
        "_growth_tracker": scaler._growth_tracker,
    }


def _on_host(state: Any) -> Any:
    """Copy nested dictionaries and lists of tensors to the host: one copy for all tensors of a dtype, not hundreds."""
    tensors = list(_tensors_in(state))
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    copies = {kind: iter(_copied([t for t in tensors if (t.dtype, t.device) == kind])) for kind in kinds}
    return _replaced(state, (next(copies[tensor.dtype, tensor.device]) for tensor in tensors))


def _copied(tensors: list[Tensor]) -> list[Tensor]:
    """Host copies of tensors, as views of one buffer; each keeps its memory layout.

    From a GPU, the copy is asynchronous and into pinned memory, which torch keeps for later snapshots.
    """
    flat = torch.cat([tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors])
    if flat.device.type != "cpu":
        flat = torch.empty_like(flat, device="cpu", pin_memory=True).copy_(flat, non_blocking=True)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.as_strided(tensor.shape, tensor.stride()) for part, tensor in zip(parts, tensors, strict=True)]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Nested dictionaries and lists with other tensors, in the order of `_tensors_in`."""
    if isinstance(value, dict):
        return {key: _replaced(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, tensors) for item in value]
    return next(tensors) if isinstance(value, Tensor) else value
