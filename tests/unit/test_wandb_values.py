"""WANDB_* variables and settings files with which wandb would record nothing, or send to another server."""

import os
from pathlib import Path

import pytest

from tinyimnet.errors import UserError
from tinyimnet.tracking.start_check import check_environment, check_settings_files

INVALID = {
    "WANDB_INIT_TIMEOUT": ("abc", "nan", "inf", "0", "-3"),
    "WANDB_BASE_URL": ("localhost:8080", "ftp://x", "https://wandb.ai"),
    "WANDB_HTTP_TIMEOUT": ("abc",),
    "WANDB_RESUME": ("perhaps",),
    "WANDB_FORK_FROM": ("x?_step=1",),
    "WANDB_PROJECT": ("a/b",),
    "WANDB_TAGS": ("x" * 65, "a,,b"),
    "WANDB_X_STATS_SAMPLING_INTERVAL": ("0",),
}
SECRET = {
    "WANDB_API_KEY": " secret",
    "WANDB_HTTP_PROXY": "user:secret@proxy:3128",
    "WANDB_X_EXTRA_HTTP_HEADERS": "secret",
    "WANDB_BASE_URL": "ftp://user:secret@host",
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INVALID.items() for value in values])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_value_with_which_wandb_fails_is_named(mode: str, name: str, value: str) -> None:
    with pytest.raises(UserError) as refused:
        check_environment({"WANDB_SILENT": "true", name: value}, mode)
    assert str(refused.value).startswith(f"{name} is {value!r} and is not valid for wandb (")


@pytest.mark.parametrize(("name", "value"), SECRET.items())
def test_a_secret_is_not_printed(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is not valid for wandb") as refused:
        check_environment({name: value}, "online")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_usual_values_are_accepted(mode: str) -> None:
    usual = {"INIT_TIMEOUT": "60", "TAGS": "a,b", "SILENT": "true", "RUN_ID": "x", "DIR": "/tmp", "RESUME": "must",
             "BASE_URL": "http://localhost:8080", "API_KEY": "k" * 40, "SWEEP_ID": "s", "UNKNOWN": "?"}  # fmt: skip
    check_environment({f"WANDB_{name}": value for name, value in usual.items()}, mode)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("base_url = http://localhost:8080", False),
        ("entity = team", False),
        ("ignore_globs = *.pt,*.csv", False),
        ("base_url = localhost:8080", True),
        ("disabled = false", True),
        ("bas_url = http://x", True),
        ("entity = a%b", True),
    ],
)
def test_a_settings_file_that_wandb_would_ignore_is_refused(
    line: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb prints the error and goes on without the file, to the default server."""
    monkeypatch.setattr(os, "environ", {"WANDB_CONFIG_DIR": str(tmp_path)})
    (tmp_path / "settings").write_text(f"[default]\n{line}\n")
    if not refused:
        check_settings_files()
        return
    with pytest.raises(UserError, match="settings file"):
        check_settings_files()
