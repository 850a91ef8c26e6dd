"""Ask wandb, before a run starts, whether it accepts the environment and whose run WANDB_RUN_ID is.

python isolate.py tinyimnet.tracking.start_check RUN MODE PROJECT

In a process of its own because the training never imports wandb. It exits with code 2 after printing a user error.
"""

import configparser
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import wandb

from tinyimnet import errors
from tinyimnet.errors import UserError, one_line
from tinyimnet.tracking.environment import prepare_environment
from tinyimnet.tracking.identity import read_note
from tinyimnet.tracking.uploaded import on_server

SECRET = re.compile(r"KEY|TOKEN|HEADER|PROXY|://.*@")


def main(argv: list[str]) -> int:
    """Check the environment, the settings files and the id.

    Raises:
        UserError: wandb would fail, or the W&B run belongs to another folder.
    """
    run_dir, mode, project = Path(argv[0]), argv[1], argv[2]
    with tempfile.TemporaryDirectory() as scratch:
        prepare_environment(Path(scratch))
        check_environment(os.environ, mode)
        check_settings_files()
        id = os.environ.get("WANDB_RUN_ID")
        if id and mode == "online" and id != read_note(run_dir).get("id"):
            check_id(id, run_dir, project)
    return 0


def check_environment(environ: Mapping[str, str], mode: str) -> None:
    """Raise a UserError for the first WANDB_* variable with which wandb.init would fail."""
    for name, value in sorted(environ.items()):
        if name.startswith("WANDB_") and (problem := problem_of(partial(apply, name, value, mode))):
            shown = "" if SECRET.search(f"{name}={value}") else f" is {value!r} and"
            raise UserError(f"{name}{shown} is not valid for wandb ({problem}); correct it or unset it.")


def apply(name: str, value: str, mode: str) -> None:
    """Apply one variable to the settings of the mirror; raises what wandb.init would raise."""
    settings = wandb.Settings(mode=mode, resume="allow")  # type: ignore[arg-type]
    settings.update_from_env_vars({name: value})
    if name == "WANDB_INIT_TIMEOUT" and not 0 < float(value) < math.inf:
        raise ValueError("it has to be a positive number of seconds")


def check_settings_files() -> None:
    """Raise a UserError for a key that makes wandb ignore a settings file, and with it the address of the server."""
    settings = wandb.Settings()
    config = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    settings.settings_system = os.path.join(os.path.expanduser(config), "settings")
    try:
        files = settings.read_system_settings()
    except configparser.Error as error:
        raise UserError(f"wandb cannot read its settings files ({one_line(error)}); correct them.") from None
    for key, value in files.all().items():
        if key in ("anonymous", "settings_system", "root_dir"):  # which wandb itself skips
            continue
        given: Any = value.split(",") if key == "ignore_globs" else value
        if problem := problem_of(partial(wandb.Settings, **{key: given})):
            names = " or ".join(map(str, files.sources))
            raise UserError(f"{key} in wandb's settings file {names} is not valid ({problem}); correct or remove it.")


def check_id(id: str, run_dir: Path, project: str) -> None:
    """Raise a UserError if W&B run `id` belongs to another folder; nothing happens if the server does not answer."""
    wandb.setup(wandb.Settings(silent=True))
    try:
        found = on_server(None, project, id, rows=False)
    except Exception:  # the mirror asks again when it connects
        return
    found.check_owner(run_dir, id)


def problem_of(call: Callable[[], object]) -> str:
    """Why a call of wandb fails, in wandb's words; empty if it succeeds."""
    try:
        call()
        return ""
    except Exception as error:  # pydantic's ValidationError, wandb.errors.UsageError, ValueError, TypeError
        details = getattr(error, "errors", None)
        return str(details()[0]["msg"]) if callable(details) else one_line(error)


if __name__ == "__main__":
    exit_code = errors.run(main, sys.argv[1:])
    sys.stderr.flush()
    os._exit(exit_code)  # skips wandb's exit hooks, which can wait for a server
