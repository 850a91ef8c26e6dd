"""Gradients and sums over ranks are added in rank order, wherever they are in the buckets."""

import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.trainings import SERVER, run_to_end, wait
from tinyimnet.distributed import reduction

WORLD_SIZE = 3


def in_order(pieces: list[torch.Tensor]) -> torch.Tensor:
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total / WORLD_SIZE


def rank_of_three(rank: int, store: Path, bucket_mb: float, most_gathered: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    model = DistributedDataParallel(deepcopy(alone), bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)
    model.register_comm_hook(most_gathered, reduction.average_gradients)
    torch.manual_seed(rank)
    for _ in range(3):  # DDP rebuilds the buckets after the first pass
        images = 10.0**rank * torch.randn(4, 7)
        for network in (alone, model):
            network.zero_grad()
            network(images).square().sum().backward()
        mine = [parameter.grad for parameter in alone.parameters()]
        gathered: list = [None] * WORLD_SIZE
        dist.all_gather_object(gathered, mine)
        for parameter, *of_ranks in zip(model.parameters(), *gathered, strict=True):
            assert torch.equal(parameter.grad, in_order(of_ranks))
    values = torch.tensor([0.1, 1e8, -1e8])[rank] * torch.ones(2)
    expected = in_order([torch.tensor([value] * 2) for value in (0.1, 1e8, -1e8)])
    assert torch.equal(reduction.mean_over_ranks(values), expected)


@pytest.mark.parametrize("most_gathered", [WORLD_SIZE, WORLD_SIZE - 1], ids=["gathered whole", "by parts"])
@pytest.mark.parametrize("bucket_mb", [25, 1e-4], ids=["one bucket", "several"])
def test_means_over_ranks_add_in_rank_order(bucket_mb: float, most_gathered: int, tmp_path: Path) -> None:
    options = tmp_path / "store", bucket_mb, most_gathered
    ranks = [SERVER.Process(target=rank_of_three, args=(rank, *options)) for rank in range(WORLD_SIZE)]
    for process in ranks:
        process.start()
    assert wait(ranks) == [0] * WORLD_SIZE


def deprecations_as_errors_where_accelerate_sees_nccl() -> None:
    PartialState.backend = property(lambda _: "nccl", lambda *_: None)  # type: ignore[assignment, method-assign]
    warnings.filterwarnings("error", category=FutureWarning, message=".*is deprecated")


def test_a_run_calls_no_deprecated_collective_operation(arguments, tmp_path: Path) -> None:
    """Accelerate chooses other operations for NCCL than for gloo."""
    prepared = deprecations_as_errors_where_accelerate_sees_nccl
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, before=prepared)
    assert codes == [0, 0], (tmp_path / "log").read_text()
