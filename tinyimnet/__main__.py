"""python -m tinyimnet COMMAND."""

import sys

from tinyimnet import cli, errors

if __name__ == "__main__":
    sys.exit(errors.run(cli.main, sys.argv[1:]))
