"""The training loop: bit-identical resume, equivalent accumulation, skipped non-finite steps, and learning."""

import json
import os
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from helpers.here import RANK
from helpers.trainings import EVERYTHING, equal, metrics
from tinyimnet.errors import UserError
from tinyimnet.files import read_lines
from tinyimnet.run import checkpoint
from tinyimnet.run.metrics import STEP
from tinyimnet.training import outcome, run_info
from tinyimnet.training.trainer import Trainer


@pytest.mark.parametrize("precision, optimizer", [("fp32", "sgd"), ("bf16", "sgd"), ("fp32", "muon")])
@pytest.mark.parametrize("stop_at", [3, 6, 7, 11])  # in an epoch, at its end, after it, at the end resolution
def test_a_resumed_run_equals_an_undisturbed_run(precision, optimizer, stop_at, trainer, tmp_path, monkeypatch) -> None:
    overrides = {**EVERYTHING, "train__precision": precision, "optim__name": optimizer}
    whole = trainer(**overrides, run__dir=tmp_path / "whole")
    assert whole.fit() == ""

    first = trainer(**overrides, run__dir=tmp_path / "parts")
    monkeypatch.setattr(first.stop, "agreed", lambda _: "a test" if first.step == stop_at else "")
    assert first.fit() == "a test"
    torch.rand(7)  # random numbers drawn meanwhile do not matter
    second = trainer(**overrides, run__dir=tmp_path / "parts")
    assert second.fit() == ""

    expected, found = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert expected["step"] == 12
    assert equal(expected, found)
    lines = [metrics(tmp_path / name) for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert [line[STEP] for line in lines[0]] == [2, 4, 6, 8, 10, 12]


@pytest.mark.long
def test_a_resumed_run_equals_an_undisturbed_run_on_all_cores(trainer, tmp_path, monkeypatch) -> None:
    """The other tests use one thread."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        test_a_resumed_run_equals_an_undisturbed_run("fp32", "sgd", 7, trainer, tmp_path, monkeypatch)
    finally:
        torch.set_num_threads(1)


def test_a_killed_run_replays_the_steps_after_its_last_checkpoint(trainer, tmp_path, monkeypatch) -> None:
    whole = trainer(**EVERYTHING, run__dir=tmp_path / "whole")
    whole.fit()
    first = trainer(**EVERYTHING, run__dir=tmp_path / "parts")

    def power_cut(_accelerator: object) -> str:
        if first.step == 11:
            raise RuntimeError("power cut")
        return ""

    monkeypatch.setattr(first.stop, "agreed", power_cut)
    with pytest.raises(RuntimeError):
        first.fit()
    trainer(**EVERYTHING, run__dir=tmp_path / "parts").fit()
    expected, found = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert equal(expected, found)
    steps = [line[STEP] for line in read_lines(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_after_damaged_checkpoints_new_ones_of_earlier_steps_are_kept(trainer, tmp_path, monkeypatch, caplog) -> None:
    """Only the newest two steps are kept; as long as the damaged ones counted as newest, each new one was removed."""

    def stop_at(step: int) -> Trainer:
        made = trainer(run__save_every=2)
        monkeypatch.setattr(made.stop, "agreed", lambda _: "a test" if made.step == step else "")
        made.fit()
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


def test_per_rank_state_is_averaged_for_a_different_number_of_ranks(trainer, tmp_path: Path) -> None:
    made = trainer()
    made.train_step()
    saved, _ = made.state.snapshot()
    ranks = torch.stack([saved["by_rank"]["model"][0], 3 * saved["by_rank"]["model"][0]])
    made.state.restore({**saved, "by_rank": {**saved["by_rank"], "model": ranks}})
    assert torch.equal(made.state.statistics, ranks.mean(0))


def test_a_resumed_run_knows_the_best_so_far(trainer) -> None:
    first = trainer()
    first.train_step()
    first.state.best_top1 = 99.0
    first.save(best=False)
    first.finish_saving()
    assert trainer().state.best_top1 == 99.0


def test_a_snapshot_does_not_change_while_the_training_continues(trainer) -> None:
    made = trainer()
    made.train_step()
    snapshot, _ = made.state.snapshot()
    before = deepcopy(snapshot)
    made.train_step()
    assert equal(snapshot, before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_snapshot_is_one_copy_that_keeps_memory_layouts(optimizer, trainer) -> None:
    made = trainer(optim__name=optimizer)
    made.train_step()
    snapshot, _ = made.state.snapshot()
    weights, copies = made.bare.state_dict(), snapshot["model"]
    assert {name: t.stride() for name, t in copies.items()} == {name: t.stride() for name, t in weights.items()}
    momenta = [value for entry in snapshot["optimizer"]["state"].values() for value in entry.values()]
    tensors = [*copies.values(), *snapshot["ema"].values(), *momenta, *snapshot["by_rank"].values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def test_the_scaler_of_fp16_resumes_with_its_scale(trainer) -> None:
    made = trainer()
    scaler = made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # creates its tensors
    scaler.update(4.0)
    snapshot, _ = made.state.snapshot()
    expected = scaler.state_dict()
    made.accelerator.scaler = torch.amp.GradScaler("cpu")
    made.state.restore(snapshot)
    assert made.accelerator.scaler.state_dict() == expected


def test_accumulation_takes_the_same_step(trainer, tmp_path: Path) -> None:
    """BatchNorm is in eval mode, because its batch statistics belong to a forward pass; only float order differs."""
    weights = []
    for name, device_batch_size in (("one", 0), ("four", 8)):
        made = trainer(train__device_batch_size=device_batch_size, train__precision="fp32", run__dir=tmp_path / name)
        for norm in (m for m in made.bare.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.eval()
            norm.train = lambda _mode=True, norm=norm: norm
        for _ in range(4):
            made.train_step()
        weights.append(torch.cat([p.detach().flatten() for p in made.bare.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=1e-4)


def test_a_non_finite_step_leaves_nothing_behind_and_is_counted(trainer) -> None:
    made = trainer()
    made.train_step()
    kept = [*made.bare.parameters(), made.state.statistics, *made.ema.module.parameters()]
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
    assert logged["train/skipped_steps"] == 1
    assert logged["train/loss"] == pytest.approx(5.3, abs=0.7)  # the mean of the two good steps


def test_too_many_skipped_steps_end_the_run_and_keep_the_checkpoint(trainer, tmp_path: Path) -> None:
    made = trainer(train__max_skipped_steps=2, run__log_every=1)
    made.train_step()
    made.save(best=False)
    made.finish_saving()
    kept = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    made.bare.classifier.register_forward_hook(lambda _m, _x, y: y * float("nan"))
    made.train_step()
    made.train_step()
    with pytest.raises(UserError, match="not finite in 2 consecutive steps up to step 3 .*optim.lr"):
        made.train_metrics()
    assert equal(kept, checkpoint.load_newest(tmp_path / "run" / "checkpoints"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_whitened_stem_does_not_change(optimizer: str, trainer) -> None:
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


@pytest.mark.parametrize(("keys", "last"), [({}, 64), ({"augment__end_resolution": 72}, 72)])
def test_evaluation_uses_the_resolution_of_the_last_step(keys: dict, last: int, trainer, monkeypatch) -> None:
    made = trainer(augment__start_resolution=32, augment__full_resolution_from=1.0, **keys)
    sizes = []
    monkeypatch.setattr(made.evaluator, "measure", lambda *_, resolution: sizes.append(resolution) or {})
    for step in (1, made.total_steps // 2 + 1, made.total_steps):
        made.state.step = step
        made.validate()
    assert sizes == [32, 32, 48, 48, last, last]


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
def test_a_network_is_compiled_in_its_first_step_and_not_at_the_start(precision, trainer, tmp_path: Path) -> None:
    """torch silently never compiles a function that it first met while operations were counted."""
    made, counter = trainer(train__precision=precision), CompileCounter()
    made.bare.compile(backend=counter)
    outcome.started(tmp_path, made)
    run_info.write(tmp_path, made, [RANK])
    assert counter.frame_count == 0
    made.train_step()
    assert counter.frame_count > 0
    made.validate()
    made.train_step()
    assert counter.frame_count == 1


def test_a_run_says_how_many_graphs_it_compiles_and_when(trainer, monkeypatch, capsys) -> None:
    compile_it = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **_: compile_it(model, backend="eager"))
    settings = {"train__compile": True, "augment__start_resolution": 48, "augment__full_resolution_from": 0.8}
    trainer(**settings, augment__end_resolution=72).fit()
    said = [line for line in capsys.readouterr().out.splitlines() if "compile" in line]
    assert said[0] == "torch.compile makes 4 graphs, before the first step at 48, 56, 64, 72 px"
    places = [re.sub(r" in \d+ s", "", line) for line in said[1:]]
    assert places == [f"compiled for {size} px, {left} to come" for size, left in ((48, 3), (56, 2), (64, 1), (72, 0))]


def test_a_resumed_run_compiles_only_for_the_resolutions_to_come(trainer) -> None:
    settings = {"train__compile": True, "augment__start_resolution": 48, "augment__full_resolution_from": 0.8}
    made = trainer(**settings)
    made.state.step = 11
    made.save(best=False)
    made.finish_saving()
    assert trainer(**settings)._to_compile == {64}
