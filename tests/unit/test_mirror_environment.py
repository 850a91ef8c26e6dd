"""What the mirror's process changes in its environment before it calls wandb."""

import os
from pathlib import Path

import pytest

from tinyimnet.tracking.wandb_mirror import prepare_environment


@pytest.mark.parametrize(("given", "left"), [("", None), ("offline", "offline")])
def test_an_empty_mode_is_none(given: str, left: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"WANDB_MODE": given})
    prepare_environment(tmp_path)
    assert os.environ.get("WANDB_MODE") == left


def test_the_token_of_slurm_is_hidden_and_the_job_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SLURM_JWT": "secret", "SLURM_JOB_ID": "7", "PATH": "/bin"})
    prepare_environment(tmp_path)
    assert "SLURM_JWT" not in os.environ
    assert (os.environ["SLURM_JOB_ID"], os.environ["PATH"]) == ("7", "/bin")


def test_files_of_wandb_go_to_the_run_folder_unless_a_place_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"WANDB_CACHE_DIR": "/scratch"})
    prepare_environment(tmp_path)
    assert os.environ == {"WANDB_CACHE_DIR": "/scratch", "WANDB_DATA_DIR": str(tmp_path / "wandb" / "data")}
