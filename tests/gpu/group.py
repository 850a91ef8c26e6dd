"""Sections about processes: the exchange of gradients, stops and kills of one process, several GPUs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.program import REPO, TORCHRUN, small_run
from helpers.trainings import assert_same_end, last_step, metrics
from result import Result, claim, measured, skipped
from subject import GPU, NETWORKS
from tinyimnet import config_cli
from tinyimnet.data.synthetic import prepare_synthetic
from tinyimnet.distributed import process_group, reduction
from tinyimnet.model.network import build_model

IMAGES = {} if GPU else {"train_per_class": 2, "val_per_class": 1, "test_per_class": 1}
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
# Two ranks on this node, as slurm/train.sbatch starts them; --overlap, because the check may itself run in a step.
SRUN = """
source slurm/setup_job.sh
exec srun --overlap --nodes=1 --nodelist="$SLURMD_NODENAME" --ntasks=2 --ntasks-per-node=2 \\
  --cpus-per-task=$((SLURM_CPUS_ON_NODE / 2)) --kill-on-bad-exit=1 "$@"
"""


def exchange(_: Path) -> Iterator[Result]:
    """The exchange of gradients runs on the library of the GPU, even if alone: NCCL refuses two ranks on one GPU."""
    dist.init_process_group("nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    calls: list[int] = []

    def hook(most_gathered: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        calls.append(bucket.buffer().numel())
        return reduction.average_gradients(most_gathered, bucket)

    gradients = []
    for most_gathered in (1, 0):  # one collective operation, two of them
        torch.manual_seed(0)
        network = build_model(config_cli.load([f"--config={NETWORKS[0]}"]).model, 200).to(DEVICE)
        wrapped = torch.nn.parallel.DistributedDataParallel(
            network, device_ids=[0] if GPU else None, **process_group.DDP
        )
        wrapped.register_comm_hook(most_gathered, hook)
        images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        for _ in range(3):
            network.zero_grad()
            torch.manual_seed(1)  # of DropPath
            wrapped(images).square().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]).cpu())
        del wrapped
    weights = sum(weight.numel() for weight in network.parameters())
    yield claim("all gradients are exchanged at once", calls == 6 * [weights], elements=weights, calls=len(calls))
    yield claim("both ways of the exchange give the same bits", torch.equal(*gradients))
    message = [{"a": torch.ones(3)}]
    dist.broadcast_object_list(message, device=DEVICE)
    started = time.perf_counter()
    dist.destroy_process_group()
    took = time.perf_counter() - started
    yield claim("the group ends within 5 s", took < 5, seconds=took)


def stops(out: Path) -> Iterator[Result]:
    """A run that is stopped, killed and resumed ends with the bits of one that is not."""
    shutil.rmtree(out, ignore_errors=True)
    prepare_synthetic(out / "data", **IMAGES)
    whole, parts = out / "whole", out / "parts"
    started = time.perf_counter()
    code = train([sys.executable], out, whole).wait()
    took = time.perf_counter() - started
    if code:
        yield claim("train.py trains the embedded data", False, because=tail(whole))
        return
    numbers = {key: metrics(whole)[-1][key] for key in ("val/ema_top1", "trainer/global_step")}
    yield measured("train.py on the embedded data", seconds=took, **numbers)
    steps = int(numbers["trainer/global_step"])

    process = train([sys.executable], out, parts)
    until_step(parts, steps // 3, process)
    process.terminate()
    started = time.perf_counter()
    code = process.wait()
    took = time.perf_counter() - started
    yield claim("SIGTERM ends a run within 10 s, saved", code == 0 and took < 10 and last_step(parts) > 0, seconds=took)

    process = train([sys.executable], out, parts)
    until_step(parts, 2 * steps // 3, process)
    process.kill()
    process.wait()
    train([sys.executable], out, parts).wait()
    yield same_end("stopped, killed and resumed ends with the same bits", whole, parts)


def several(out: Path) -> Iterator[Result]:
    """Two ranks: sums in rank order, a rank killed under torchrun and srun, no process on another one's GPU."""
    if GPU and torch.cuda.device_count() < 2:
        yield skipped("sums in rank order, a killed rank, contexts on other GPUs", "this machine has a single GPU")
        return
    shutil.rmtree(out, ignore_errors=True)
    sums = subprocess.run([*TORCHRUN, "--nproc_per_node=2", str(Path(__file__).with_name("sums.py"))],
                          capture_output=True, text=True, check=False)  # fmt: skip
    yield claim("both ways of the exchange add in rank order, bit for bit", sums.returncode == 0,
                **({"because": sums.stderr[-300:]} if sums.returncode else {}))  # fmt: skip
    prepare_synthetic(out / "data", **IMAGES)
    whole, torchrun = out / "whole", [*TORCHRUN, "--nproc_per_node=2"]
    process = train(torchrun, out, whole)
    until_step(whole, 20, process)
    yield contexts()
    process.wait()
    yield from one_killed("torchrun", torchrun, out, whole)
    if shutil.which("srun") and "SLURMD_NODENAME" in os.environ and int(os.environ.get("SLURM_CPUS_ON_NODE", 0)) > 1:
        yield from one_killed("srun", ["bash", "-ec", SRUN, "srun", sys.executable], out, whole)
    else:
        yield skipped("a killed rank under srun", "no srun, or not on a node of a Slurm job with two CPUs")


