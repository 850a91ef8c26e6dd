"""Send runs to Slurm with submitit: one job, or an array over seeds and a grid.

tinyimnet submit --config configs/tiny1m.yaml --nodes 2 --gpus-per-node 8 --timeout 240
tinyimnet submit --config configs/tiny1m.yaml --seeds 0-4 --grid optim.lr=0.1,0.2 model.drop_path=0,0.1
tinyimnet submit --config configs/smoke.yaml --cluster local --profile configs/cluster/cpu.yaml
tinyimnet submit --dry-run ...                # print the sbatch script, submit nothing

--profile sets the shape of a job. Source slurm/site.env first: it sets account, modules and paths of the cluster. All
other options are train.py's. Submit from a git checkout: its tracked files are copied into the run folder, so later
edits do not affect pending, running or requeued jobs.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit

from tinyimnet import cli, config_cli, errors
from tinyimnet import config as configuration
from tinyimnet.config import Config
from tinyimnet.config_file import read_mapping
from tinyimnet.console import command
from tinyimnet.data.dataset import is_prepared, not_prepared
from tinyimnet.errors import UserError
from tinyimnet.files import ROOT, write_atomically
from tinyimnet.launch import grid, submission
from tinyimnet.launch.job import TrainJob
from tinyimnet.launch.successors import overridden
from tinyimnet.run.attempt import find_run
from tinyimnet.tracking.mode import Mode, of_settings_files, strictest


@dataclass(frozen=True)
class Profile:
    """Shape of a job: keys of the YAML file given with --profile."""

    nodes: int = 1
    """Nodes per job."""
    gpus_per_node: int = 0
    """GPUs per node, with one process each."""
    tasks_per_node: int = 1
    """Processes per node if it has no GPUs."""
    cpus_per_task: int = 1
    """CPUs per process."""
    timeout: int = 240
    """Time limit of one attempt, in minutes."""
    signal_delay: int = 120
    """Seconds before the time limit at which Slurm signals the job."""
    parallel: int = 8
    """Array jobs that run at the same time."""
    sbatch: dict[str, Any] | None = None
    """Other options of sbatch, such as {partition: gpu, mem: 64G}."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", type=Path, default=config_cli.DEFAULT_CONFIG, help="configuration, as for train.py")
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm",
                        help="local: run on this machine; debug: run in this process")  # fmt: skip
    parser.add_argument("--profile", type=Path, default=config_cli.CONFIGS / "cluster" / "gpu.yaml",
                        help="YAML file with the shape of a job (default: configs/cluster/gpu.yaml)")  # fmt: skip
    parser.add_argument("--nodes", type=int, help="nodes per job")
    parser.add_argument("--gpus-per-node", type=int, help="GPUs per node, with one process each")
    parser.add_argument("--timeout", type=int, metavar="MINUTES", help="time limit of one attempt")
    parser.add_argument("--seeds", help="0-4 or 0,7,9: one run per seed")
    parser.add_argument("--grid", nargs="+", default=[], metavar="KEY=V,V", help="one run per combination of values")
    parser.add_argument("--parallel", type=int, help="array jobs that run at the same time")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch script, submit nothing")


