"""tinyimnet export: a file that computes what the network computes, without this package."""

import json
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from helpers.program import REPO
from tinyimnet import cli, errors
from tinyimnet.evaluation import analysis, export
from tinyimnet.evaluation.weights import load_trained

IMAGES = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(form: str, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run in one of the forms."""
    out = tmp_path_factory.mktemp("exported") / f"any{export.FORMATS[form]}"
    assert cli.main(["export", str(finished_run), "--format", form, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_file_gives_the_probabilities_of_the_ema_weights(
    batch: int, file: Path, form: str, finished_run: Path
) -> None:
    """Pixels are normalised inside the file, and a batch has any size."""
    its = export.probabilities(file.read_bytes(), form, IMAGES[:batch])
    own = analysis.log_probabilities(load_trained(finished_run), IMAGES[:batch]).exp()
    torch.testing.assert_close(torch.from_numpy(its), own, rtol=1e-4, atol=1e-7)


def test_another_size_is_refused(file: Path, form: str) -> None:
    with pytest.raises(Exception, match=r"Expected: 64|size\(\)\[1\] == 64"):
        export.probabilities(file.read_bytes(), form, IMAGES[:, :32, :32])


def test_the_metadata_have_the_classes(file: Path, form: str, finished_run: Path) -> None:
    if form == "onnx":
        found = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    else:
        torch.export.load(file, extra_files=(found := {"names": "", "classes": ""}))
    trained = load_trained(finished_run)
    assert tuple(json.loads(found["names"])) == trained.names
    assert tuple(json.loads(found["classes"])) == trained.classes


def test_the_file_names_no_path_of_the_machine(file: Path) -> None:
    assert str(REPO).encode() not in file.read_bytes() and sys.prefix.encode() not in file.read_bytes()


def test_it_tells_on_which_images_the_two_were_compared(
    finished_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alone.safetensors").write_bytes((finished_run / "final.safetensors").read_bytes())
    cases = {
        f"200 validation images of {tiny_data}": [str(finished_run)],
        "256 images of noise": [str(tmp_path / "alone.safetensors")],
        f"200 validation images of {tiny_data} ": [str(tmp_path / "alone.safetensors"), "--data", str(tiny_data)],
    }
    for images, arguments in cases.items():
        assert cli.main(["export", *arguments, "--format", "torch", "--out", str(tmp_path / "a.pt2")]) == 0
        output = capsys.readouterr().out
        assert images.strip() in output
        assert re.search(r"all top-1 agree, largest difference of a probability \d\.\de-\d\d\n", output)


def test_nothing_is_written_if_the_two_differ(finished_run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export.Classifier, "forward", lambda self, images: self.network(images.movedim(3, 1) / 255))
    with pytest.raises(errors.UserError, match=r"differs from .* in the top-1 of \d+ of 200 images and by up to"):
        cli.main(["export", str(finished_run), "--format", "torch", "--out", str(tmp_path / "a.pt2")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [1e-3, np.nan])
def test_equal_top_1_alone_is_not_enough(wrong: float, finished_run: Path, monkeypatch) -> None:
    trained = load_trained(finished_run)
    own = analysis.log_probabilities(trained, IMAGES).exp().numpy()
    monkeypatch.setattr(export, "probabilities", lambda *_: own + wrong)
    with pytest.raises(errors.UserError, match="in the top-1 of . of 7 images and by up to (1.0e-03|nan)"):
        export.largest_difference(trained, b"", "onnx", IMAGES)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_sentence(
    package: str, finished_run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert errors.run(cli.main, ["export", str(finished_run), "--out", str(tmp_path / "a.onnx")]) == 2
    expected = f"error: --format onnx needs the package {package}; install it: pip install '.[onnx]'.\n"
    assert capsys.readouterr().err == expected


def test_nothing_that_torch_says_about_itself_is_shown(finished_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch_onnx = logging.getLogger("torch.onnx")
    torch_onnx.setLevel(logging.NOTSET)
    torch_onnx.addHandler(caplog.handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for form in export.FORMATS:
            export.exported(load_trained(finished_run), form)
    torch_onnx.removeHandler(caplog.handler)
    assert (caught, [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]) == ([], [])
