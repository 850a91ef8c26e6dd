"""A path means the same in an option, a YAML file and a variable; what a person named is printed as it is."""

import ast
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from helpers.program import REPO
from tinyimnet import cli, config_cli, console
from tinyimnet.config import PATHS, runs_root
from tinyimnet.errors import UserError
from tinyimnet.files import expanded, no_such

PACKAGE = sorted((REPO / "tinyimnet").rglob("*.py"))
ODD = "lr[low] [/red] :fire: [bold]x[/bold]"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    return tmp_path


WRITTEN = {
    "~/x": "HOME/x", "$HOME/x": "HOME/x", "${HOME}/x": "HOME/x", "$SCRATCH/$SCRATCH": "/scratch/me//scratch/me",
    "${UNSET_VARIABLE:-/tmp}/x": "/tmp/x", "a~b": "a~b", "x y": "x y",
}  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("key", PATHS)
def test_a_path_is_expanded_in_options_and_files(key: str, text: str, home: Path) -> None:
    expected = str(Path(WRITTEN[text].replace("HOME", str(home))))
    section, name = key.split(".")
    (home / "c.yaml").write_text(f"{section}: {{{name}: '{text}'}}\n")
    for arguments in ([f"--{key}={text}"], ["--config", "~/c.yaml"]):
        assert getattr(getattr(config_cli.load(arguments), section), name) == expected


@pytest.mark.parametrize("variable, key", [("DATA_ROOT", "data.root"), ("STAGE_TO", "data.stage"), ("RUNS_ROOT", "")])
def test_a_path_is_expanded_in_the_variables_of_a_site(variable: str, key: str, home: Path, monkeypatch) -> None:
    monkeypatch.setenv(variable, "~/x")
    section, _, name = key.partition(".")
    found = getattr(getattr(config_cli.load(["--config=tiny1m"]), section), name) if key else runs_root()
    assert str(found) == f"{home}/x"


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_path_argument_of_a_command_is_expanded(command: str, home: Path) -> None:
    parser = cli.make_parser([command])
    (sub,) = (action for action in parser._actions if action.dest == "command")
    for action in sub.choices[command]._actions:  # type: ignore[index, call-overload]
        if action.type is Path:
            assert sub.choices[command]._get_value(action, "~/x") == home / "x"  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("$UNSET_VARIABLE/x", "run.dir $UNSET_VARIABLE/x names the variable UNSET_VARIABLE, which is not set"),
        ("${UNSET_VARIABLE}", "names the variable UNSET_VARIABLE, which is not set"),
        ("~nobody-of-that-name/x", "names the home folder of a user who does not exist"),
        ("a\nb", r"run.dir 'a\nb' holds a control character"),
        ("a\0b", "holds a control character"),
    ],
)
def test_a_path_that_means_nothing_is_refused(text: str, sentence: str, home: Path) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        config_cli.load([f"--run.dir={text}"])
    assert not list(home.iterdir())


def test_a_missing_path_is_told_with_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "runs" / "smoke").mkdir(parents=True)
    assert (
        no_such(tmp_path / "runs/smok") == f"{tmp_path}/runs/smok does not exist; did you mean {tmp_path}/runs/smoke?"
    )
    assert no_such(tmp_path / "run/smoke/x").endswith(f"did you mean {tmp_path}/runs?")
    assert no_such(tmp_path / "zebra") == f"{tmp_path}/zebra does not exist."


def test_a_relative_path_stays_relative() -> None:
    assert expanded("runs/x") == Path("runs/x")
    assert not os.path.isabs(expanded("x"))


# ---- output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interactive", [False, True])
def test_names_are_printed_as_they_are(interactive: bool, capsys, monkeypatch) -> None:
    monkeypatch.setattr(console.console, "_force_terminal", interactive)
    console.console.print(f"run folder: {ODD}")
    console.print_table(ODD, [(ODD, "1"), ("b", "2")], (ODD, "n"))
    assert capsys.readouterr().out.count(ODD) == 4


def calls(names: tuple[str, ...]) -> list[tuple[str, ast.Call]]:
    """Calls of functions with these names in the package."""
    return [
        (f"{path.name}:{node.lineno}", node)
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    ]


def test_rich_reads_no_markup_and_no_emoji_anywhere() -> None:
    found = calls(("Console", "TextColumn"))
    assert len(found) >= 4
    for where, call in found:
        wanted = {"markup", "emoji"} if ast.unparse(call.func) == "Console" else {"markup"}
        off = {option.arg for option in call.keywords if ast.unparse(option.value) == "False"}
        assert wanted <= off, where
    assert not [where for where, call in calls(("from_markup", "render_markup")) if call]
    assert Console(markup=False, emoji=False).render_str(ODD).plain == ODD


def test_suggested_commands_are_made_by_command_which_quotes() -> None:
    """Text such as f"run `tinyimnet report {path}`" would neither be quoted nor work without activation."""
    texts = calls(("UserError", "print", "info", "warning", "error", "alert"))
    assert len(texts) > 100
    for where, call in texts:
        parts = [node.value for each in call.args for node in ast.walk(each) if isinstance(node, ast.Constant)]
        for text in parts:
            assert not re.search(rf"tinyimnet ({'|'.join(cli.COMMANDS)})\b", str(text)), f"{where}: use console.command"
