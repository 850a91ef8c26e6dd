"""Who decides whether W&B gets anything: tracking.wandb, WANDB_MODE, WANDB_DISABLED, wandb's settings files."""

import os
from pathlib import Path

import pytest

from tinyimnet.config import TrackingConfig
from tinyimnet.errors import UserError
from tinyimnet.launch import submit
from tinyimnet.tracking.mode import Mode, wandb_mode


@pytest.fixture(autouse=True)
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell without W&B variables, in an empty folder with an empty home."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def settings(file: Path, text: str) -> Path:
    """Write a settings file as `wandb offline` does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"[default]\n{text}\n", encoding="utf-8")
    return file


PLACES = {
    "home": ("home/.config/wandb/settings", {}),
    "WANDB_CONFIG_DIR": ("conf/settings", {"WANDB_CONFIG_DIR": "conf"}),
    "WANDB_CONFIG_DIR below home": ("home/conf/settings", {"WANDB_CONFIG_DIR": "~/conf"}),
    "working folder": ("work/wandb/settings", {}),
    "hidden folder": ("work/.wandb/settings", {}),
    "WANDB_DIR": ("logs/wandb/settings", {"WANDB_DIR": "logs"}),
}


@pytest.mark.parametrize("mode", ["offline", "disabled"])
@pytest.mark.parametrize("place", PLACES)
def test_the_mode_of_every_settings_file_is_followed(place: str, mode: str, shell: Path, monkeypatch) -> None:
    name, variables = PLACES[place]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value if value.startswith("~") else str(shell / value))
    file = settings(shell / name, f"mode = {mode}")
    assert wandb_mode(TrackingConfig()) == Mode(mode, str(file))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "variable", "file", "mode"),
    [
        ("online", None, None, "online"),
        ("online", None, "offline", "offline"),
        ("offline", None, "online", "offline"),
        ("offline", None, "disabled", "disabled"),
        ("online", "online", "disabled", "online"),
        ("offline", "online", None, "online"),
        ("online", "dryrun", None, "offline"),
        ("online", "", "disabled", "disabled"),
        ("disabled", "online", "online", "disabled"),
    ],
)
def test_a_variable_beats_files_and_nothing_beats_a_disabled_config(
    ours, variable: str | None, file: str | None, mode: str, shell: Path, monkeypatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    if file:
        settings(shell / "work/wandb/settings", f"mode = {file}")
    assert wandb_mode(TrackingConfig(wandb=ours)).name == mode


def test_the_working_folder_overrides_the_home(shell: Path) -> None:
    settings(shell / "home/.config/wandb/settings", "mode = disabled")
    settings(shell / "work/wandb/settings", "mode = online")  # what `wandb enabled` writes
    assert wandb_mode(TrackingConfig()).name == "online"


@pytest.mark.parametrize(
    ("value", "mode"), [("true", "disabled"), ("1", "disabled"), ("false", "online"), ("", "online")]
)
def test_wandb_disabled_is_followed_as_transformers_does(value: str, mode: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", value)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode(TrackingConfig()).name == mode


def test_the_older_key_disabled_is_followed(shell: Path) -> None:
    settings(shell / "work/wandb/settings", "disabled = true")
    assert wandb_mode(TrackingConfig()).name == "disabled"


@pytest.mark.parametrize("text", ["mode = offlin", "mode = offline\nmode = online", "[default", "\udcff"])
def test_a_settings_file_that_says_nothing_valid_is_refused(text: str, shell: Path) -> None:
    file = shell / "work/wandb/settings"
    settings(file, "").write_bytes(b"[default]\n" + text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=str(file)):
        wandb_mode(TrackingConfig())


def test_a_settings_file_that_cannot_be_read_means_offline(shell: Path) -> None:
    (shell / "work/wandb/settings").mkdir(parents=True)
    assert wandb_mode(TrackingConfig()).name == "offline"


def test_other_settings_change_nothing(shell: Path) -> None:
    settings(shell / "home/.config/wandb/settings", "base_url = http://a%20b")
    assert wandb_mode(TrackingConfig()) == Mode("online")


def test_a_submitted_run_keeps_the_mode_of_the_folder_it_was_sent_from(shell: Path) -> None:
    settings(shell / "work/wandb/settings", "mode = disabled")
    arguments = ["--config", str(submit.ROOT / "configs" / "smoke.yaml"), f"--run.dir={shell / 'run'}"]
    parser = submit.errors.Parser(prog="submit")
    submit.add_arguments(parser)
    [config] = submit.expand(*parser.parse_known_args(arguments))
    assert config.tracking.wandb == "disabled"
