"""The command tree: what `tinyimnet` prints, and that the commands in the documentation exist."""

import re
import shlex
from pathlib import Path

import pytest

from helpers.program import REPO
from tinyimnet import cli, errors
from tinyimnet.commands import completion
from tinyimnet.config import KEYS

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]


def documented_commands() -> list[tuple[str, list[str]]]:
    """The arguments of each `tinyimnet ...` in a code block or in a table cell, by page."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = "\n".join(re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.M | re.S))
        inline = re.findall(r"`(tinyimnet [^`]+)`", text)
        for line in [*blocks.splitlines(), *inline]:
            if match := re.match(r"(?:.* -m |.*&& )?tinyimnet (.*)", line):
                found.append((page.name, shlex.split(match[1].partition(" > ")[0], comments=True)))
    return found


def test_no_arguments_print_the_help(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([])
    output = capsys.readouterr().out
    assert output.startswith("usage: tinyimnet COMMAND [options]\n\nTrain a CNN")
    assert all(re.search(rf"^    {name} ", output, re.M) for name in cli.COMMANDS)
    assert max(map(len, output.splitlines())) <= 80


def test_version(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert re.fullmatch(r"tinyimnet \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "train"])
def test_the_help_of_a_command_opens_with_examples(name: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    usage, purpose, examples, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.count("\n") == 0 and purpose.endswith(".")
    assert f"tinyimnet {name}" in examples


def test_the_help_of_the_training_opens_with_examples(capsys) -> None:
    assert errors.run(lambda argv: cli.command_module("train").train.main(argv, "tinyimnet train"), ["--help"]) == 0
    output = capsys.readouterr().out
    assert output.index("python -m tinyimnet train --config smoke") < 300
    assert all(f"--{key} " in output for key in KEYS)


def test_documented_commands_exist_with_their_options() -> None:
    commands = documented_commands()
    assert len(commands) > 20
    parser = cli.make_parser(cli.COMMANDS, completion.train_options())
    for page, arguments in commands:
        if arguments[0] not in ("COMMAND", "--version", "--help"):
            known = [a for a in arguments if a != "..."]
            assert set(known[1:2]) <= {"--help"} or parser.parse_known_args(known)[1] == [], (page, arguments)


def test_completion_knows_commands_options_and_keys(capsys) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "soft-labels" in script and "--follow" in script and "--optim.lr" in script


def test_a_command_that_takes_no_keys_refuses_them() -> None:
    with pytest.raises(errors.UserError, match=r"unrecognized arguments: --optim.lr=1; see `tinyimnet report --help`"):
        cli.main(["report", str(Path("x")), "--optim.lr=1"])
