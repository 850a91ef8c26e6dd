"""Client processes for W&B tests, with settings that make them fast."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG = 120  # seconds after which a test gives up; a loaded machine has needed over 30 for what takes 8 s
# Upload rows every second instead of every 15; for values below 1 the client uses its default.
QUICK = "wandb.Settings(x_file_stream_transmit_interval=1, console='off')"


def start_client(folder: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python script in a folder; os, sys, time and wandb are already imported."""
    code = "import os, sys, time, wandb\n" + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_client(folder: Path, script: str, *arguments: object, exit_code: int = 0) -> str:
    """Run a script to its end; return its output."""
    return end(start_client(folder, script, *arguments), exit_code)


def end(client: subprocess.Popen[str], exit_code: int = 0) -> str:
    """Wait for a client to exit; return its output."""
    output, _ = client.communicate(timeout=HANG)
    assert client.returncode == exit_code, output
    return output


def wait_until(condition: Callable[[], Any], seconds: float = HANG) -> Any:
    """Wait until `condition` returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"condition not met within {seconds} s"
        time.sleep(0.05)
    return found


def child_of(parent: int, name: str) -> int:
    """Process id of a child whose name contains `name`; 0 if there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if int(fields[2].split()[1]) == parent and name in fields[0]:
            return int(entry.name)
    return 0
