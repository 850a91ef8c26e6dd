"""Names in any language, in a locale that does not have their characters: from the images to the finished run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.program import REPO, SMALL
from helpers.sources import official
from tinyimnet.files import read_text

FISH, FROG = "poisson doré", "金魚"
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def latin_1(folder: Path) -> dict[str, str]:
    """Compile the locale, which few machines have."""
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales/en_US").exists():
        pytest.skip("localedef and the sources of the locales are not installed")
    target = folder / "en_US.ISO-8859-1"
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(target)], capture_output=True)
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"}


@pytest.fixture(params=["ascii", "latin-1"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return ASCII if request.param == "ascii" else latin_1(tmp_path)


def run(locale: dict[str, str], *arguments: object) -> str:
    """Run a command of the program in a locale and return its output."""
    command = [sys.executable, "-m", "tinyimnet", *map(str, arguments)]
    environment = {**os.environ, **locale, "WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode("latin-1")
    assert done.returncode == 0 and "Traceback" not in output and "Error" not in output, output
    return output


def test_a_run_with_names_that_the_locale_lacks_is_finished(locale: dict[str, str], tmp_path: Path) -> None:
    source, data, folder = official(tmp_path), tmp_path / "données", tmp_path / "läufe" / "魚"
    (source / "train" / "n01").rename(source / "train" / "é01")
    for name in ("wnids.txt", "val/val_annotations.txt"):
        (source / name).write_text((source / name).read_text(encoding="utf-8").replace("n01", "é01"), encoding="utf-8")
    (source / "words.txt").write_text(f"é01\t{FISH}\nn03\t{FROG}\n", encoding="utf-8")
    (tmp_path / "é.yaml").write_text("# für später\noptim: {lr: 0.1}\n", encoding="utf-8")
    keys = SMALL | {"config": tmp_path / "é.yaml", "train.global_batch_size": 4, "data.root": data, "run.dir": folder}

    run(locale, "prepare", source, "--out", data)
    run(locale, "train", *(f"--{key}={value}" for key, value in keys.items()))
    run(locale, "evaluate", folder)
    run(locale, "predict", folder, "--label", "name", "--out", tmp_path / "ü.csv")
    run(locale, "report", folder, "--out", tmp_path / "ö.html")
    assert "finished" in run(locale, "status", folder)

    assert (folder / "DONE").exists()
    assert {line.split(",")[1] for line in read_text(tmp_path / "ü.csv").splitlines()[1:]} <= {FISH, FROG, "n02"}
    rows = [line.split(",")[:2] for line in read_text(folder / "evaluation" / "per_class.csv").splitlines()[1:]]
    assert rows == [["n02", "n02"], ["n03", FROG], ["é01", FISH]]
    assert "魚" in read_text(tmp_path / "ö.html")
    assert data.name in read_text(folder / "MODEL_CARD.md")
