"""Sums over ranks that are the same on any network: added element by element, in rank order.

An all-reduce leaves the order to the library. NCCL chooses between rings, trees and NVLink's switch by the connections
that it finds between GPUs, and documents the switch as "not deterministic between different calls" (NVIDIA/nccl issue
1497). With gloo the order depends on the position of a value in its bucket. A run resumed on other nodes would end with
different weights. Here collective operations only move data.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# all_gather_into_tensor is the name up to torch 2.12, and deprecated since.
all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def of_all_ranks(tensor: Tensor) -> Tensor:
    """A tensor (n,) of each rank as rows (ranks, n), on each of them; every process calls it."""
    if not dist.is_initialized():
        return tensor[None]
    rows = tensor.new_empty(dist.get_world_size() * len(tensor))
    all_gather(rows, tensor)
    return rows.view(-1, len(tensor))


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor (n,) over all ranks, on each of them; every process calls it."""
    return _add_up(of_all_ranks(tensor))


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a tensor (n,) over all ranks, on each of them; every process calls it."""
    return sum_over_ranks(tensor) / (dist.get_world_size() if dist.is_initialized() else 1)


def most_gathered(device: torch.device) -> int:
    """Largest number of ranks whose gradients each rank gathers whole, instead of a part of them.

    Between GPUs, whose networks are fast, the second collective and its wait cost more than the traffic.
    """
    return 16 if device.type == "cuda" else 2  # at two ranks the traffic is the same


def average_gradients(most_gathered: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook: the mean of a bucket of gradients over all ranks.

    Up to `most_gathered` ranks each gathers and adds the gradients of all, in one collective operation. Beyond, each
    sums one part of the bucket and sends it to the others, so the traffic is that of a ring: twice the bucket, whatever
    the number of ranks. The sums are the same bit for bit.
    """
    gradients, world_size = bucket.buffer(), dist.get_world_size()
    if world_size <= most_gathered:
        gradients.copy_(mean_over_ranks(gradients))
    else:
        part = -(-len(gradients) // world_size)
        padded = F.pad(gradients, (0, part * world_size - len(gradients)))
        parts = torch.empty_like(padded)
        dist.all_to_all_single(parts, padded)
        all_gather(padded, _add_up(parts.view(world_size, part)) / world_size)
        gradients.copy_(padded[: len(gradients)])
    on_gpu: list[int | str | torch.device] = [gradients.device] if gradients.is_cuda else []
    done: torch.futures.Future[Tensor] = torch.futures.Future(devices=on_gpu)
    done.set_result(gradients)
    return done


def _add_up(rows: Tensor) -> Tensor:
    """Sum row by row; `rows.sum(0)` may choose a different order for a different shape."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
