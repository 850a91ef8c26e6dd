"""Client processes of W&B tests, and the settings that make them quick."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Rows are sent every second, not every 15; below 1 the client takes its default.
QUICK = "wandb.Settings(x_file_stream_transmit_interval=1, console='off')"


def start_client(folder: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python script, which finds wandb imported, in a folder."""
    code = "import os, sys, time, wandb\n" + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_client(folder: Path, script: str, *arguments: object, exit_code: int = 0) -> str:
    """Run a script to its end; what it printed."""
    return end(start_client(folder, script, *arguments), exit_code)


def end(client: subprocess.Popen[str], exit_code: int = 0) -> str:
    """Wait for a client; what it printed."""
    output, _ = client.communicate(timeout=60)
    assert client.returncode == exit_code, output
    return output


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What `condition` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.05)
    return found


def child_of(parent: int, name: str) -> int:
    """Process id of a child with this name, 0 where there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if int(fields[2].split()[1]) == parent and name in fields[0]:
            return int(entry.name)
    return 0
