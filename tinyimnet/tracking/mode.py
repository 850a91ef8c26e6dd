"""Whether a run is tracked on W&B: tracking.wandb, WANDB_MODE and wandb's settings files. Imports no wandb."""

import configparser
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tinyimnet.config import TrackingConfig
from tinyimnet.errors import UserError, one_line

Name = Literal["online", "offline", "disabled"]
MODES: tuple[Name, ...] = ("online", "offline", "disabled")  # each sends less than the one before
OLD_NAMES = {"run": "online", "dryrun": "offline"}
YES = ("1", "true", "yes", "on")


class Mode(NamedTuple):
    """A W&B mode.

    Attributes:
        name: online, offline or disabled.
        source: the variable or the file that set it; empty for tracking.wandb.
    """

    name: Name
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.source})" if self.source else self.name


def wandb_mode(config: TrackingConfig) -> Mode:
    """The mode of a run.

    tracking.wandb: disabled and WANDB_DISABLED always win. Otherwise WANDB_MODE decides if it is set, else
    tracking.wandb or the mode of wandb's settings files, whichever sends less.

    Raises:
        UserError: WANDB_MODE or a settings file has an invalid value.
    """
    ours = Mode(config.wandb)
    if ours.name == "disabled":
        return ours
    if os.environ.get("WANDB_DISABLED", "").lower() in YES:  # a variable of transformers, not of wandb
        return Mode("disabled", "WANDB_DISABLED")
    if given := os.environ.get("WANDB_MODE"):
        return Mode(_valid(given, "WANDB_MODE"), "WANDB_MODE")
    return strictest(ours, of_settings_files())


def strictest(*modes: Mode) -> Mode:
    """The mode that sends least, the first one of equals."""
    return max(modes, key=lambda mode: MODES.index(mode.name))


def of_settings_files() -> Mode:
    """The mode that `wandb offline`, `wandb disabled` or `wandb init --mode` wrote; online if there is none.

    Raises:
        UserError: a file has an invalid value.
    """
    found = Mode("online")
    for file in settings_files():
        try:
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # it may disable W&B, and offline loses nothing
            return Mode("offline", f"{file} cannot be read: {error.strerror}")
        except (ValueError, configparser.Error) as error:
            raise UserError(
                f"{file} is no settings file of wandb ({one_line(error)}); mend it, or set WANDB_MODE."
            ) from None
        settings = dict(parser["default"]) if parser.has_section("default") else {}
        if settings.get("disabled", "").lower() in YES:  # what `wandb off` wrote before 2020
            found = Mode("disabled", str(file))
        elif mode := settings.get("mode"):
            found = Mode(_valid(mode, f"mode in {file}"), str(file))
    return found


def settings_files() -> Iterator[Path]:
    """wandb's settings files; a later one overrides an earlier one.

    `wandb offline` writes to WANDB_DIR if it is set, where wandb.init itself does not look (wandb 0.31).
    """
    yield Path(os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")) / "settings"
    for place in (os.curdir, os.environ.get("WANDB_DIR")):
        if place:
            root = Path(os.path.expanduser(place)).absolute()
            yield root / (".wandb" if (root / ".wandb").exists() else "wandb") / "settings"


def _valid(name: str, source: str) -> Name:
    for mode in MODES:
        if mode == OLD_NAMES.get(name, name):
            return mode
    raise UserError(f"{source} is {name!r} and must be online, offline or disabled.")
