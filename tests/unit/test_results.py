"""What a finished run provides: its best weights, and a model card whose example works."""

import json
import shutil
from pathlib import Path

import pytest

from tinyimnet.evaluation.weights import load_trained
from tinyimnet.files import read_lines
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


def test_best_safetensors_has_the_weights_of_the_best_checkpoint(finished_run: Path) -> None:
    results, best = (
        json.loads((finished_run / "DONE").read_text()),
        load_trained(finished_run / "best.safetensors"),
    )
    lines = {line[STEP]: line for line in read_lines(finished_run / "metrics.jsonl")}
    assert best.step == results["best_step"]
    assert lines[best.step]["val/ema_top1"] == max(line.get("val/ema_top1", 0) for line in lines.values())
