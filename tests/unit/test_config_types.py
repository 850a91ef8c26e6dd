"""Every key, in a file and on the command line, with values of every kind: a value of its type, or one sentence."""

from pathlib import Path
from typing import Any

import pytest

from tinyimnet import config_cli
from tinyimnet.config import KEYS, Config, dump
from tinyimnet.config_cli import load
from tinyimnet.config_types import TYPES, convert
from tinyimnet.errors import UserError

VALUES = (
    "null", "[1]", "[null]", "{a: 1}", "some words", "''", "' '", ".nan", ".inf", "-.inf", "true", "0", "1", str(2**64),
    "1" + 400 * "0", "1" + 5000 * "0", "0.5", "2.0", "1e400", "2024-01-01", "010", "12:30:00", '"a\\0b"', '"a\\nb"',
)  # fmt: skip


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def assert_typed_or_refused(arguments: list[str], key: str) -> None:
    try:
        value = value_of(load(arguments), key)
    except UserError as error:
        sentence = str(error)
        assert key in sentence and sentence.endswith((".", "?")) and "\n" not in sentence, sentence
        assert len(sentence) < 400
    else:
        typed = convert(list(value) if isinstance(value, tuple) else value, TYPES[key])
        assert typed == value and type(typed) is type(value)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_in_a_file_has_its_type_or_is_refused(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    file = tmp_path / "c.yaml"
    for value in VALUES:
        file.write_text(f"{section}:\n  {name}: {value}\n")
        assert_typed_or_refused(["--config", str(file)], key)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_on_the_command_line_has_its_type_or_is_refused(key: str) -> None:
    for value in VALUES:
        assert_typed_or_refused([f"--{key}={value}"], key)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffoptim: {lr: 0.25}\n",
        "# \u00e9t\u00e9\noptim: {lr: 0.25}\n",
        "optim: &o {lr: 0.25}\n",
        "augment: &a {mixup_alpha: 0.1}\noptim: {lr: 0.25, weight_decay: 1e-4}\n",
        "optim:\n  <<: {lr: 0.5, momentum: 0.8}\n  lr: 0.25\n",
        "optim: {lr: 2.5e-1}\r\n",
        "%YAML 1.1\n---\noptim: {lr: 0.25}\n...\n",
    ],
    ids=["a BOM", "a comment in UTF-8", "an anchor", "exponents", "a merge key", "Windows lines", "a directive"],
)
def test_files_that_are_unusual_and_valid(content: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content, encoding="utf-8", newline="")
    assert load(["--config", str(file)]).optim.lr == 0.25


def test_a_missing_file_suggests_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {lr: 0.25}\n")
    with pytest.raises(UserError, match=f"mime.yaml does not exist; did you mean {tmp_path}/mine.yaml?"):
        load(["--config", str(tmp_path / "mime.yaml")])
    with pytest.raises(UserError, match="is a folder and must be a YAML file"):
        load(["--config", str(tmp_path)])


def test_of_an_option_given_twice_the_last_counts() -> None:
    assert load(["--optim.lr=0.1", "--optim.lr", "0.2"]).optim.lr == 0.2


def test_every_key_has_a_type_and_a_documentation() -> None:
    assert tuple(TYPES) == KEYS
    assert set(KEYS) <= set(config_cli._documentation())


def test_the_defaults_have_their_types(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(dump(Config()))
    assert load(["--config", str(file), "--run.dir="]).optim == Config().optim
