"""The event files of a run in TensorBoard itself, opened in Chromium."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.browser import chromium
from helpers.program import python
from helpers.wandb_server.clients import wait_until


@pytest.fixture
def address(finished_run: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a TensorBoard that shows the finished run."""
    done = python("-m", "tinyimnet", "tensorboard", str(finished_run), "--out", str(tmp_path / "events"))
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "events"), "--host=localhost"]
    with subprocess.Popen([*command, "--port=0"], stderr=subprocess.PIPE, text=True) as tensorboard:
        assert tensorboard.stderr
        yield next(found.group() for line in tensorboard.stderr if (found := re.search(r"http://\S+:\d+", line)))
        tensorboard.kill()


def test_tensorboard_shows_the_run_and_its_metrics_by_group(address: str, finished_run: Path, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.open(address, width=1400)

        def words() -> str:
            return browser.evaluate("document.body.innerText")

        wait_until(lambda: re.search(r"val\s*\d+ cards", words()))
        assert re.search(r"train\s*\d+ cards", words())
        assert finished_run.name in words().split()
