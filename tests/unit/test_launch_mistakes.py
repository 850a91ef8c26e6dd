"""User errors of the tools in tinyimnet/launch are one sentence and exit code 2."""

import pytest

from helpers.run_folders import finished
from tinyimnet import cli, errors

MISTAKES = {
    ("status", "no/such"): "no/such does not exist",
    ("status", "--interval=0"): "--interval is 0 and must be between 1 and 86400 seconds",
    ("status", "--interval=soon"): "argument --interval: invalid float value: 'soon'; see `tinyimnet status --help`",
    ("status", "--wat"): "unrecognized arguments: --wat; see `tinyimnet status --help`",
    ("cancel",): "the following arguments are required: RUN; see `tinyimnet cancel --help`",
    ("cancel", "no/such"): "no/such does not exist",
    ("logs", "no/such"): "no/such does not exist",
    ("logs", "RUN", "--lines=-1"): "--lines is -1 and must be 0 or more",
    ("logs", "RUN"): "has no logs yet; --follow waits for them",
    ("seeds", "RUN"): "no runs to summarize: a (not finished)",
    ("seeds", "DONE", "--out=/dev/null/x.md"): "--out /dev/null/x.md cannot be written",
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.items(), ids=map(" ".join, MISTAKES))
def test_a_user_error_is_one_sentence_and_exit_code_2(arguments, sentence, slurm, make_run, capsys) -> None:
    paths = {"RUN": str(make_run("a")), "DONE": str(finished(make_run, "b", 50.0, seed=0))}
    assert errors.run(cli.main, [paths.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sentence in error
