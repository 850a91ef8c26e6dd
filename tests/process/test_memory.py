"""Memory that tensors free stays with the process; the estimate for a GPU covers what a step really takes."""

import resource
import statistics
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from helpers.program import REPO
from helpers.trainings import SERVER, at_step, run_to_end
from tinyimnet import config_cli
from tinyimnet.commands.trained_run import load_network
from tinyimnet.config import TrainConfig
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.evaluation.inference import autocast
from tinyimnet.model.network import build_model
from tinyimnet.training import memory


def evaluating() -> None:
    load_network(REPO / "results" / "tiny1m_sprint.safetensors")


def training() -> None:
    process_group.start(TrainConfig(precision="fp32"), Rendezvous(environ={}))


def faults() -> float:
    """Median page faults for a tensor of 64 MiB; new memory costs 16,384 of 4 KiB or 32 of 2 MiB.

    The heap grows up to five times before it has room for all that is freed.
    """
    counts = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**24)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts[10:])


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
    given_back, kept = answers.get(timeout=120)
    process.join()
    assert kept < 20 < given_back


# ---- the estimate of the memory on a GPU ----------------------------------------------------------------------------

INVERTED = "tiny1m --model.block=inverted --model.expansion=3 --model.activation=silu"


def peak_of_a_step(network: torch.nn.Module, images: int, precision: str) -> int:
    """Most bytes of tensors that exist at once in a training step."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        batch = torch.randn(images, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        with autocast(batch.device, precision):
            logits = network.train()(batch)
        logits.float().square().sum().backward()
        network.zero_grad()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def estimate_and_peak(config: str, precision: str, answers) -> None:
    torch.set_num_threads(1)
    network = build_model(config_cli.load(["--run.dir=x", *f"--config={config}".split()]).model, 200)
    saved = memory.saved_per_image(network, 64, precision)
    small, large = (peak_of_a_step(network, images, precision) for images in (4, 8))
    answers.put((saved, memory.TEMPORARY * saved + memory.BATCH, (large - small) / 4))


@pytest.mark.long
@pytest.mark.parametrize("config", ["tiny1m", "baseline", INVERTED, "tiny1m_sprint"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_takes_what_is_saved_for_it_and_no_more_than_the_estimate(config: str, precision: str) -> None:
    answers = SERVER.Queue()
    process = SERVER.Process(target=estimate_and_peak, args=(config, precision, answers))
    process.start()
    saved, estimate, peak = answers.get(timeout=120)
    process.join()
    assert 0.9 * saved < peak < estimate < 1.3 * peak


def a_gpu_of_1_gb() -> None:
    memory.free_gpu_memory = lambda: 10**9


def a_gpu_of_80_gb_that_runs_out() -> None:
    def run_out() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 GiB.")

    memory.free_gpu_memory = lambda: 80 * 10**9
    at_step(5, run_out)


def test_a_batch_that_does_not_fit_is_refused_on_every_rank_before_the_run(arguments, tmp_path: Path) -> None:
    codes = run_to_end(arguments(), tmp_path / "log", processes=2, before=a_gpu_of_1_gb)
    assert codes == [2, 2]
    assert "train.global_batch_size is 32, so a step of 16 images needs" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_ends_the_run_with_a_sentence(arguments, tmp_path: Path) -> None:
    assert run_to_end(arguments(), tmp_path / "log", before=a_gpu_of_80_gb_that_runs_out) == [2]
    sentence = "the GPU ran out of memory with micro-batches of 32 images; use --train.device_batch_size 16 for"
    assert sentence in (tmp_path / "run" / "ERROR").read_text()
    log = (tmp_path / "log").read_text()
    assert "a step needs about " in log and f"error (rank 0): {sentence}" in log and "Traceback" not in log
