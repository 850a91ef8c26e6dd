"""Processes that import wandb find the library, whatever files the user has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.program import REPO
from tinyimnet.tracking import isolate


def test_a_file_named_wandb_in_the_checkout_does_not_replace_the_library(tmp_path: Path) -> None:
    """The checkout is usually the working folder."""
    shutil.copytree(REPO / "tinyimnet", tmp_path / "tinyimnet")
    (tmp_path / "wandb.py").write_text("raise SystemExit('the module of the user')")
    (tmp_path / "tinyimnet" / "probe.py").write_text(
        "import json, tinyimnet, wandb; print(json.dumps([wandb.__file__, tinyimnet.__file__]))"
    )
    command = [sys.executable, str(tmp_path / "tinyimnet/tracking/isolate.py"), "tinyimnet.probe"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    library, ours = json.loads(done.stdout)
    assert "site-packages" in library and ours == str(tmp_path / "tinyimnet" / "__init__.py")


def test_isolation_keeps_the_arguments_and_other_folders_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "probe.py").write_text("import sys; print(sys.argv[1:], __name__)")
    done = subprocess.run(isolate.command("probe", "a", "b c"), cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")})  # fmt: skip
    assert done.stdout == "['a', 'b c'] __main__\n", done.stderr
