"""A run opens the data set that its configuration names, and prepares it where that is allowed."""

from pathlib import Path

import pytest

from tinyimnet import config_cli, errors, train
from tinyimnet.config import DataConfig
from tinyimnet.data import loading, synthetic
from tinyimnet.data.dataset import open_dataset
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import Busy, UserError


@pytest.mark.parametrize("tune_split, expected", [(False, [200, 200]), (True, [0, 200])])
def test_the_configuration_selects_the_tuning_split(tune_split: bool, expected: list[int], arguments) -> None:
    settings = config_cli.load(arguments(data__tune_split=tune_split))
    found = loading.ready_dataset(settings.data, Rendezvous())
    # With one image per class, all of them are held out.
    assert [len(found.images["train"]), len(found.images["val"])] == expected


def test_the_digest_does_not_depend_on_the_test_images(tiny_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    synthetic.prepare_synthetic(other, train_per_class=1, val_per_class=1, test_per_class=2)
    assert open_dataset(other).digest == open_dataset(tiny_data).digest


def test_a_run_waits_for_the_download_of_another_run(tmp_path: Path, monkeypatch) -> None:
    tries = []

    def missing(root: Path, source: str) -> None:
        tries.append(source)
        if len(tries) < 3:
            raise Busy("tiny-imagenet-200.zip.part is being written by another process.")
        synthetic.prepare_synthetic(root, train_per_class=1, val_per_class=1, test_per_class=1)

    monkeypatch.setattr(loading, "prepare_missing", missing)
    monkeypatch.setattr(loading.time, "sleep", lambda _: None)
    loading.ready_dataset(DataConfig(root=str(tmp_path / "tiny-imagenet-200")), Rendezvous(environ={}))
    assert tries == ["tiny-imagenet"] * 3


def test_data_is_created_only_where_the_configuration_file_says(tmp_path: Path, capsys) -> None:
    typo = tmp_path / "tpyo"
    assert errors.run(train.main, ["--config=smoke", f"--data.root={typo}", f"--run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert (
        f"data.root {typo} holds no prepared data set; run `" in error and f"prepare --synthetic --out {typo}`" in error
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["", "train_images.npy"], ids=["one level too high", "a file in it"])
def test_a_prepared_folder_next_to_the_given_path_is_named(given: str, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "my data").symlink_to(tiny_data)
    root = tmp_path / "my data" / given if given else tmp_path
    with pytest.raises(UserError, match=f"but {tmp_path}/my data does; give '--data.root={tmp_path}/my data'"):
        loading.ready_dataset(DataConfig(root=str(root), source="synthetic"), Rendezvous(environ={}), create=False)


def test_a_folder_of_another_name_is_not_filled_with_tiny_imagenet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.root .*mine holds no prepared data set; run .* --out .*mine"):
        loading.ready_dataset(DataConfig(root=str(tmp_path / "mine")), Rendezvous(environ={}))
    assert not list(tmp_path.iterdir())