def main(args: argparse.Namespace) -> int:
    """Submit the runs; with --cluster local or debug, wait until they end."""
    profile = read_profile(args)
    runs = expand(args, args.options)
    folder = submission.folder_of(runs)
    files = [folder / f"{Path(config.run.dir).name}.yaml" for config in runs]
    if args.dry_run:
        if args.cluster != "slurm":
            raise UserError("--dry-run prints an sbatch script and requires --cluster slurm.")
        for part in submission.arrays(len(runs), profile.parallel):
            print(sbatch_script(make_executor(args.cluster, profile, files[part]), len(files[part])))
        return 0
    own_root = config_cli.overrides("data.root", [*args.options, *(f"--{axis}" for axis in args.grid)])
    for config in runs:
        find_run(config)  # fail now, not when the job starts
        if own_root and not is_prepared(Path(config.data.root)):
            raise not_prepared(Path(config.data.root), config.data.source)
    with submission.new_folder(folder):
        executor = make_executor(args.cluster, profile, files)
        snapshot(ROOT, folder / "code")
        trainings = [make_job(*pair) for pair in zip(runs, files, strict=True)]
        if args.cluster == "slurm":
            for name in overridden(sbatch_script(executor, len(runs))):
                os.environ.pop(name, None)
            parts = submission.arrays(len(runs), profile.parallel)
            # An executor each, because the index of an element in its array chooses its configuration.
            executors = [make_executor(args.cluster, profile, files[part]) for part in parts]
            jobs: Iterable[submitit.Job] = submission.send(
                [(each, trainings[part]) for each, part in zip(executors, parts, strict=True)]
            )
        else:
            jobs = submission.start_here(executor, trainings, profile.parallel)
    if names := untracked(ROOT):
        print(f"warning: not in the copy of the code, because git does not track them: {names}", file=sys.stderr)
    for job, config in zip(jobs, runs, strict=True):
        submission.record(config, args.cluster, job)
    if args.cluster == "slurm":
        watch = command("status", configuration.runs_root()), command("logs", runs[0].run.dir, "--follow")
        print(f"watch: {'; '.join(watch)}")
    return 0


# ---- runs and code ------------------------------------------------------------------------------------------


def read_profile(args: argparse.Namespace) -> Profile:
    """The profile, with overrides from the command line.

    Raises:
        UserError: the file cannot be read, or has an unknown key or an invalid value.
    """
    try:
        tree = read_mapping(args.profile, "--profile", "nodes: 2")
        given = {key: getattr(args, key) for key in ("nodes", "gpus_per_node", "timeout", "parallel")}
        profile = Profile(**{**tree, **{key: value for key, value in given.items() if value is not None}})
    except TypeError as error:
        known = ", ".join(Profile.__dataclass_fields__)
        raise UserError(f"--profile {args.profile} cannot be used ({error}); valid keys are {known}.") from None
    for key, least in {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1, "timeout": 1,
                       "signal_delay": 1, "parallel": 1}.items():  # fmt: skip
        value = getattr(profile, key)
        if type(value) is not int or value < least:
            raise UserError(
                f"{key} is {value!r} and must be an integer of at least {least} (--profile {args.profile})."
            )
    return profile


def expand(args: argparse.Namespace, overrides: list[str]) -> list[Config]:
    """The configuration of each run: one run per combination of grid values and seeds, each in its own folder.

    Paths are absolute because the jobs run in a copy of the code.

    Raises:
        UserError: --seeds, --grid or a configuration is invalid.
    """
    runs = []
    for point in grid.points(args.grid, args.seeds):
        chosen = [f"--{key}={value}" for key, value in point]
        arguments = ["--config", str(args.config), *overrides, *chosen]
        config = config_cli.load(arguments, prog="tinyimnet submit")
        run = replace(config.run, dir=_absolute(config.run.dir) + grid.suffix(point))
        root, soft_labels = _absolute(config.data.root), _absolute(config.data.soft_labels)
        data = replace(config.data, root=root, soft_labels=soft_labels)
        train = replace(config.train, init_from=_absolute(config.train.init_from))
        # wandb's settings file in this folder is not in the copy of the code.
        tracking = replace(config.tracking, wandb=strictest(Mode(config.tracking.wandb), of_settings_files()).name)
        runs.append(replace(config, run=run, data=data, train=train, tracking=tracking))
    return runs


def make_job(config: Config, file: Path) -> TrainJob:
    """A job for this configuration, saved to `file` because the files that it was read from may change."""
    write_atomically(file, configuration.dump(config).encode())
    return TrainJob(["--config", str(file)])


def _absolute(path: str) -> str:
    return path and str(Path(path).absolute())


