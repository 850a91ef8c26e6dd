"""The entry point: `tinyimnet COMMAND` or `python -m tinyimnet COMMAND`."""

import sys

from tinyimnet import cli, errors


def main() -> None:
    """Run the command of sys.argv and exit."""
    sys.exit(errors.run(cli.main, sys.argv[1:]))


if __name__ == "__main__":
    main()
