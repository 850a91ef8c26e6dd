#!/usr/bin/env python3
"""Check that gradients are added in rank order, bit for bit, whichever way they are exchanged.

torchrun --standalone --nproc_per_node=2 tests/gpu/sums.py
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tinyimnet.config import TrainConfig
from tinyimnet.distributed import process_group, reduction
from tinyimnet.distributed.rendezvous import Rendezvous

ELEMENTS = 999_999  # not a multiple of the number of ranks


def main() -> int:
    """Compare both ways with a sum on the host; returns 1 if one differs on this rank."""
    accelerator = process_group.start(TrainConfig(precision="fp32"), Rendezvous())
    ranks = range(dist.get_world_size())
    expected = gradient(0)
    for rank in ranks[1:]:
        expected += gradient(rank)
    expected /= len(ranks)
    for most_gathered in (len(ranks), 0):
        mine = gradient(accelerator.process_index).to(accelerator.device)
        reduction.average_gradients(most_gathered, SimpleNamespace(buffer=lambda mine=mine: mine)).wait()
        if not torch.equal(mine.cpu(), expected):
            print(f"rank {accelerator.process_index}, most_gathered {most_gathered}: other bits", file=sys.stderr)
            return 1
    process_group.close(accelerator)
    return 0


def gradient(rank: int) -> Tensor:
    """The gradient of a rank: numbers of many magnitudes, whose sum depends on its order."""
    numbers = torch.Generator().manual_seed(rank)
    return torch.randn(ELEMENTS, generator=numbers) * 10 ** torch.randn(ELEMENTS, generator=numbers)


if __name__ == "__main__":
    process_group.exit_process(main())
