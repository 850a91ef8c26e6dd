"""How the mirror process changes its environment before it calls wandb."""

import os
from pathlib import Path

import pytest

from tinyimnet.tracking.environment import prepare_environment


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_INIT_TIMEOUT", "WANDB_BASE_URL"])
@pytest.mark.parametrize(("given", "left"), [("", None), ("x", "x")])
def test_an_empty_variable_is_unset(
    given: str, left: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {name: given})
    prepare_environment(tmp_path)
    assert os.environ.get(name) == left


def test_the_slurm_token_is_hidden_but_the_job_id_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SLURM_JWT": "secret", "SLURM_JOB_ID": "7", "PATH": "/bin"})
    prepare_environment(tmp_path)
    assert "SLURM_JWT" not in os.environ
    assert (os.environ["SLURM_JOB_ID"], os.environ["PATH"]) == ("7", "/bin")


def test_wandb_files_go_to_the_run_folder_unless_set_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"WANDB_CACHE_DIR": "/scratch"})
    prepare_environment(tmp_path)
    assert os.environ == {"WANDB_CACHE_DIR": "/scratch", "WANDB_DATA_DIR": str(tmp_path / "wandb" / "data")}
