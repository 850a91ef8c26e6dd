"""Steps as CUDA graphs: the host launches one graph instead of each of hundreds of kernels. Not run on a GPU yet.

A graph repeats the kernels of a step on the same memory ("CUDA Graphs" in docs.pytorch.org, notes/cuda). What differs
between two steps of a kind (the draw, the learning rate, the decay of the EMA) is therefore in one tensor that the host
overwrites before each launch. The seed of DropPath needs no place in it: a graph takes it from torch's generator.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyimnet.data.batches import to_device
from tinyimnet.errors import UserError
from tinyimnet.training.timing import StepClock

# Steps of a kind that are launched kernel by kernel first: libraries allocate in them, and torch.compile compiles.
LAUNCHED = 3


class Kind(NamedTuple):
    """What decides which kernels a step launches.

    Attributes:
        resolution: of the images, in px.
        mixed: whether images are mixed.
    """

    resolution: int
    mixed: bool


class Graphs:
    """A graph for each kind of step, at most 14 in a run.

    Args:
        work: does a step on the device (TrainStep.work).
        clock: gets the time of a graph as that of the forward and backward pass.
    """

    def __init__(self, work: Callable[[Kind, list[Tensor], Tensor, Tensor], None], clock: StepClock):
        self._work, self._clock, self._stream = work, clock, torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()  # shared, because no two steps run at the same time
        self._launched: Counter[Kind] = Counter()
        self._captured: dict[Kind, tuple[Tensor, torch.cuda.CUDAGraph]] = {}

    def launch(self, kind: Kind, packed: np.ndarray, lr_scale: float, ema_decay: float) -> None:
        """Take a step; the arguments are those of TrainStep.work, on the host."""
        inputs = join(packed, lr_scale, ema_decay)
        if self._launched[kind] < LAUNCHED:
            self._launched[kind] += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._work(kind, *split(to_device(inputs, self._stream.device)))
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if kind not in self._captured:
            self._captured[kind] = self._capture(kind, len(inputs))
        memory, graph = self._captured[kind]
        memory.copy_(torch.from_numpy(inputs).pin_memory(), non_blocking=True)
        with self._clock.part("forward_backward"):
            graph.replay()

    def _capture(self, kind: Kind, size: int) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        """The memory of the inputs and the graph that reads them; a capture does not run what it records."""
        memory, graph = torch.zeros(size, dtype=torch.int32, device=self._stream.device), torch.cuda.CUDAGraph()
        # thread_local: meanwhile the thread that writes checkpoints may wait for its copy.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._work(kind, *split(memory))
        return memory, graph


def join(packed: np.ndarray, lr_scale: float, ema_decay: float) -> np.ndarray:
    """All inputs of a step in one array (n + 2,) int32, which reaches the device in one copy; floats as bits."""
    return np.concatenate([packed, np.array([lr_scale, ema_decay], np.float32).view(np.int32)])


def split(inputs: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """The inverse of `join`: the draw of the only micro-batch, and both numbers as tensors of shape ()."""
    lr_scale, ema_decay = inputs[-2:].view(torch.float32)
    return [inputs[:-2]], lr_scale, ema_decay


def check(device: torch.device, processes: int, micro_batches: int) -> None:
    """Refuse what a graph cannot repeat.

    Raises:
        UserError: there is no GPU, or there are several processes or micro-batches.
    """
    needs = [
        (device.type == "cuda", "an NVIDIA GPU, and torch sees none"),
        (processes == 1, f"a single process, not {processes}"),
        (micro_batches == 1, f"a batch in one piece, not in {micro_batches} micro-batches (train.device_batch_size)"),
    ]
    for holds, what in needs:
        if not holds:
            raise UserError(f"train.cuda_graph is true and needs {what}; leave it false.", every_rank=True)
