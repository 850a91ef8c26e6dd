"""One trial of a W&B sweep in a run folder of its own, which an agent starts: the command of a sweep's YAML.

command: [python, -m, launch.trial, --config, configs/tiny1m.yaml, "${args}"]

The trial is written down, so that the job that began it can go on with it after a requeue (slurm/sweep.sbatch):

python -m launch.trial --again FILE
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from tinyimnet import errors
from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically

REPO = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> int:
    """Become train.py for this trial."""
    if argv[:1] == ["--again"]:
        train(json.loads(Path(argv[1]).read_text()))
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if not sweep or not run:
        raise UserError(
            "WANDB_SWEEP_ID or WANDB_RUN_ID is not set: `wandb agent` starts trials, not a person."
        )
    run_dir = Path(os.environ.get("RUNS_ROOT", "runs"), f"sweep-{sweep}", run).absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    # The run of the agent, also in a life that no agent starts.
    write_atomically(run_dir / "wandb_run.json", json.dumps({"id": run}).encode())
    trial = {"run_dir": str(run_dir), "sweep": sweep, "run": run, "arguments": argv}
    if file := os.environ.get("SWEEP_TRIAL"):
        write_atomically(Path(file), json.dumps(trial).encode())
    train(trial)


def train(trial: dict) -> NoReturn:
    """Replace this process by the training."""
    os.environ |= {"WANDB_SWEEP_ID": trial["sweep"], "WANDB_RUN_ID": trial["run"]}
    command = [sys.executable, str(REPO / "train.py"), *trial["arguments"], f"--run.dir={trial['run_dir']}"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))
