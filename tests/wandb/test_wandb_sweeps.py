"""Sweeps of the unmodified wandb client on the test server."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.wandb_server.clients import QUICK, end, run_client, start_client
from helpers.wandb_server.server import WandbServer
from helpers.wandb_server.sweeps import Sweep, brackets, trials

AGENT = """
    from wandb.wandb_agent import Agent
    Agent.POLL_INTERVAL = 0.2  # the default is 5 s between requests for work
    wandb.agent(f"lab/t/{sys.argv[1]}", count=int(sys.argv[2]) or None)
"""


def write_trial(folder: Path, script: str, **config: object) -> dict:
    """Write the program of a sweep, and return the configuration of the sweep."""
    (folder / "trial.py").write_text("import sys, time, wandb\n" + textwrap.dedent(script))
    command = [sys.executable, "${program}"]
    return {"program": "trial.py", "method": "grid", "command": command, **config}


def add_sweep(server: WandbServer, config: dict) -> Sweep:
    """Create a sweep without a client."""
    sweep = Sweep("sweep1", *server.store.project("lab", "t"), config=config)
    server.store.sweeps[sweep.name] = sweep
    return sweep


def test_agents_share_a_sweep_that_an_earlier_agent_began(wandb_server: WandbServer, tmp_path: Path) -> None:
    script = f"""
        run = wandb.init(settings={QUICK})
        run.log({{"x": run.config["lr"]}})
    """
    config = write_trial(tmp_path, script, parameters={"lr": {"values": [1, 2, 3]}, "n": {"value": 7}})
    create = """
    import json
    sys.argv[1] = wandb.sweep(json.loads(sys.argv[1]), project="t")
    """
    run_client(tmp_path, create + AGENT, json.dumps(config), 1)
    (sweep,) = wandb_server.sweeps
    (first,) = wandb_server.store.trials(sweep)
    assert (first.config, first.state) == ({"lr": 1, "n": 7}, "finished")
    for process in [start_client(tmp_path, AGENT, sweep.name, 0) for _ in range(2)]:
        end(process)
    runs = wandb_server.store.trials(sweep)
    assert sorted(run.config["lr"] for run in runs) == [1, 2, 3]
    assert {(run.state, run.resumed) for run in runs} == {("finished", 0)}
    assert len(wandb_server.store.agents) == 3


def test_hyperband_stops_a_trial_that_falls_behind(wandb_server: WandbServer, tmp_path: Path) -> None:
    script = f"""
        run = wandb.init(settings={QUICK})
        for i in range(500):
            run.log({{"val/top1": run.config["top1"]}})
            time.sleep(0.05 if run.config["top1"] == 0.1 else 0)
    """
    config = write_trial(
        tmp_path,
        script,
        parameters={"top1": {"values": [0.9, 0.1]}},
        metric={"name": "val/top1", "goal": "maximize"},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3},
    )
    sweep = add_sweep(wandb_server, config)
    run_client(tmp_path, AGENT, sweep.name, 0)
    good, bad = wandb_server.store.trials(sweep)
    assert (good.state, len(good.history)) == ("finished", 500)
    assert 2 < len(bad.history) < 500


def test_a_preempted_trial_is_resumed_by_an_agent(wandb_server: WandbServer, tmp_path: Path) -> None:
    script = f"""
        run = wandb.init(resume="allow", settings={QUICK})
        run.log({{"x": run.config["lr"]}})
        if not run.resumed:
            run.mark_preempting()
            run.finish(exit_code=1)
            sys.exit(1)
    """
    config = write_trial(tmp_path, script, parameters={"lr": {"values": [1]}})
    sweep = add_sweep(wandb_server, config)
    run_client(tmp_path, AGENT, sweep.name, 0)
    (run,) = wandb_server.store.trials(sweep)
    assert (run.resumed, run.was_preempting, run.state, len(run.history)) == (1, True, "finished", 2)


def test_a_random_search_draws_from_each_distribution_up_to_the_cap() -> None:
    config = {
        "method": "random",
        "parameters": {
            "a": {"values": [1, 2]},
            "b": {"min": 1, "max": 3, "distribution": "int_uniform"},
            "c": {"min": 1e-4, "max": 1e-1, "distribution": "log_uniform_values"},
        },
        "run_cap": 50,
    }
    sweep = Sweep("s", "lab", "t", config)
    while sweep.next_trial(f"run{len(sweep.issued)}"):
        pass
    drawn = list(sweep.issued.values())
    assert len(drawn) == 50
    assert {p["b"] for p in drawn} == {1, 2, 3}
    rates = [p["c"] for p in drawn]
    assert 1e-4 < min(rates) < 1e-3 < max(rates) < 1e-1
    with pytest.raises(ValueError, match="'bayes'"):
        next(trials(config | {"method": "bayes"}))


def test_hyperband_brackets_match_the_documentation() -> None:
    assert brackets({"min_iter": 3, "eta": 3})[:4] == [3, 9, 27, 81]
    assert brackets({"max_iter": 27, "eta": 3, "s": 2}) == [3, 9]
