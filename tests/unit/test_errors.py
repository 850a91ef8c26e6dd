"""How a program ends: a sentence and code 2 for a user error, a traceback for a bug, a log line for a lost process."""

import json
from pathlib import Path

import pytest

from tinyimnet import errors
from tinyimnet.errors import LostProcess, UserError


def ends_with(error: Exception):
    """Return a program that raises this error."""

    def main(_argv: list[str]) -> int:
        raise error

    return main


def test_a_user_error_is_one_sentence(capsys) -> None:
    assert errors.run(ends_with(UserError("optim.lr is 0.")), []) == errors.USER_ERROR == 2
    assert capsys.readouterr().err == "error: optim.lr is 0.\n"


def test_debug_adds_the_traceback_and_is_not_passed_to_the_program(capsys) -> None:
    seen = []

    def main(argv: list[str]) -> int:
        seen.extend(argv)
        raise UserError("optim.lr is 0.")

    assert errors.run(main, ["--optim.lr=0", "--debug"]) == 2
    assert seen == ["--optim.lr=0"]
    assert "Traceback" in (error := capsys.readouterr().err) and "UserError: optim.lr is 0." in error


@pytest.mark.parametrize(
    "every_rank, printed", [(False, ""), (True, "error (rank 3): no GPU.\n")], ids=["of all", "of this one"]
)
def test_an_error_known_to_all_ranks_is_printed_by_rank_0_alone(every_rank, printed, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert errors.run(ends_with(UserError("no GPU.", every_rank=every_rank)), []) == 2
    assert capsys.readouterr().err == printed


def test_under_srun_a_rank_is_known_before_rank_is_set(capsys, caplog, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    errors.run(ends_with(UserError("no GPU.", every_rank=True)), [])
    errors.run(ends_with(ValueError("a bug")), [])
    assert capsys.readouterr().err == "error (rank 3): no GPU.\n" and "rank 3 failed" in caplog.text


@pytest.mark.parametrize(
    "error, said", [(ValueError("a bug"), "rank 0 failed"), (LostProcess("rank 1 is gone"), "rank 1 is gone")]
)
def test_a_bug_and_a_lost_process_exit_with_1(error, said, caplog) -> None:
    assert errors.run(ends_with(error), []) == 1
    assert said in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, ValueError)


@pytest.mark.parametrize(
    "error, message", [(UserError("lr is 0."), "error: lr is 0."), (ValueError("a bug"), "ValueError: a bug")]
)
def test_an_error_is_left_for_the_report_of_torchrun(error, message, tmp_path, monkeypatch) -> None:
    """process/test_launchers.py reads a real report."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    errors.run(ends_with(error), [])
    assert json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]["py_callstack"] == message


def test_the_exit_code_of_the_program_is_kept() -> None:
    assert [errors.run(lambda _argv, code=code: code, []) for code in (0, 1, 130)] == [0, 1, 130]


def test_an_error_message_fits_on_one_line() -> None:
    assert errors.one_line(ValueError("two\n  lines")) == "two lines"
    assert errors.one_line(KeyError()) == "KeyError"
    assert len(errors.one_line(ValueError("x" * 999))) == 200


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    expected = r"--out a.png cannot be written \(No space left on device\); choose another file."
    with pytest.raises(UserError, match=expected), errors.writing(Path("a.png")):
        raise OSError(28, "No space left on device")
