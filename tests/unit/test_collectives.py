"""Collective operations and bytes of a training step, counted on one rank of a group whose other ranks do not exist."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from tinyimnet.config import ModelConfig
from tinyimnet.distributed import process_group, reduction
from tinyimnet.model.network import build_model, compile_in_place, count_parameters

pytestmark = pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")
MODEL = ModelConfig(block="basic", width="auto")


@pytest.fixture
def group() -> Iterator[Callable[[int], None]]:
    """Return a function that makes this process rank 0 of a group."""

    def join(world_size: int) -> None:
        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())

    yield join
    dist.destroy_process_group()


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count calls and received bytes of the operations that reduction.py uses."""
    found: Counter[str] = Counter()

    def counting(name: str, operation: Callable[..., None]) -> Callable[..., None]:
        def call(received: Tensor, sent: Tensor) -> None:
            found.update({name: 1, "bytes": received.nbytes})
            operation(received, sent)

        return call

    monkeypatch.setattr(reduction, "all_gather", counting("all_gather", reduction.all_gather))
    monkeypatch.setattr(dist, "all_to_all_single", counting("all_to_all", dist.all_to_all_single))
    return found


def wrapped(bare: nn.Module, most_gathered: int) -> nn.Module:
    """Return a network as the trainer wraps it."""
    model = DistributedDataParallel(bare, **process_group.DDP)
    model.register_comm_hook(most_gathered, reduction.average_gradients)
    return model


def step(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.randn(2, 3, 16, 16)).sum().backward()


def test_a_compiled_network_is_one_graph_under_ddp(group, monkeypatch) -> None:
    group(2)
    counter, bare, compile_it = CompileCounter(), build_model(MODEL, 200), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model, **_: compile_it(model, backend=counter, dynamic=False))
    compile_in_place(bare)
    model = wrapped(bare, most_gathered=2)
    step(model)
    step(model)
    assert counter.frame_count == 1


@pytest.mark.parametrize("world_size, whole", [(2, 2), (2, 16), (16, 16), (16, 2), (512, 16)])
def test_a_step_exchanges_all_gradients_at_once(world_size: int, whole: int, group, monkeypatch) -> None:
    group(world_size)
    model = wrapped(build_model(MODEL, 200), whole)
    step(model)  # DDP rearranges its buckets after the first step
    found = counted(monkeypatch)
    step(model)
    gradient = 4 * count_parameters(model)
    if world_size <= whole:
        assert found == {"all_gather": 1, "bytes": world_size * gradient}
    else:
        assert found == {"all_to_all": 1, "all_gather": 1, "bytes": pytest.approx(2 * gradient, rel=0.01)}
