"""The loop: resume is bitwise, accumulation is the same step, bad steps are skipped, and it learns."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lives import EVERYTHING, equal, metrics
from torch._dynamo.testing import CompileCounter

from tinyimnet import checkpoint, commandline, data, distributed, facts, report, runfolder, tracking
from tinyimnet.checkpoint import Saver
from tinyimnet.engine import Trainer
from tinyimnet.errors import UserError
from tinyimnet.files import read_lines
from tinyimnet.lock import RunLock
from tinyimnet.meeting import Meeting
from tinyimnet.preemption import StopRequest
from tinyimnet.tracking import STEP


@pytest.fixture
def trainer(arguments, tmp_path: Path):
    """A function that builds the Trainer of a small run, on one process."""

    def make(**overrides: object) -> Trainer:
        settings = commandline.load(arguments(**overrides))
        run_dir = runfolder.find_run(settings)
        lock = RunLock(run_dir)
        saved = runfolder.lock_run(run_dir, settings, lock)
        runfolder.open_run(run_dir, settings, {"step": saved["step"] if saved else 0})
        lock.release()
        dataset = data.open_dataset(Path(settings.data.root), verify=False)
        made = Trainer(
            settings, distributed.start(settings.train, Meeting()), dataset, run_dir, StopRequest(run_dir)
        )
        made.tracker = tracking.Tracker(run_dir, settings.tracking)
        if saved:
            made.state.restore(saved)
        made.saver = Saver(run_dir / "checkpoints", keep=2, before=made.tracker.sync)
        return made

    return make


def fit(made: Trainer) -> str:
    return made.fit(made.tracker, made.saver)


@pytest.mark.parametrize("precision, optimizer", [("fp32", "sgd"), ("bf16", "sgd"), ("fp32", "muon")])
@pytest.mark.parametrize("stop_at", [3, 6, 7])
def test_a_resumed_run_equals_one_that_was_never_touched(
    precision, optimizer, stop_at, trainer, tmp_path, monkeypatch
) -> None:
    overrides = {**EVERYTHING, "train__precision": precision, "optim__name": optimizer}
    whole = trainer(**overrides, run__dir=tmp_path / "whole")
    assert fit(whole) == ""

    first = trainer(**overrides, run__dir=tmp_path / "parts")
    monkeypatch.setattr(first.stop, "agreed", lambda _: "a test" if first.step == stop_at else "")
    assert fit(first) == "a test"
    torch.rand(7)  # whatever the process drew meanwhile
    second = trainer(**overrides, run__dir=tmp_path / "parts")
    assert fit(second) == ""

    expected, found = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert expected["step"] == 12
    assert equal(expected, found)
    lines = [metrics(tmp_path / name) for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert [line[STEP] for line in lines[0]] == [2, 4, 6, 8, 10, 12]


def test_a_run_that_is_killed_replays_what_came_after_its_last_checkpoint(
    trainer, tmp_path, monkeypatch
) -> None:
    whole = trainer(**EVERYTHING, run__dir=tmp_path / "whole")
    fit(whole)
    first = trainer(**EVERYTHING, run__dir=tmp_path / "parts")

    def power_cut(_accelerator: object) -> str:
        if first.step == 11:
            raise RuntimeError("power cut")
        return ""

    monkeypatch.setattr(first.stop, "agreed", power_cut)
    with pytest.raises(RuntimeError):
        fit(first)
    fit(trainer(**EVERYTHING, run__dir=tmp_path / "parts"))
    expected, found = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert equal(expected, found)
    steps = [line[STEP] for line in read_lines(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_after_damaged_checkpoints_new_ones_are_kept_although_they_are_of_earlier_steps(
    trainer, tmp_path, monkeypatch, caplog
) -> None:
    """The newest two steps stay, and the damaged ones were the newest: each new one was removed as it was written."""

    def stop_at(step: int) -> Trainer:
        made = trainer(run__save_every=2)
        monkeypatch.setattr(made.stop, "agreed", lambda _: "a test" if made.step == step else "")
        fit(made)
        return made

    stop_at(10)
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.glob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-10])
    assert checkpoint.load(folder / "best.pt")["step"] == 6
    stop_at(7)
    assert "step_00000010.pt is damaged" in caplog.text
    assert checkpoint.load_newest(folder)["step"] == 7
    assert sorted(path.name for path in folder.glob("*.damaged")) == [
        "step_00000008.pt.damaged",
        "step_00000010.pt.damaged",
    ]


def test_what_differs_between_ranks_is_averaged_for_another_number_of_them(trainer, tmp_path: Path) -> None:
    made = trainer()
    made.train_step()
    saved, _ = made.state.snapshot()
    ranks = torch.stack([saved["by_rank"]["model"][0], 3 * saved["by_rank"]["model"][0]])
    made.state.restore({**saved, "by_rank": {**saved["by_rank"], "model": ranks}})
    assert torch.equal(torch.cat(made.state.statistics), ranks.mean(0))


def test_a_snapshot_does_not_change_while_the_training_goes_on(trainer) -> None:
    made = trainer()
    made.train_step()
    snapshot, _ = made.state.snapshot()
    before = deepcopy(snapshot)
    made.train_step()
    assert equal(snapshot, before)


def test_accumulation_takes_the_same_step(trainer, tmp_path: Path) -> None:
    """With BatchNorm in eval mode, whose batch statistics belong to a forward pass, only float order differs."""
    weights = []
    for name, device_batch_size in (("one", 0), ("four", 8)):
        made = trainer(
            train__device_batch_size=device_batch_size, train__precision="fp32", run__dir=tmp_path / name
        )
        for norm in (m for m in made.bare.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.eval()
            norm.train = lambda _mode=True, norm=norm: norm
        for _ in range(4):
            made.train_step()
        weights.append(torch.cat([p.detach().flatten() for p in made.bare.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=1e-4)


def test_a_step_with_a_non_finite_gradient_leaves_nothing_behind_and_is_counted(trainer) -> None:
    made = trainer()
    made.train_step()
    kept = [*made.bare.parameters(), *made.state.statistics, *made.ema.module.parameters()]
    before = [tensor.detach().clone() for tensor in kept]
    hook = made.bare.stem.register_forward_pre_hook(lambda _m, x: (x[0] * float("nan"),))
    made.train_step()
    hook.remove()
    n_own = len(kept) - len(list(made.ema.module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before[:n_own], kept[:n_own], strict=True))
    assert all(tensor.isfinite().all() for tensor in kept)
    made.train_step()
    assert not torch.equal(before[0], kept[0])
    logged = made.train_metrics()
    assert logged["train/bad_steps"] == 1
    assert logged["train/loss"] == pytest.approx(5.3, abs=0.7)  # the mean of the two good steps


def test_too_many_bad_steps_in_a_row_end_the_run_and_keep_the_checkpoint(trainer, tmp_path: Path) -> None:
    made = trainer(train__max_bad_steps=2, run__log_every=1)
    made.train_step()
    made.save(best=False)
    made.finish_saving()
    kept = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    made.bare.classifier.register_forward_hook(lambda _m, _x, y: y * float("nan"))
    made.train_step()
    made.train_step()
    with pytest.raises(UserError, match="not finite in 2 steps in a row up to step 3 .*optim.lr"):
        made.train_metrics()
    assert equal(kept, checkpoint.load_newest(tmp_path / "run" / "checkpoints"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_whitened_stem_stays_as_it_is(optimizer: str, trainer) -> None:
    made = trainer(model__whiten_stem=True, optim__name=optimizer)
    stem, ema = made.bare.stem[0].weight, made.ema.module.stem[0].weight
    before, other = stem.clone(), made.bare.classifier[2].weight.clone()
    assert torch.equal(stem[8:], -stem[:8])
    made.train_step()
    assert torch.equal(stem, before) and torch.equal(ema, before)
    assert not torch.equal(made.bare.classifier[2].weight, other)


def test_the_logged_learning_rate_is_the_one_the_step_used(trainer) -> None:
    made = trainer()
    made.train_step()
    assert made.train_metrics()["train/lr"] == made.optimizer.param_groups[0]["lr"]


def test_evaluation_leaves_training_as_it_was(trainer) -> None:
    made = trainer(**EVERYTHING)
    made.train_step()
    before = json.dumps({name: value.tolist() for name, value in made.bare.state_dict().items()})
    first, second = made.validate(), made.validate()
    assert first == second
    assert before == json.dumps({name: value.tolist() for name, value in made.bare.state_dict().items()})
    assert set(first) == {f"val/{kind}{name}" for kind in ("", "ema_") for name in ("top1", "top5", "loss")}


def test_evaluation_is_at_the_resolution_of_the_last_step_and_at_64_px_in_the_end(
    trainer, monkeypatch
) -> None:
    made = trainer(augment__start_size=32, augment__full_size_from=1.0)
    sizes = []
    monkeypatch.setattr(made.evaluator, "measure", lambda *_, size: sizes.append(size) or {})
    for step in (1, made.total_steps // 2 + 1, made.total_steps):
        made.state.step = step
        made.validate()
    assert sizes == [32, 32, 48, 48, 64, 64]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_it_overfits_a_few_images(precision: str, trainer) -> None:
    made = trainer(train__precision=precision, augment__crop_padding=0, augment__flip="false", optim__lr=0.5)
    made.batches.images = made.batches.images[:32].clone()
    made.batches.labels = made.batches.labels[:32] % 4
    made.train_step()
    start = made.train_metrics()["train/loss"]
    for _ in range(25):
        made.state.step = min(made.step, 5)
        made.train_step()
    made.train_metrics()
    made.train_step()
    assert made.train_metrics()["train/loss"] < start / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_is_compiled_in_its_steps_after_all_that_a_start_does_with_it(
    precision, trainer, tmp_path: Path
) -> None:
    """torch compiles no function again that it met while operations were counted, without a word."""
    made, counter = trainer(train__precision=precision), CompileCounter()
    made.bare.compile(backend=counter)
    report.started(made.run_dir, made)
    facts.write(made.run_dir, made, [])
    assert counter.frame_count == 0
    made.train_step()
    assert counter.frame_count > 0
    made.validate()
    made.train_step()
    assert counter.frame_count == 1
