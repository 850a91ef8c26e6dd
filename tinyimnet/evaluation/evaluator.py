"""Distributed evaluation on the validation set, with BatchNorm statistics averaged over ranks."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tinyimnet.data.augment import Normalise
from tinyimnet.data.dataset import Dataset
from tinyimnet.distributed import reduction
from tinyimnet.evaluation.inference import evaluate, rows_of_rank
from tinyimnet.model.batchnorm import float_buffers, unflatten


class Evaluator:
    """Evaluates weights in its own copy of the network and leaves the network in training unchanged.

    Args:
        accelerator: the process group.
        model: the bare network to copy.
        dataset: its validation images are moved to the device.
        normalise: normalisation of the training set.
        precision: train.precision.
        after_batch: called after each batch.

    Attributes:
        images: (N, S, S, 3) uint8.
        labels: (N,) int64.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        dataset: Dataset,
        normalise: Normalise,
        precision: str,
        after_batch: Callable[[], None] = lambda: None,
    ):
        self.accelerator, self.model = accelerator, deepcopy(model)
        self.images = torch.from_numpy(dataset.images["val"]).to(accelerator.device)
        self.labels = torch.from_numpy(dataset.labels["val"]).to(accelerator.device)
        self.normalise, self.precision, self.after_batch = normalise, precision, after_batch

    def measure(self, source: nn.Module, prefix: str, **options: Any) -> dict[str, float]:
        """Top-1 and top-5 in percent and loss of the weights of `source`; every process calls it.

        `options` are the arguments flip and resolution of inference.batched_log_probabilities.
        """
        n = len(self.images)
        rows = rows_of_rank(n, self.accelerator.process_index, self.accelerator.num_processes)
        model = self.consolidated(source)
        options |= {"precision": self.precision, "after_batch": self.after_batch}
        sums = evaluate(model, self.images, self.labels, rows, self.normalise, **options)
        loss, top1, top5, count = reduction.sum_over_ranks(sums).tolist()
        assert count == n, f"{count} of {n} validation images counted"
        return {f"{prefix}top1": 100 * top1 / n, f"{prefix}top5": 100 * top5 / n, f"{prefix}loss": loss / n}

    def consolidated(self, source: nn.Module) -> nn.Module:
        """The weights of `source` with BatchNorm statistics averaged over ranks.

        The statistics in `source` do not change, so a result does not depend on when evaluations happen.
        """
        self.model.load_state_dict(source.state_dict())
        statistics = float_buffers(self.model)
        flat = torch.cat([b.flatten() for b in statistics])
        unflatten(reduction.mean_over_ranks(flat), statistics)
        return self.model
