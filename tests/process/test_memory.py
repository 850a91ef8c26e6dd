"""Memory that tensors free stays with the process, so the kernel does not clear it again for the next operation."""

import resource
import statistics

import pytest
import torch

from helpers.program import REPO
from helpers.trainings import SERVER
from tinyimnet.commands.trained_run import load_network
from tinyimnet.config import TrainConfig
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous


def evaluating() -> None:
    load_network(REPO / "results" / "tiny1m_sprint.safetensors")


def training() -> None:
    process_group.start(TrainConfig(precision="fp32"), Rendezvous(environ={}))


def faults() -> float:
    """Median page faults for a tensor of 64 MiB; new memory costs 16,384 of 4 KiB or 32 of 2 MiB."""
    counts = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**24)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts)


def before_and_after(start, answers) -> None:
    given_back = faults()
    start()
    answers.put((given_back, faults()))


@pytest.mark.long
@pytest.mark.parametrize("start", [evaluating, training])
def test_memory_that_tensors_free_is_not_cleared_again(start) -> None:
    answers = SERVER.Queue()
    process = SERVER.Process(target=before_and_after, args=(start, answers))
    process.start()
    given_back, kept = answers.get(timeout=60)
    process.join()
    assert kept < 20 < given_back
