"""Which W&B run a run folder has: a moved folder keeps it, a copy gets its own, another folder's id is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tinyimnet.errors import UserError
from tinyimnet.tracking.identity import identify, run_id
from tinyimnet.tracking.uploaded import Uploaded


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A run folder that has started."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    run_id(folder)
    return folder


def id_of(folder: Path) -> str:
    return json.loads((folder / "wandb_run.json").read_text())["id"]


def test_a_copy_takes_a_new_id_and_says_so(original: Path, caplog) -> None:
    copy = original.with_name("b")
    shutil.copytree(original, copy)
    new = run_id(copy)
    assert new != id_of(original)
    assert caplog.messages == [f"{copy} is a copy of {original}, which keeps W&B run {id_of(original)}; "
                               f"the copy is W&B run {new}"]  # fmt: skip
    assert (run_id(copy), run_id(original)) == (new, id_of(original))
    assert len(caplog.messages) == 1


def test_a_copy_of_a_copy_takes_a_new_id(original: Path) -> None:
    first, second = original.with_name("b"), original.with_name("c")
    shutil.copytree(original, first)
    shutil.copytree(first, second)
    assert len({run_id(folder) for folder in (second, first, original)}) == 3


def test_a_hard_linked_copy_takes_a_new_id(original: Path) -> None:
    copy = original.with_name("b")
    shutil.copytree(original, copy, copy_function=os.link)
    assert run_id(copy) != id_of(original)


def test_of_a_copy_at_the_old_place_and_its_original_one_keeps_the_id(original: Path) -> None:
    moved = original.rename(original.with_name("a-old"))
    shutil.copytree(moved, original)
    assert run_id(moved) != run_id(original)


def test_a_moved_folder_keeps_its_id_wherever_it_goes(original: Path, caplog) -> None:
    id = id_of(original)
    for name in ("b", "other/c", "a"):
        target = original.parent / name
        target.parent.mkdir(exist_ok=True)
        original = original.rename(target)
        assert run_id(original) == id
    assert not caplog.messages


def test_a_folder_moved_to_another_file_system_keeps_its_id(original: Path) -> None:
    copy = original.with_name("b")
    shutil.copytree(original, copy)
    shutil.rmtree(original)
    assert run_id(copy) == id_of(copy)


def test_a_folder_restored_from_a_backup_keeps_its_id(original: Path) -> None:
    backup, id = original.with_name("backup"), id_of(original)
    shutil.copytree(original, backup)
    shutil.rmtree(original)
    shutil.copytree(backup, original)
    assert run_id(original) == id


def test_a_folder_seen_through_links_keeps_its_id(original: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(original.parent)
    assert run_id(tmp_path / "link" / "a") == id_of(original)


def test_a_folder_of_an_earlier_version_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "wandb_run.json").write_text('{"id": "x", "url": "u"}')
    assert run_id(tmp_path) == "x"
    assert json.loads((tmp_path / "wandb_run.json").read_text())["url"] == "u"


def test_an_id_that_a_neighbour_has_is_refused(original: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", id_of(original))
    other = original.with_name("b")
    with pytest.raises(UserError, match=f"W&B run {id_of(original)} belongs to {original}; choose another"):
        run_id(other)
    assert not other.exists()
    assert run_id(original) == id_of(original)


def test_the_id_of_the_original_is_refused_in_a_copy_only(original: Path, tmp_path: Path, monkeypatch) -> None:
    copy, beside = tmp_path / "elsewhere" / "b", original.with_name("c")
    for target in (copy, beside):
        shutil.copytree(original, target)
    monkeypatch.setenv("WANDB_RUN_ID", id_of(original))
    for target in (copy, beside):
        with pytest.raises(UserError, match="belongs to"):
            run_id(target)
    assert run_id(original) == id_of(original)


BAD = ["a/b", "a b", " a", "x" * 200, "x" * 123, "a:b", "a?b", "a#b", "a%b", "a\\b", "a\nb", "a'b", "ä", "..", ".a",
       "-a", "a*", "[a]"]  # fmt: skip


@pytest.mark.parametrize("id", BAD)
def test_an_id_that_wandb_cannot_use_is_refused(id: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", id)
    with pytest.raises(UserError, match="WANDB_RUN_ID is .* and must be 1 to 122 letters"):
        identify(tmp_path)


@pytest.mark.parametrize("id", ["a", "3k1p8xq2", "tiny1m-seed0", "A_b.c", "x" * 122])
def test_an_id_that_wandb_can_use_is_accepted(id: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", id)
    assert identify(tmp_path)["id"] == id


def test_on_the_server_a_run_of_any_folder_that_this_one_had_is_ours(original: Path) -> None:
    id = id_of(original)
    moved = original.rename(original.with_name("b"))
    run_id(moved)
    for folder in (original, moved):
        Uploaded(keys={"loss"}, folder=str(folder)).check_owner(moved, id)
    with pytest.raises(UserError, match="belongs to /elsewhere"):
        Uploaded(keys={"loss"}, folder="/elsewhere").check_owner(moved, id)


def test_on_the_server_a_run_with_rows_of_another_program_is_not_ours(original: Path) -> None:
    with pytest.raises(UserError, match="belongs to another program"):
        Uploaded(keys={"loss"}).check_owner(original, id_of(original))
    Uploaded().check_owner(original, id_of(original))  # an agent has created it, and nobody has logged
