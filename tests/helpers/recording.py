"""Steps with the inputs of a CUDA graph: launched, or repeated on the same memory as a graph does, but on a CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinyimnet.data.batches import to_device
from tinyimnet.training.captured import Kind, join, split


class Recording(TorchDispatchMode):
    """Records every operation of a block, with its tensors; `replay` repeats them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        made = [tensor for tensor in tensors(results) if tensor.untyped_storage().data_ptr() not in inputs]
        if made or operation._schema.is_mutable:  # otherwise a view
            self.operations.append((operation, args, kwargs or {}, made))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations; each writes its results where it did the first time."""
        for operation, args, kwargs, made in self.operations:
            results = operation(*args, **kwargs)
            if made:
                for memory, result in zip(made, tensors(results), strict=True):
                    memory.data.copy_(result)


class Launched:
    """In place of captured.Graphs: launches every step, with the inputs of a graph."""

    def __init__(self, work: Callable[..., None], device: str = "cpu"):
        self.work, self.device = work, torch.device(device)

    def launch(self, kind: Kind, packed: np.ndarray, lr_scale: float, ema_decay: float) -> None:
        """Take a step."""
        self.work(kind, *split(to_device(join(packed, lr_scale, ema_decay), self.device)))


class Recorded:
    """In place of captured.Graphs: launches the first step of each kind, records the second, and repeats that."""

    def __init__(self, work: Callable[..., None]):
        self.work = work
        self.launched: set[Kind] = set()
        self.recordings: dict[Kind, tuple[Tensor, Recording]] = {}

    def launch(self, kind: Kind, packed: np.ndarray, lr_scale: float, ema_decay: float) -> None:
        """Take a step."""
        inputs = torch.from_numpy(join(packed, lr_scale, ema_decay))
        if kind not in self.launched:
            self.launched.add(kind)
            self.work(kind, *split(inputs))
        elif kind not in self.recordings:
            self.recordings[kind] = inputs, Recording()
            with self.recordings[kind][1]:
                self.work(kind, *split(inputs))
        else:
            memory, recording = self.recordings[kind]
            memory.copy_(inputs)
            recording.replay()


def tensors(nested: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
