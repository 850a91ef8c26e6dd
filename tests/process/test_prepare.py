"""`prepare` as a user runs it: it decodes in worker processes, and a kill leaves nothing that looks complete."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.program import REPO, launch, python
from helpers.sources import image, left_behind, official, pack, truncate
from tinyimnet.data.writer import new_folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official(tmp_path_factory.mktemp("official"))


def test_the_command_prints_the_image_counts(tree: Path, tmp_path: Path) -> None:
    result = python("-m", "tinyimnet", "prepare", str(tree), "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "12 train, 5 val, 3 test images of 3 classes" in result.stdout
    assert "decoded 20 images in" in result.stderr
    expected = [np.asarray(Image.open(tree / f"test/images/test_{i}.JPEG")) for i in (0, 2, 10)]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "test_images.npy"), expected)


def test_the_command_names_what_it_does_not_use_and_refuses_it_with_strict(tmp_path: Path) -> None:
    root = official(tmp_path)
    (root / "notes.txt").touch()
    command = ("-m", "tinyimnet", "prepare", str(root), "--out", str(tmp_path / "out"))
    strict = python(*command, "--strict")
    assert strict.returncode == 2 and "1 not an image (notes.txt); move them away, or omit --strict" in strict.stderr
    assert left_behind(tmp_path / "out") == []
    result = python(*command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == (
        "not used: 1 hidden or of the system (val/images/._val_0.JPEG); 1 not an image (notes.txt)"
    )


def test_a_user_error_in_a_worker_is_one_sentence(tmp_path: Path) -> None:
    root = official(tmp_path)
    truncate(root / "train/n02/images/n02_1.JPEG")
    result = python("-m", "tinyimnet", "prepare", str(pack(root)), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert (
        "1 damaged or not an image (train/n02/images/n02_1.JPEG)" in result.stderr and "Traceback" not in result.stderr
    )
    assert left_behind(tmp_path / "out") == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts in a namespace of its own")
@pytest.mark.parametrize(
    "mount",
    ["mount -t tmpfs none OUT", "mount -t tmpfs none OUT; mkdir OUT/lost+found", "mount --bind OUT OUT"],
)
def test_a_mount_point_as_out_is_refused_for_what_it_is(tree: Path, tmp_path: Path, mount: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = f"{mount}; {sys.executable} -m tinyimnet prepare {tree} --out OUT".replace("OUT", str(out))
    result = launch(["unshare", "--map-root-user", "--mount", "sh", "-c", script])
    if "unshare failed" in result.stderr or "mount:" in result.stderr:
        pytest.skip("this machine does not let users mount")
    assert result.returncode == 2
    assert f"{out} is a mount point, which a finished folder cannot replace; choose a folder in it" in result.stderr


# ---- killed -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with 20,000 train images, which take seconds to decode."""
    archive, encoded = tmp_path_factory.mktemp("large") / "tiny-imagenet-200.zip", image(0)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("val/val_annotations.txt", "val_0.JPEG\tn01\n")
        file.writestr("val/images/val_0.JPEG", encoded)
        for i in range(20_000):
            file.writestr(f"train/n0{i % 2}/images/{i}.JPEG", encoded)
    return archive


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def start_decoding(archive: Path, out: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start the command; return it and its children once a worker has written pixels."""
    command = [sys.executable, "-m", "tinyimnet", "prepare", str(archive), "--out", str(out)]
    process = subprocess.Popen(command, cwd=REPO, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for array in out.parent.glob(f".{out.name}.partial-*/train_images.npy"):
            if array.stat().st_blocks > 1000:  # the file is sparse until then
                return process, children(process.pid)
        time.sleep(0.01)
    raise AssertionError(f"decoding did not start, exit code {process.wait()}")


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_import_no_torch(large: Path, tmp_path: Path) -> None:
    process, workers = start_decoding(large, tmp_path / "out")
    loaded = [Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in workers]
    process.kill()
    process.wait()
    assert_gone(workers)
    assert any("_imaging" in maps for maps in loaded) and not any("libtorch" in maps for maps in loaded)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sigkill_leaves_nothing_that_looks_prepared_and_no_worker(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process, workers = start_decoding(large, out)
    process.kill()
    process.wait()
    assert workers
    assert_gone(workers)
    assert not out.exists()
    assert not list(tmp_path.glob("**/manifest.json"))
    with new_folder(out, 0):
        pass
    assert left_behind(out) == ["out"]  # the next preparation removed the leftovers


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number, group", [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_sigterm_and_ctrl_c_leave_nothing_behind(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, group: bool
) -> None:
    process, workers = start_decoding(large, tmp_path / "out")
    (os.killpg if group else os.kill)(process.pid, number)  # the terminal sends Ctrl-C to the whole group
    assert process.wait(timeout=20) == 128 + number
    assert_gone(workers)
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err
