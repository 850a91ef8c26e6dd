"""slurm/site.env with anything in it: a job survives it, or ends with the line that failed."""

import re

import pytest

from helpers.slurm_cluster import ONE_RANK, TRAIN, environments, probe, slow_first_attempt

pytestmark = pytest.mark.usefixtures("nodes_are_up")

HARMLESS = {
    "options": "set -euo pipefail -f; shopt -s nullglob expand_aliases; IFS=,",
    "arguments and names": "set -- a b; options=x config=x job=x nodes=9 tasks=9 gpus=9",
    "another folder": "cd /",
    "its own traps": "trap 'exit 7' ERR EXIT; trap - USR1; trap '' TERM",
    "aliases": "shopt -s expand_aliases; alias srun=false exec=false source=false",
    "output": "echo loading; echo warning >&2",
    "redirections": "exec >/dev/null 2>&1",
    "a false test at the end": '[[ -z ${HOME:-} ]] && export HOME=/tmp',
    "a failure that is handled": "false || true; if false; then :; fi; (exit 3) || :",
    "an early return": "return",
}  # fmt: skip

FATAL = {
    "module() { return 1; }\n\nmodule load cuda/99\nexport A=1": "line 3 with exit code 1: module load cuda/99",
    "true\nsource /no/such/venv/bin/activate\ntrue": "line 2 with exit code 1: source /no/such/venv/bin/activate",
    "true\nexit 0": "line 2 with exit code 0: exit 0",
    "trap 'echo bye' EXIT\nexit 3": "line 2 with exit code 3: exit 3",
    "set -u\necho $NOT_SET\ntrue": "line 2 with exit code 1: echo $NOT_SET",
    "set -e\nleave() { exit 4; }\nleave": "line 2 with exit code 4: leave() { exit 4; }",
    "true\nreturn 5": "line 2 with exit code 5: return 5",
    "true\nif true": "syntax error",
    "CONTAINER='apptainer exec a.sif'": "must be an array: CONTAINER=(apptainer exec a.sif)",
}


def submit(cluster, folder, site_env: str) -> str:
    """Submit a job with this site.env whose ranks only save their environment, and return its id."""
    folder.mkdir()
    (folder / "site.env").write_text(f"export CAME_FROM=site.env\n{site_env}\n")
    slurm = ["--parsable", "--nodes=1", f"--output={folder}/log"]
    program = ["configs/smoke.yaml", f"--run.dir={folder}/run", "--run.max_attempts=9"]  # runs/smoke may be finished
    return cluster.run(
        "sbatch", *slurm, TRAIN, *program, site_env=str(folder / "site.env"), VIRTUAL_ENV=probe(folder)
    ).strip()


def test_a_job_survives_what_does_not_concern_it(cluster, tmp_path) -> None:
    jobs = {name: submit(cluster, tmp_path / name, text) for name, text in HARMLESS.items()}
    ends = {name: cluster.end(job) for name, job in jobs.items()}
    assert ends == dict.fromkeys(HARMLESS, "COMPLETED")
    for name, job in jobs.items():
        (rank,) = environments(tmp_path / name, job)
        assert (rank["CAME_FROM"], rank["PWD"]) == ("site.env", cluster.show(job)["WorkDir"]), name
        assert "stopped by the user; not requeued" in (tmp_path / name / "log").read_text(), name


def test_a_job_that_cannot_go_on_names_the_line(cluster, tmp_path) -> None:
    jobs = [submit(cluster, tmp_path / str(i), text) for i, text in enumerate(FATAL)]
    assert [(cluster.end(job), cluster.show(job)["ExitCode"]) for job in jobs] == [("FAILED", "2:0")] * len(FATAL)
    for i, said in enumerate(FATAL.values()):
        log = (tmp_path / str(i) / "log").read_text()
        line, _, rest = said.partition(" ")[2].partition(" ") if said.startswith("line") else ("", "", said)
        assert (f"site.env failed in line {int(line) + 1} {rest}" if line else rest) in log
        assert "ended with exit code 2; not requeued" in log


def test_a_python_that_could_not_requeue_the_job_is_refused_at_its_start(cluster, tmp_path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho Traceback\necho ImportError: no yaml\nexit 1\n")
    python.chmod(0o755)
    log, venv = tmp_path / "log", str(tmp_path / "venv")
    job = cluster.sbatch(*ONE_RANK, TRAIN, "configs/smoke.yaml", log=log, VIRTUAL_ENV=venv)
    assert (cluster.end(job), cluster.show(job)["ExitCode"]) == ("FAILED", "2:0")
    assert log.read_text().startswith("error: python cannot decide about a requeue (ImportError: no yaml); in ")
    assert len(log.read_text().splitlines()) == 1


def test_a_failure_in_a_later_attempt_costs_that_attempt_and_not_the_job(cluster, tiny_config, tmp_path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    (tmp_path / "site.env").write_text("[[ ${SLURM_RESTART_COUNT:-0} != 1 ]] || exit 1\n")
    job = cluster.sbatch(*ONE_RANK, TRAIN, tiny_config, f"--run.dir={run}", log=log,
                         site_env=str(tmp_path / "site.env"), PYTHONPATH=slow_first_attempt(tmp_path))  # fmt: skip
    cluster.until_step(run, 2, job)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(lambda: "attempt 3, nodes" in log.read_text(), 240, "the third attempt")
    assert re.search(r"exit code 2, newest checkpoint at step \d+; requeued as attempt 3", log.read_text())
