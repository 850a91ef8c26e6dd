"""What a finished run provides: its best weights, and a model card whose example works."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyimnet import cli
from tinyimnet.evaluation.model_card import model_card
from tinyimnet.evaluation.weights import load_trained
from tinyimnet.files import read_lines
from tinyimnet.run.folder import read_config
from tinyimnet.run.metrics import STEP


def test_the_model_card_has_the_results_and_its_example_works(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, results = (
        (finished_run / "MODEL_CARD.md").read_text(),
        json.loads((finished_run / "DONE").read_text()),
    )
    assert f"| final.safetensors, EMA weights | 12 | {results['val/ema_top1']:.2f} %" in card
    assert f"{results['ece']:.2f} %" in card and "| **optim.lr** | **0.1** |" in card
    for name in ("final", "best"):
        shutil.copy(finished_run / f"{name}.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    assert names["trained"].step == 12


def test_the_last_example_of_the_card_needs_no_torch_and_not_this_program(
    finished_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """It gives what `predict` gives for the same picture."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.load(tiny_data / "val_images.npy")[0]).save("picture.jpg")
    predict = ["predict", str(finished_run), "--images", "picture.jpg", "--label", "name", "--out", "a.jsonl"]
    assert cli.main(["export", str(finished_run), "--out", "model.onnx"]) == cli.main(predict) == 0
    capsys.readouterr()
    example = (finished_run / "MODEL_CARD.md").read_text().split("```python\n")[-1].partition("```")[0]
    assert len([line for line in example.splitlines() if line and "import" not in line]) == 5
    with monkeypatch.context() as without:
        for package in ("tinyimnet", "torch"):
            without.setitem(sys.modules, package, None)
        exec(example, {})
    name, probability = capsys.readouterr().out.rsplit(maxsplit=1)
    (expected,) = read_lines(Path("a.jsonl"))
    assert [name] == expected["labels"]
    assert float(probability) == pytest.approx(expected["probabilities"][0], rel=1e-4)


@pytest.mark.parametrize(
    ("fit", "call"), [("crop", "ImageOps.fit("), ("pad", "ImageOps.pad("), ("stretch", "Image.Image.resize(")]
)
def test_the_example_of_the_card_makes_squares_as_the_training_did(fit: str, call: str, finished_run: Path) -> None:
    config = read_config(finished_run)
    info, results = (json.loads((finished_run / name).read_text()) for name in ("run_info.json", "DONE"))
    assert call in model_card(config, {**info, "fit": fit}, results)


def test_best_safetensors_has_the_weights_of_the_best_checkpoint(finished_run: Path) -> None:
    results, best = (
        json.loads((finished_run / "DONE").read_text()),
        load_trained(finished_run / "best.safetensors"),
    )
    lines = {line[STEP]: line for line in read_lines(finished_run / "metrics.jsonl")}
    assert best.step == results["best_step"]
    assert lines[best.step]["val/ema_top1"] == max(line.get("val/ema_top1", 0) for line in lines.values())
