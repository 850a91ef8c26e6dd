"""What is installed: packages, versions. process/test_installed.py builds and installs a wheel."""

import ast
import re
from pathlib import Path

from packaging.requirements import Requirement

from helpers.program import REPO

PYPROJECT = (REPO / "pyproject.toml").read_text()


def lines(name: str) -> list[str]:
    return [line for line in (REPO / name).read_text().splitlines() if line and not line.startswith("#")]


def test_every_folder_with_code_is_a_package_of_the_wheel() -> None:
    listed = re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.M | re.S)
    assert listed
    packages = set(ast.literal_eval(f"[{listed[1]}]"))
    code = {path.parent.relative_to(REPO) for path in (REPO / "tinyimnet").rglob("*.py")}
    assert packages == {".".join(path.parts) for path in code} | {"tinyimnet.configs", "tinyimnet.configs.cluster"}


def test_the_exact_versions_are_inside_the_ranges() -> None:
    exact = {r.name.lower(): next(iter(r.specifier)).version for r in map(Requirement, lines("constraints.txt"))}
    development = re.search(r"^dev = \[(.*?)^\]", PYPROJECT, re.M | re.S)
    others = re.findall(r"^(?:dashboard|parquet|tensorboard|onnx) = \[(.*)\]$", PYPROJECT, re.M)
    assert development and len(others) == 4
    extras = [each for listed in (development[1], *others) for each in ast.literal_eval(f"[{listed}]")]
    for requirement in map(Requirement, [*lines("requirements.txt"), *extras]):
        if requirement.name != "tinyimnet":
            assert exact[requirement.name.lower()] in requirement.specifier, requirement


def test_no_file_of_requirements_names_an_index() -> None:
    for path in (REPO / "requirements.txt", REPO / "constraints.txt", REPO / "pyproject.toml"):
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", Path(path).read_text(encoding="utf-8")), (
            path.name
        )
