"""The benchmarks do the work that they claim to measure, in rounds too short for meaningful numbers."""

import importlib
import re
from types import ModuleType

import pytest

from helpers.program import REPO
from tinyimnet.data import batches
from tinyimnet.training.step import TrainStep

pytestmark = pytest.mark.long


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Return a function that imports a script of benchmarks/ and shortens it to 2 rounds of 50 ms."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(REPO / "benchmarks")
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "ROUNDS", 2)
        if hasattr(module, "SECONDS"):  # step.py counts, for no length of time
            monkeypatch.setattr(module, "SECONDS", 0.05)
        return module

    return load


def test_the_throughput_benchmark_mixes_every_batch_to_the_end(benchmark, arguments, monkeypatch, capsys) -> None:
    drawn = []
    draw = batches.draw
    monkeypatch.setattr(batches, "draw", lambda *args, **kw: drawn.append(draw(*args, **kw)) or drawn[-1])
    assert benchmark("throughput").main(arguments(train__epochs=1)) == 0
    assert re.search(r"training loop.*images/s, [\d.]+% ", shown := capsys.readouterr().out)
    assert "with Mixup and CutMix" in shown and "a save blocks the loop for" in shown
    mixed = [d for d in drawn if d.mixed]
    assert len(mixed) >= 5 and all((d.blend < 1).any() and d.boxes.any() for d in mixed)
    assert len(mixed) >= len(drawn) // 2 - 2  # the other half is the training loop's, which does not mix


def test_the_step_benchmark_counts_kernels_and_times_the_host(benchmark, monkeypatch, capsys, tmp_path) -> None:
    module = benchmark("step")
    monkeypatch.setattr(module, "BATCH", 32)
    (one_block := tmp_path / "one_block.yaml").write_text("model: {widths: [8], depths: [1], width: 1}", "utf-8")
    assert module.main(["--compiled", str(one_block)]) == 0
    shown = capsys.readouterr().out
    launched, compiled = map(int, re.findall(r"(\d+) (?:kernels: |with train.compile)", shown))
    assert 60 < compiled < launched - 20 < 200
    assert re.search(r"sum without the draw.*[\d.]+ us", shown)


def test_the_data_path_benchmark_reports_a_ratio(benchmark, monkeypatch, capsys) -> None:
    module = benchmark("data_path")
    monkeypatch.setattr(module, "N", 512)
    assert module.main() == 0
    assert "ratio, median of pairs" in capsys.readouterr().out


def test_the_budget_benchmark_ends_with_an_option_to_paste(benchmark, arguments, monkeypatch, capsys) -> None:
    trained, work = set(), TrainStep.work
    monkeypatch.setattr(
        TrainStep, "work", lambda self, kind, *rest: trained.add(kind.resolution) or work(self, kind, *rest)
    )
    settings = arguments(augment__start_resolution=48, augment__full_resolution_from=0.5)
    assert benchmark("budget").main(["--minutes=5", "--images=640", "--val=500", *settings]) == 0
    assert trained == {48, 56, 64}
    shown = capsys.readouterr().out
    for resolution, share in ((48, "25.0%"), (56, "25.0%"), (64, "50.0%")):
        assert re.search(rf"{resolution} px[ │]+{share}[ │]+[\d.,]+[ │]+[\d,]+ ", shown)
    found = re.fullmatch(r"--train\.epochs (\d+)", shown.splitlines()[-1])
    assert found and int(found[1]) > 2
    minutes = [float(number) for number in re.findall(r"evaluations?, start and end[ │]+([\d.]+) minutes", shown)]
    assert len(minutes) == 2 and minutes[0] < minutes[1] <= 5  # those of the configuration, those that fit


def test_the_budget_benchmark_says_how_many_minutes_an_epoch_needs(benchmark, arguments) -> None:
    module = benchmark("budget")
    with pytest.raises(module.errors.UserError, match="--minutes is 0.1 and must be at least [1-9] for 1 epoch,"):
        module.main(["--minutes=0.1", "--images=640", "--val=500", *arguments()])
