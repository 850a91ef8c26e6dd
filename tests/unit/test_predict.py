"""tinyimnet predict: what it takes, and the files that it writes."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.program import REPO
from tinyimnet import cli, errors
from tinyimnet.data.images import decode
from tinyimnet.evaluation import analysis
from tinyimnet.evaluation.weights import load_trained

COLOURS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def saved(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


KINDS = {
    "16bit.png": saved(Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257)),
    "cmyk.jpg": saved(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
    "palette.gif": saved(Image.fromarray(COLOURS).quantize(64), "GIF"),
    "transparent.webp": saved(Image.fromarray(np.dstack([COLOURS, COLOURS[..., :1]])), "WEBP", lossless=True),
    "turned.jpg": saved(Image.fromarray(COLOURS), "JPEG", exif=TURNED),
    "large.tiff": saved(Image.fromarray(COLOURS).resize((700, 300)), "TIFF"),
    "exact.bmp": saved(Image.fromarray(COLOURS[:64, :64]), "BMP"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with each kind of picture in a folder of its own."""
    for name, content in KINDS.items():
        path = tmp_path / "pictures" / name[0] / "deeper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "pictures"


def predicted(run: Path, out: Path, *options: object) -> list[dict]:
    """Run the command and return its rows, by the names of their columns or keys."""
    assert cli.main(["predict", str(run), "--out", str(out), *map(str, options)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in file] if out.suffix == ".jsonl" else list(csv.DictReader(file))


def test_any_kind_of_picture_gives_what_its_prepared_pixels_give(
    folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    rows = predicted(finished_run, tmp_path / "a.jsonl", "--images", folder)
    assert sorted(row["filename"].rpartition("/")[2] for row in rows) == sorted(KINDS)
    pixels = [decode(KINDS[Path(row["filename"]).name], "crop")[0] for row in rows]
    np.save(tmp_path / "pixels.npy", np.stack(pixels))
    from_pixels = predicted(finished_run, tmp_path / "b.jsonl", "--images", tmp_path / "pixels.npy")
    for row, expected in zip(rows, from_pixels, strict=True):
        assert (row["labels"], row["probabilities"]) == (expected["labels"], expected["probabilities"])


def test_a_single_picture_gives_its_row_of_the_folder(folder: Path, finished_run: Path, tmp_path: Path) -> None:
    for row in predicted(finished_run, tmp_path / "all.jsonl", "--images", folder, "--top", 3):
        alone = predicted(finished_run, tmp_path / "a.jsonl", "--images", folder / row["filename"], "--top", 3)
        assert [each["filename"] for each in alone] == [Path(row["filename"]).name]
        assert alone[0]["labels"] == row["labels"]
        assert alone[0]["probabilities"] == pytest.approx(row["probabilities"], rel=1e-5)


def test_weights_without_a_fit_crop(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As all weights in results/, whose data had images of 64x64 pixels alone."""
    rows = predicted(REPO / "results" / "tiny1m_sprint.safetensors", tmp_path / "a.csv", "--images", folder)
    assert len(rows) == len(KINDS)
    assert "scaled to 64x64 pixels (crop: " in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_top_classes_come_with_their_probabilities(
    suffix: str, folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    trained = load_trained(finished_run)
    for row in predicted(finished_run, tmp_path / f"a.{suffix}", "--images", folder, "--top", 5, "--label", "name"):
        pixels = decode((folder / row["filename"]).read_bytes(), "crop")[0]
        expected = analysis.log_probabilities(trained, pixels[None].copy()).exp().topk(5)
        if suffix == "csv":
            assert list(row) == ["filename", *(f"{c}_{k}" for k in range(1, 6) for c in ("label", "probability"))]
            row["labels"] = [row[f"label_{k}"] for k in range(1, 6)]
            row["probabilities"] = [float(row[f"probability_{k}"]) for k in range(1, 6)]
        assert row["labels"] == [trained.names[i] for i in expected.indices[0].tolist()]
        torch.testing.assert_close(torch.tensor(row["probabilities"]), expected.values[0], rtol=1e-4, atol=0)


def test_pictures_that_cannot_be_read_are_named_and_the_rest_is_done(
    folder: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cut.png").write_bytes(KINDS["16bit.png"][:50])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "pipe.png")
    assert len(predicted(finished_run, tmp_path / "a.csv", "--images", folder)) == len(KINDS)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "2 damaged or not an image (cut.png, empty.jpg)" in message and "notes.txt" in message


def test_strict_refuses_them_and_writes_nothing(folder: Path, finished_run: Path, tmp_path: Path, capsys) -> None:
    (folder / "empty.jpg").touch()
    options = ["--images", str(folder), "--strict", "--out", str(tmp_path / "a.csv")]
    assert errors.run(cli.main, ["predict", str(finished_run), *options]) == 2
    assert "1 damaged or not an image (empty.jpg); correct" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


MISTAKES = {
    r"--top 201 is not from 1 to 200": ["--top", "201"],
    r"--top 0 is not from 1 to 200": ["--top", "0"],
    r"--images .*none.png has files .* damaged or not an image \(none.png\); correct these": ["--images", "none.png"],
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_one_sentence(sentence: str, finished_run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none.png").touch()
    with pytest.raises(errors.UserError, match=sentence):
        cli.main(["predict", str(finished_run), *MISTAKES[sentence], "--out", "a.csv"])
    assert not Path("a.csv").exists()