def snapshot(repo: Path, target: Path) -> None:
    """Copy the tracked files of the working tree, and save commit and changes as COMMIT and UNCOMMITTED.diff.

    Raises:
        UserError: `repo` is not a git checkout.
    """
    if not (repo / ".git").exists():
        raise UserError(f"{repo} is not a git checkout, but submit copies its tracked files; run it from a clone.")
    try:
        files = _git(repo, "ls-files", "-z").split("\0")
        commit, diff = _git(repo, "rev-parse", "HEAD"), _git(repo, "diff", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        told = " ".join(str(getattr(error, "stderr", None) or error).split())  # of a foreign owner: the way out
        raise UserError(
            f"git cannot list the files of {repo} ({told}); correct this, or use slurm/train.sbatch."
        ) from None
    for name in filter(None, files):
        if (repo / name).is_file():  # skip files whose deletion is not committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / name, target / name)
    write_atomically(target / "COMMIT", commit)
    write_atomically(target / "UNCOMMITTED.diff", diff)


def untracked(repo: Path) -> str:
    """Python files that a snapshot leaves out, comma-separated; the first ten if there are more."""
    names = _git(repo, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py").split("\0")[:-1]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _git(repo: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=repo, capture_output=True, check=True)
    return os.fsdecode(done.stdout)  # paths, and the text of a diff in whatever encoding


# ---- submitit -----------------------------------------------------------------------------------------------


def make_executor(cluster: str, profile: Profile, files: list[Path]) -> submitit.AutoExecutor:
    """An executor whose jobs run in the folder `code` next to their configurations and are requeued as in train.sbatch.

    Args:
        cluster: slurm, local or debug.
        profile: shape of a job.
        files: configuration file of each job, in submission order.
    """
    if cluster == "slurm" and not shutil.which("sbatch"):
        raise UserError("--cluster is slurm but sbatch is not on PATH; submit on a login node, or use --cluster local.")
    if cluster != "slurm" and profile.nodes > 1:
        raise UserError(f"nodes is {profile.nodes} and must be 1 with --cluster {cluster}.")
    folder = files[0].parent.absolute()
    # In the batch script: the Python of the container, if slurm/site.env has one.
    executor = submitit.AutoExecutor(
        folder=folder / "%j", cluster=cluster, slurm_python='"${container[@]}" "$python_of_task"'
    )
    tasks = profile.gpus_per_node or profile.tasks_per_node
    code, site_env = folder / "code", shlex.quote(str(ROOT / "slurm" / "site.env"))
    setup = [f"cd {shlex.quote(str(code))}", f"site_env={site_env}", f"submitted=({shlex.quote(str(folder))})",
             f"python={shlex.quote(sys.executable)} python_of_task=$python configs=({shlex.join(map(str, files))})",
             'verdict() { exec "$python" -m tinyimnet.launch.requeue "$1" "${submitted[@]}" -- '
             '--config "${configs[${SLURM_ARRAY_TASK_ID:-0}]}"; }',
             'fail() { echo "error: $*" >&2; verdict 2; }',
             "source slurm/setup_job.sh",
             'check_python "$python"',
             "[[ -z $CONTAINER ]] || python_of_task=python",
             # A trap, because the last line of submitit's script is its srun.
             "trap 'verdict $?' EXIT"]  # fmt: skip
    executor.update_parameters(
        name="tinyimnet",
        nodes=profile.nodes,
        tasks_per_node=tasks,
        gpus_per_node=profile.gpus_per_node or None,
        cpus_per_task=profile.cpus_per_task,
        timeout_min=profile.timeout,
        local_setup=setup[:1],
        slurm_setup=setup,
        stderr_to_stdout=True,
        slurm_signal_delay_s=profile.signal_delay,
        slurm_array_parallelism=profile.parallel,
        # srun does not inherit --cpus-per-task from sbatch (Slurm 22.05, 23.02). A failed process ends the job.
        slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={profile.cpus_per_task}"],
        slurm_additional_parameters={"requeue": True, **(profile.sbatch or {})},
    )
    if cluster == "slurm":
        # submitit sets --wckey=submitit, which clusters with wckeys reject.
        executor._executor.update_parameters(wckey=None)
    return executor


def sbatch_script(executor: submitit.AutoExecutor, jobs: int) -> str:
    """The script that submitit would submit with sbatch."""
    inner = executor._executor
    assert isinstance(inner, submitit.SlurmExecutor)
    if jobs > 1:
        inner.parameters["map_count"] = jobs
    script = inner._make_submission_file_text(inner._submitit_command_str, "dry-run")
    inner.parameters.pop("map_count", None)  # submit_array rejects it
    return script


if __name__ == "__main__":
    sys.exit(errors.run(cli.main, ["submit", *sys.argv[1:]]))
