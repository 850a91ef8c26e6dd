"""An output that does not fit on the disk leaves the older file whole, no other file, one sentence and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.program import REPO

OUTPUTS = {
    "predict": ("predict {run} --out {out}/sub.csv", "sub.csv"),
    "evaluate": ("evaluate {run} --out {out}", "confusion.csv"),
    "evaluate, another table": ("evaluate {run} --out {out}", "per_class.csv"),
    "report": ("report {run} --out {out}/a.html", "a.html"),
    "inspect": ("inspect --data.root={data} --out {out}/a.png", "a.png"),
    "export": ("export {run} --format torch --out {out}/a.pt2", "a.pt2"),
    "soft-labels": ("soft-labels {run} --out {out}/a.safetensors", "a.safetensors"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_leaves_the_older_output_whole(name: str, finished_run, tiny_data, tmp_path: Path) -> None:
    arguments, file = OUTPUTS[name]
    old = "of an earlier run\n" * 10
    (tmp_path / file).write_text(old, encoding="utf-8")
    done = limited(arguments.format(run=finished_run, data=tiny_data, out=tmp_path).split())
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[-1].startswith(f"error: --out {tmp_path}")
    assert "(File too large)" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / file).read_text(encoding="utf-8") == old
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def limited(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the program that cannot write more than 1 KiB to a file."""
    command = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", sys.executable, "-m", "tinyimnet", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize("redirection", ["| cat", "> {0}/whole", ">> {0}/whole"])
def test_predictions_can_go_to_the_output(name: str, redirection: str, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").write_text("before\n", encoding="utf-8")
    script = f'"$@" {redirection.format(tmp_path)}'
    command = [sys.executable, "-m", "tinyimnet", "predict", str(finished_run), "--out", name]
    done = subprocess.run(["bash", "-c", script, "bash", *command], cwd=REPO, capture_output=True, encoding="utf-8")
    lines = (done.stdout or (tmp_path / "whole").read_text(encoding="utf-8")).splitlines()
    assert done.returncode == 0, done.stderr
    assert (lines[0] == "before") == (">>" in redirection)
    rows = lines[lines.index("filename,label") :]
    assert len(rows) == 1 + 200 + 1 and rows[-1].startswith("200 predictions of ")
