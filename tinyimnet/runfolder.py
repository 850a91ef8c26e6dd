"""The run folder, which is the whole truth about a run: the same command starts it, resumes it or finds it finished.

config.yaml      resolved configuration          metrics.jsonl   one line for each logged step
checkpoints/     newest k and best                final.safetensors, curves.png, DONE   at the end
STOP             put there by a user or a job script: save and exit
REQUEUE          left there by a run that was stopped and can go on
"""

from dataclasses import asdict
from pathlib import Path

import yaml

from tinyimnet import config as configuration
from tinyimnet.config import Config
from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically


def find_run(config: Config) -> Path:
    """The absolute run folder, after a look that what it holds belongs to this configuration; writes nothing.

    A folder without a checkpoint has nothing to lose: a start that failed may be mended and repeated in it.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    run_dir = Path(config.run.dir).absolute()
    if is_done(run_dir) or any((run_dir / "checkpoints").glob("*.json")):
        changed = configuration.differences(read_config(run_dir), asdict(config))
        if changed:
            raise UserError(
                f"run.dir {config.run.dir} holds a run with another configuration ({'; '.join(changed)}); "
                "give those values again to resume it, or choose another --run.dir."
            )
    return run_dir


def open_run(run_dir: Path, config: Config) -> None:
    """Create the folder where it is missing and clear the markers of the last stop; call it on rank 0.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", configuration.dump(config).encode())
        (run_dir / "STOP").unlink(missing_ok=True)
        (run_dir / "REQUEUE").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"run.dir {config.run.dir} cannot be written ({error.strerror}); choose another."
        ) from None


def read_config(run_dir: Path) -> dict:
    """The configuration that a run was started with, as nested dictionaries."""
    file = run_dir / "config.yaml"
    try:
        tree = yaml.safe_load(file.read_text())
        if not isinstance(tree, dict):
            raise ValueError("not a mapping")
        return tree
    except FileNotFoundError:
        raise UserError(f"{run_dir} is not a run folder: it has no config.yaml.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is damaged ({reason}); restore it, or choose another --run.dir.") from None


def is_done(run_dir: Path) -> bool:
    """Whether the run reached its last step and exported its weights."""
    return (run_dir / "DONE").exists()


def mark(run_dir: Path, name: str, content: str = "") -> None:
    """Leave the marker DONE or REQUEUE."""
    write_atomically(run_dir / name, content.encode())
