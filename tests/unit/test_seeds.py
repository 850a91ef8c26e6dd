"""Runs of one recipe: how they are grouped and named, and how `tinyimnet seeds` summarizes them."""

import json

import pytest

from helpers.run_folders import finished, sent
from tinyimnet import cli
from tinyimnet.run.record import read_record
from tinyimnet.run.seeds import by_recipe, common_name, group_name


def cells(output: str, first: str) -> list[str]:
    """Return the cells of a row of the table or of its Markdown version."""
    line = next(line for line in output.splitlines() if first in line)
    return [cell.strip() for cell in line.replace("│", "|").strip("|").split("|")]


def test_summary_has_mean_and_spread_of_each_configuration(make_run, tmp_path, capsys) -> None:
    for name, top1, seed, lr in (
        ("a0", 50.0, 0, 0.1),
        ("a1", 52.0, 1, 0.1),
        ("a2", 57.0, 2, 0.1),
        ("b0", 40.0, 0, 0.2),
    ):
        finished(make_run, name, top1, seed=seed, lr=lr)
    out = tmp_path / "new" / "seeds.md"
    assert cli.main(["seeds", str(tmp_path / "runs"), "--out", str(out)]) == 0
    # Mean (50 + 52 + 57) / 3 = 53, standard deviation sqrt((9 + 1 + 16) / (3 - 1)) = 3.61.
    three = ["optim.lr=0.1", "3", "53.00", "3.61", "50.00", "57.00"]
    one = ["optim.lr=0.2", "1", "40.00", "-", "40.00", "40.00"]
    for output in (capsys.readouterr().out, out.read_text()):
        assert cells(output, "lr=0.1") == three
        assert cells(output, "lr=0.2") == one


def test_summary_names_a_single_configuration_after_its_runs(make_run, tmp_path, capsys) -> None:
    finished(make_run, "tiny1m-s10", 50.0, seed=10)
    finished(make_run, "tiny1m-s11", 52.0, seed=11)
    assert cli.main(["seeds", str(tmp_path / "runs")]) == 0
    assert cells(capsys.readouterr().out, "tiny1m")[:3] == ["tiny1m", "2", "51.00"]


def test_runs_of_different_data_sets_are_not_averaged(make_run, tmp_path, capsys) -> None:
    """The configuration does not tell them apart: data.root differs between machines with the same images."""
    for seed, (name, digest) in enumerate([("tiny", "aaaa"), ("copy", "aaaa"), ("own", "bbbb"), ("old", "")]):
        run = finished(make_run, f"r{seed}", 50.0 + seed, seed=seed)
        (run / "run_info.json").write_text(json.dumps({"dataset": name, "dataset_digest": digest}))
    assert cli.main(["seeds", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert cells(output, "data=tiny aaaa")[1:3] == ["2", "50.50"]
    assert cells(output, "data=own bbbb")[1:3] == ["1", "52.00"]
    assert cells(output, "data=old")[1:3] == ["1", "53.00"]


def test_summary_shows_that_a_seed_has_two_runs(make_run, tmp_path, capsys) -> None:
    finished(make_run, "a", 50.0, seed=0)
    finished(make_run, "b", 50.0, seed=0)
    assert cli.main(["seeds", str(tmp_path / "runs")]) == 0
    assert "1 (2 runs)" in capsys.readouterr().out


def test_summary_names_the_runs_that_are_not_counted(make_run, tmp_path, capsys) -> None:
    finished(make_run, "a", 50.0, seed=0)
    make_run("b")
    make_run("c", DONE="{")
    make_run("d", config=None, job__json=sent("1"), DONE={"val/ema_top1": 1.0})
    out = tmp_path / "seeds.md"
    assert cli.main(["seeds", str(tmp_path / "runs"), "--out", str(out)]) == 0
    note = "not counted: b (not finished), c (its DONE is damaged), d (its config.yaml is damaged or missing)"
    assert note in capsys.readouterr().out
    assert note in out.read_text()


# ---- run/seeds.py -------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_recipe_in_the_given_order(make_run) -> None:
    made = [
        read_record(finished(make_run, name, 50.0, seed=seed, lr=lr))
        for name, seed, lr in (("a", 0, 0.1), ("b", 0, 0.2), ("c", 1, 0.1))
    ]
    assert [[run.name for run in group] for group in by_recipe(made)] == [["a", "c"], ["b"]]


@pytest.mark.parametrize(
    "names, common",
    [
        (["tiny1m-s0"], "tiny1m-s0"), (["tiny1m-s0", "tiny1m-s1"], "tiny1m"), (["a-seed10", "a-seed11"], "a"),
        (["a.seed=1", "a.seed=2"], "a"), (["net_1", "net_2"], "net"), (["sprint", "tiny"], "sprint, ..."),
        (["fast64-a", "fast64-b"], "fast64"),
    ],
)  # fmt: skip
def test_the_common_name_of_runs_leaves_out_the_seed(names: list[str], common: str) -> None:
    assert common_name(names) == common


@pytest.mark.parametrize(
    "name, group",
    [("tiny1m-seed3", "tiny1m"), ("a-lr0.1-seed10", "a-lr0.1"), ("tiny1m", None), ("seed3", None)],
)
def test_a_run_whose_name_ends_in_its_seed_belongs_to_a_group(name: str, group: str | None) -> None:
    assert group_name(name) == group