def one_killed(name: str, launcher: list[str], out: Path, whole: Path) -> Iterator[Result]:
    """A run of two ranks of which one is killed ends, and resumes to the bits of one that was not disturbed."""
    parts, steps = out / name, metrics(whole)[-1]["trainer/global_step"]
    process = train(launcher, out, parts)
    until_step(parts, steps // 2, process)
    os.kill(pid_of_rank(1, parts), signal.SIGKILL)
    started = time.perf_counter()
    code = process.wait()
    took = time.perf_counter() - started
    yield claim(f"a killed rank ends the others within 40 s: {name}", code != 0 and took < 40, seconds=took)
    train(launcher, out, parts).wait()
    yield same_end(f"two ranks, one killed, and resumed end with the same bits: {name}", whole, parts)


def contexts() -> Result:
    """Whether each process uses one GPU only; a context on another one takes half a gigabyte there."""
    what = "each process is on one GPU only"
    if not GPU:
        return skipped(what)
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    listed = Counter(subprocess.run(query, capture_output=True, text=True, check=False).stdout.split())
    if not listed:
        return skipped(what, "nvidia-smi lists no process, as in most containers")
    return claim(what, max(listed.values()) == 1, processes=len(listed))


# ---- runs -------------------------------------------------------------------------------------------------------


def train(launcher: list[str], out: Path, run: Path) -> subprocess.Popen:
    """Start train.py on the embedded data: 1,500 steps of configs/smoke.yaml on a GPU, a smaller run on a CPU."""
    if GPU:
        options = ["--config=smoke", f"--data.root={out / 'data'}", f"--run.dir={run}", "--train.precision=bf16"]
        options += ["--run.log_every=10", "--run.save_every=100"]
    else:
        options = small_run(out / "data", run, train__epochs=6, run__save_every=10)
    with run.with_suffix(".log").open("a") as log:
        return subprocess.Popen([*launcher, "train.py", *options], cwd=REPO, stdout=log, stderr=log)


def until_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has logged a step; the section's limit ends a wait for ever."""
    while not ((run / "metrics.jsonl").exists() and any(row["trainer/global_step"] >= step for row in metrics(run))):
        if process.poll() is not None:
            raise RuntimeError(f"the run ended before step {step}: {tail(run)}")
        time.sleep(0.05)


def pid_of_rank(rank: int, run: Path) -> int:
    """The process of a rank in the newest attempt of a run on this machine."""
    return int(re.findall(r"is process (\d+) on ", (run / "logs" / f"rank_{rank}.log").read_text("utf-8"))[-1])


def same_end(what: str, whole: Path, parts: Path) -> Result:
    """Whether two runs ended with the same weights, optimizer, counters and metrics, bit for bit."""
    try:
        assert_same_end(whole, parts)
    except (AssertionError, OSError) as error:
        return claim(what, False, because=f"{type(error).__name__}: {str(error)[:200]} {tail(parts)}")
    return claim(what, True)


def tail(run: Path) -> str:
    """The end of a run's output."""
    return run.with_suffix(".log").read_text("utf-8")[-300:]
