"""What a finished run prints."""

import json
import shutil
from pathlib import Path

import pytest

from tinyimnet.errors import UserError
from tinyimnet.training import outcome


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_the_result_names_the_chance_level_of_its_classes(run: Path, capsys) -> None:
    info = json.loads((run / "run_info.json").read_text())
    (run / "run_info.json").write_text(json.dumps({**info, "classes": 10}))
    outcome.show(run)
    assert "chance is 10.00 %" in capsys.readouterr().out


def test_the_result_of_a_damaged_marker_is_an_error(run: Path) -> None:
    (run / "DONE").write_text("{}")
    with pytest.raises(UserError, match="DONE is damaged .* delete it and rerun the same command"):
        outcome.show(run)
