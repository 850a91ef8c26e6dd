"""The commands of `python -m tinyimnet COMMAND`: arguments, what is printed, and calls of the packages that do the work.

A module for each command, with `add_arguments(parser)` and `main(args)`; tinyimnet/cli.py lists them; `trained_run`
is what three of them share. The training is tinyimnet/train.py, and jobs on a cluster are launch/.
"""
