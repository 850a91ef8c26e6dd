#!/usr/bin/env python3
"""Count what a training step launches on a GPU, and measure what the host does besides; needs no GPU.

    python benchmarks/step.py                          # every configuration in configs/
    python benchmarks/step.py tiny1m tiny1m_sprint
    python benchmarks/step.py --compiled tiny1m        # with train.compile as well; a minute each

Kernels: every operation that torch dispatches in a step of bf16 at 64 px counts as one kernel, a view as none, the
forward pass of BatchNorm as three, its backward pass and that of a convolution as two. The number does not depend on
the batch size. Operations on lists of tensors (`_foreach_*`) count as one, though CUDA splits long lists.
With train.compile, the network's kernels are the calls in the code that Inductor writes for a CPU. For a GPU it may
split a large reduction, such as one of BatchNorm, in two.

Host: microseconds of one core for everything in a step of 1,024 images that dispatches nothing, minimum of many calls.
The draw is apart, because a thread of its own makes it during the step before.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from throughput import make_trainer

from tinyimnet import config_cli, errors
from tinyimnet.config import Config
from tinyimnet.console import print_table
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.model.network import compile_in_place
from tinyimnet.training.trainer import Trainer

ROUNDS = 300
COUNTED, BATCH = 16, 1024  # images of the step whose kernels are counted, and of the one whose host time is measured
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty", "empty_like",
    "empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
SEVERAL = {"native_batch_norm": 3, "_native_batch_norm_legit": 3, "native_batch_norm_backward": 2,
           "convolution_backward": 2}  # fmt: skip
CALLS = re.compile(r"\b(?:cpp_fused_\w+|extern_kernels\.(\w+)|torch\.ops\.aten\.(\w+)\.default)\(")


class Kernels(TorchDispatchMode):
    """Counts kernels by the name of the operation that launches them."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.__name__.partition(".")[0]
        if name not in VIEWS:
            self.of[name] += SEVERAL.get(name, 1)
        return operation(*args, **kwargs or {})


def main(argv: list[str]) -> int:
    """Print a table of all configurations and one of the host's work."""
    torch.set_num_threads(1)
    names = [name for name in argv if name != "--compiled"]
    names = names or sorted(file.stem for file in config_cli.CONFIGS.glob("*.yaml"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            kernels = count(trainer(name, COUNTED, Path(folder)))
            most = ", ".join(f"{operation} {number}" for operation, number in kernels.of.most_common(6))
            rows.append((name, f"{kernels.of.total():>5,} kernels: {most}"))
            if "--compiled" in argv:
                rows.append(("", f"{kernels.of.total() - saved(name, Path(folder)):>5,} with train.compile"))
        print_table("kernels of a step", rows)
        made = trainer(names[0], BATCH, Path(folder))
        times = {part: microseconds(work) for part, work in host(made).items()}
    times["sum without the draw"] = sum(list(times.values())[1:])
    print_table(f"host, {names[0]}", [(part, f"{time:7.1f} us") for part, time in times.items()])
    return 0


def trainer(name: str, batch: int, folder: Path) -> Trainer:
    """The trainer of a configuration, without what a benchmark cannot have: its teachers and initial weights."""
    config: Config = config_cli.load([f"--config={name}", f"--train.global_batch_size={batch}"])
    config = replace(
        config,
        augment=replace(config.augment, start_resolution=64, end_resolution=64),
        train=replace(config.train, device_batch_size=0, init_from="", precision="bf16"),
    )
    made = make_trainer(config, process_group.start(config.train, Rendezvous()), folder)
    torch.set_num_threads(1)
    return made


def count(made: Trainer) -> Kernels:
    """Count the kernels of a step that mixes images if the configuration does; the first step allocates."""
    made.train_step()
    with Kernels() as kernels:
        made.train_step()
    return kernels


def saved(name: str, folder: Path) -> int:
    """Kernels of a network's forward and backward pass that torch.compile saves."""
    from torch._inductor.utils import run_and_get_code  # seconds, which counting alone need not wait

    made = trainer(name, COUNTED, folder)
    images = torch.randn(COUNTED, 3, 64, 64).to(memory_format=torch.channels_last)

    def pass_through(network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with made.accelerator.autocast():
            output = network(images)
        output.sum().backward()

    with Kernels() as kernels:
        pass_through(made.model)
    compile_in_place(made.bare)
    _, modules = run_and_get_code(pass_through, made.bare)
    calls = [call for module in modules for call in CALLS.finditer(module.partition("def call(")[2])]
    return kernels.of.total() - sum(SEVERAL.get(call[1] or call[2], 1) for call in calls)


def host(made: Trainer) -> dict[str, Callable[[], object]]:
    """The parts of a step that dispatch nothing, as the loop calls them; the first is the draw."""
    made.state.step = 1  # not a step that is logged
    rows, step = made.micro_batches[0], made.step
    drawn = made.batches.draw(step)
    take = made.train_step
    for weight in take.weights:
        weight.grad = torch.zeros_like(weight)
    return {
        "draw, in its thread": lambda: made.batches._draw(step),
        "pack the draw": lambda: drawn.packed(rows),
        "learning rate": lambda: take.lr_scale(step),
        "seed of DropPath": lambda: take._seed_drop_path(rows),
        "weights exchanged for casts": lambda: made.model._place(made.model._weights),
        "list of gradients": lambda: [weight.grad for weight in take.weights if weight.grad is not None],
        "stop requests": lambda: made.stop.agreed(made.accelerator),
        "sign of life": lambda: made.alive("training"),
        "nothing to log or save": made.at_boundary,
    }


def microseconds(work: Callable[[], object]) -> float:
    """Shortest time of a call."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * min(times)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
