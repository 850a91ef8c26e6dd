"""A small disk for the run folders of tests/chaos."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 60 MB, mounted before a cluster starts, so that its nodes see it."""
    folder = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--recursive", "--lazy", folder], check=True)
