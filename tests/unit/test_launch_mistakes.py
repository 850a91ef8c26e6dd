"""What the tools of launch/ have in common: a mistake is one sentence and exit code 2."""

import pytest

from helpers.run_folders import finished
from launch import cancel, logs, seeds, status
from tinyimnet import errors

MISTAKES = {
    ("status", "no/such"): "no/such is no run folder and holds none",
    ("status", "--interval=0"): "--interval is 0 and must be between 1 and 86400 seconds",
    (
        "status",
        "--interval=soon",
    ): "argument --interval: invalid float value: 'soon'; see `python -m launch.status",
    ("status", "--wat"): "unrecognized arguments: --wat; see `python -m launch.status --help`",
    ("cancel",): "the following arguments are required: RUN; see `python -m launch.cancel --help`",
    ("cancel", "no/such"): "no/such is no run folder: a run has config.yaml or job.json in it",
    ("logs", "no/such"): "no/such is no run folder: a run has",
    ("logs", "RUN", "--lines=-1"): "--lines is -1 and must be 0 or more",
    ("logs", "RUN"): "has no logs yet; --follow waits for them",
    ("seeds", "RUN"): "nothing to sum up: a (not finished)",
    ("seeds", "DONE", "--out=/dev/null/x.md"): "--out /dev/null/x.md cannot be written",
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.items(), ids=map(" ".join, MISTAKES))
def test_a_mistake_is_a_sentence_and_exit_code_2(arguments, sentence, slurm, make_run, capsys) -> None:
    paths = {"RUN": str(make_run("a")), "DONE": str(finished(make_run, "b", 50.0, seed=0))}
    tool = {"status": status, "cancel": cancel, "logs": logs, "seeds": seeds}[arguments[0]]
    assert errors.run(tool.main, [paths.get(argument, argument) for argument in arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sentence in error
