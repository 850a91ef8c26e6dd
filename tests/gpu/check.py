#!/usr/bin/env python3
"""Check on a GPU, within nine minutes, what CPUs cannot show, and measure its speed.

    make test-gpu
    python tests/gpu/check.py --out runs/gpu_check             # the same with any Python that has the packages
    python tests/gpu/check.py --out runs/gpu_check speed       # only some sections

Needs torch for CUDA, numpy, accelerate, PyYAML, rich, safetensors, Pillow and matplotlib, and no network. Without a GPU
the sections run small networks on the CPU and name what they skip.

Each section is a process with a time limit; what it found before the limit counts. Every result is printed at once and
saved in gpu_check.json and gpu_check.md. The exit code is 1 if a claim does not hold or a section fails.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(REPO / folder) for folder in ("", "tests", "tests/gpu", "benchmarks")]

from result import Result, failed, markdown

# Module and seconds of each section, the most important ones first; together at most nine minutes.
SECTIONS = {
    "machine": ("state", 20),
    "waits": ("state", 45),
    "bits": ("state", 80),
    "snapshot": ("state", 20),
    "memory": ("state", 35),
    "exchange": ("group", 20),
    "stops": ("group", 70),
    "speed": ("speed", 75),
    "cudnn": ("speed", 40),
    "graph": ("speed", 35),
    "compiled": ("speed", 100),
    "several": ("group", 200),  # on a machine with several GPUs; otherwise it ends at once
}


def main(argv: list[str]) -> int:
    """Run sections and save what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results and the output of each section")
    parser.add_argument("--slack", type=float, default=1.0, help="factor on the time limits, for a slow machine")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process of one section
    args = parser.parse_args(argv)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)} is not one of the sections {', '.join(SECTIONS)}")
    if args.inside:
        return run_inside(*args.sections, args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    found: list[Result] = []
    for name in args.sections or SECTIONS:
        found += run(name, args.out, SECTIONS[name][1] * args.slack)
        (args.out / "gpu_check.json").write_text(json.dumps([vars(result) for result in found], indent=1), "utf-8")
        (args.out / "gpu_check.md").write_text(markdown(found), "utf-8")
    bad = [result for result in found if result.outcome == "failed"]
    print(f"\n{len(bad)} of {len(found)} results failed; all are in {args.out / 'gpu_check.md'}")
    return 1 if bad else 0


def run(name: str, out: Path, limit: float) -> list[Result]:
    """Run a section in a process of its own for at most `limit` seconds, and print its results as they come."""
    print(f"\n{name}", flush=True)
    command = [sys.executable, __file__, "--inside", name, "--out", str(out)]
    started, log = time.monotonic(), out / f"{name}.log"
    found: list[Result] = []
    with log.open("w") as errors:
        # A session of its own, to end what the section itself has started as well.
        section = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        timer = threading.Timer(limit, os.killpg, [section.pid, signal.SIGKILL])
        timer.start()
        for line in section.stdout or []:
            found.append(Result(**json.loads(line)))
            print(found[-1], flush=True)
        code = section.wait()
        timer.cancel()
    if code:
        took = time.monotonic() - started
        what = f"cut off after {limit:.0f} s" if code == -signal.SIGKILL and took >= limit else f"exit code {code}"
        found.append(failed(f"the section ends ({what}); see {log.name}"))
        print(found[-1], flush=True)
    return [Result(**{**vars(result), "section": name}) for result in found]


def run_inside(name: str, out: Path) -> int:
    """Run a section in this process: its results as lines of JSON on stdout, all other output on stderr."""
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)
        os.environ["WANDB_MODE"] = "disabled"
        section = getattr(importlib.import_module(SECTIONS[name][0]), name)
        for result in section(out.absolute() / name):
            print(json.dumps(vars(result)), file=results, flush=True)
        sys.stdout.flush()
        os._exit(0)  # without the shutdown of CUDA and of process groups, which is not checked here


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
