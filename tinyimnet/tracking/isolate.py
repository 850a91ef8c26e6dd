"""Run a module with the libraries before the user's files: python isolate.py MODULE [ARGUMENT ...].

Python looks for modules first in the working folder (`python -m`) and in PYTHONPATH. A wandb.py or queue.py there would
replace the library. `python -P` (3.11) leaves PYTHONPATH in place, and `python -I` drops all of it.
"""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def libraries_first() -> None:
    """Move the working folder and the checkout to the end of sys.path."""
    local = {os.path.realpath(os.curdir), ROOT}
    sys.path.sort(key=lambda entry: os.path.realpath(entry) in local)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this way."""
    return [sys.executable, os.path.realpath(__file__), module, *arguments]


def main() -> None:
    """Run the module that sys.argv names."""
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != HERE]
    libraries_first()
    sys.path.insert(0, ROOT)
    import tinyimnet  # noqa: F401  (this copy of it, even if another one is installed)

    del sys.path[0]
    import runpy

    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
