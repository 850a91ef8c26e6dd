"""Processes that open, stage or prepare one data set: one does the work, and an error of one is raised on all."""

import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from helpers.rendezvous import together
from tinyimnet.config import DataConfig
from tinyimnet.data import loading, staging, synthetic
from tinyimnet.distributed.rendezvous import Rendezvous


def test_a_node_whose_folder_holds_other_data_is_named(tiny_data: Path, tmp_path: Path) -> None:
    """Each copy is valid on its own; only the comparison between ranks shows the difference."""
    other = tmp_path / "other"
    synthetic.prepare_synthetic(other, train_per_class=1, val_per_class=1, test_per_class=1, seed=1)
    roots = [str(tiny_data), str(tiny_data), str(other)]
    sentences = together(lambda m: loading.ready_dataset(DataConfig(root=roots[m.rank]), m), 3)
    assert all("(rank 2) has different data at data.root" in sentence for sentence in sentences), sentences


def test_other_processes_wait_while_rank_0_makes_the_data(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    def make_slowly(root: Path, source: str) -> dict:
        time.sleep(0.5)
        shutil.copytree(tiny_data, tmp_path / "copy")
        (tmp_path / "copy").rename(root)
        return {}

    monkeypatch.setattr(loading, "prepare_missing", make_slowly)
    settings = DataConfig(root=str(tmp_path / "tiny-imagenet-200"))
    counts = together(lambda rendezvous: len(loading.ready_dataset(settings, rendezvous).images["train"]), 3)
    assert counts == [200] * 3


def test_data_that_cannot_be_read_is_the_same_error_on_all_ranks(tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    broken = shutil.copytree(tiny_data, tmp_path / "data")
    (broken / "train_labels.npy").unlink()
    sentences = together(lambda rendezvous: loading.ready_dataset(DataConfig(root=str(broken)), rendezvous), 2)
    assert len(set(sentences)) == 1 and "train_labels.npy is missing" in sentences[0]


def test_runs_that_start_together_without_data_all_use_the_first_result(tmp_path: Path, monkeypatch) -> None:
    draw = partial(synthetic.prepare_synthetic, train_per_class=2, val_per_class=1, test_per_class=1)
    monkeypatch.setattr(synthetic, "prepare_synthetic", draw)
    context = multiprocessing.get_context("fork")
    found = context.Queue()

    def start() -> None:
        settings = DataConfig(root=str(tmp_path / "drawn"), source="synthetic")
        found.put(len(loading.ready_dataset(settings, Rendezvous(environ={})).images["train"]))

    runs = [context.Process(target=start) for _ in range(3)]
    for run in runs:
        run.start()
    assert [found.get(timeout=120) for _ in runs] == [400] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_leftovers_of_a_killed_job_are_removed_and_live_copies_kept(tiny_data: Path, tmp_path: Path) -> None:
    def die() -> None:
        with staging.staged(tiny_data, str(tmp_path), "dead"):
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(20)
    assert len(list(tmp_path.iterdir())) == 2
    with staging.staged(tiny_data, str(tmp_path), "living") as living:
        assert len(list(tmp_path.iterdir())) == 2
        with staging.staged(tiny_data, str(tmp_path), "next"):
            assert (living / "manifest.json").exists()
