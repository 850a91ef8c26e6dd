"""Sums over ranks that are the same on any network: added up in the order of the ranks, element by element.

An all-reduce leaves the order to its library. NCCL chooses between rings, trees and NVLink's switch by what it finds
between the GPUs, and says of the switch "not deterministic between different calls" (NVIDIA/nccl issue 1497); with
gloo it depends on where in a bucket a value lies. A run that goes on on other nodes would end with other weights. Here
collective operations only move data.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a small tensor (n,) over all ranks, on each of them; every process calls it."""
    if not dist.is_initialized():
        return tensor
    of_all_ranks = tensor.new_empty(dist.get_world_size() * len(tensor))
    dist.all_gather_single(of_all_ranks, tensor)
    return _add_up(of_all_ranks.view(-1, len(tensor)))


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a small tensor (n,) over all ranks, on each of them; every process calls it."""
    return sum_over_ranks(tensor) / (dist.get_world_size() if dist.is_initialized() else 1)


def average_gradients(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: the mean of a bucket of gradients over all ranks.

    Each rank adds up one part of it, so that as much is sent as for a ring: the bucket twice, whatever the number of ranks.
    """
    gradients, world_size = bucket.buffer(), dist.get_world_size()
    part = -(-len(gradients) // world_size)
    padded = F.pad(gradients, (0, part * world_size - len(gradients)))
    of_all_ranks = torch.empty_like(padded)
    dist.all_to_all_single(of_all_ranks, padded)
    dist.all_gather_single(padded, _add_up(of_all_ranks.view(world_size, part)) / world_size)
    gradients.copy_(padded[: len(gradients)])
    on_gpu: list[int | str | torch.device] = [gradients.device] if gradients.is_cuda else []
    done: torch.futures.Future[Tensor] = torch.futures.Future(devices=on_gpu)
    done.set_result(gradients)
    return done


def _add_up(rows: Tensor) -> Tensor:
    """Row after row: `rows.sum(0)` may choose another order for another shape."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
