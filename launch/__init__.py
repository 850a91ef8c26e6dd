"""An alias of tinyimnet/launch: `python -m launch.submit` is `tinyimnet submit`."""

from tinyimnet.launch import __path__ as __path__
