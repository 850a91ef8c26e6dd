"""The commands of `tinyimnet`, one module each: arguments, output, and calls into the packages that do the work.

Each has `add_arguments(parser)` and `main(args)`, and its docstring is its help; tinyimnet/cli.py lists them. The
commands about jobs are in tinyimnet/launch. `trained_run` is shared by three of them.
"""
