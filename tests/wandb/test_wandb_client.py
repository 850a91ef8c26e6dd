"""The unmodified wandb client against the test server, on which the other W&B tests rely."""

import hashlib
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from helpers.wandb_server.clients import QUICK, end, run_client, start_client, wait_until
from helpers.wandb_server.records import Artifact, Collection, StoredRun
from helpers.wandb_server.server import WandbServer

# Start or resume a run and log steps; the arguments are the first step and the step after the last.
LOG = f"""
    run = wandb.init(project="t", id="job", resume="allow", settings={QUICK})
    print("resumed", run.resumed, run.starting_step)
    for step in range(int(sys.argv[1]), int(sys.argv[2])):
        run.log({{"loss": 1 / (step + 1), "trainer/global_step": step}})
"""
FINISH = """
    run.finish()
"""
PREEMPT = """
    run.alert("title", "text")
    run.mark_preempting()
    run.finish(exit_code=1)
"""
WAIT = """
    time.sleep(60)
"""
READ = """
    key = "trainer/global_step"
    stored = wandb.Api().run(run.path)
    print("steps", [row[key] for row in stored.scan_history(keys=[key])], len(list(stored.scan_history())))
    print("sampled", len(stored.history(pandas=False)), "last", wandb.Api().run(run.path).summary[key])
"""


def first_run(server: WandbServer) -> StoredRun:
    """Wait for the run that a client starts, and return it."""
    wait_until(lambda: server.store.runs)
    return server.run("job")


def steps(run: StoredRun) -> list[int]:
    """Return the global steps of the rows that arrived."""
    return [row["trainer/global_step"] for row in run.history]


def test_a_run_arrives_with_config_rows_summary_and_console(wandb_server: WandbServer, tmp_path: Path) -> None:
    run_client(
        tmp_path,
        """
        config = {"lr": 0.1, "model": {"width": 8}}
        run = wandb.init(project="t", id="job", group="g", tags=["a"], config=config)
        run.config.update({"seed": 3})
        print("hello")
        for step in range(3):
            run.log({"loss": 3 - step})
        run.finish()
    """,
    )
    run = wandb_server.run("job", project="t")
    assert (run.state, run.exit_code, run.resumed) == ("finished", 0, 0)
    assert run.config == {"lr": 0.1, "model": {"width": 8}, "seed": 3}
    assert [(row["_step"], row["loss"]) for row in run.history] == [(0, 3), (1, 2), (2, 1)]
    assert run.summary["loss"] == 1
    assert (run.group, run.tags) == ("g", ["a"])
    assert "hello" in run.output
    assert any(key.startswith("system.") for row in run.events for key in row)
    assert "wandb-metadata.json" in run.files


def test_a_killed_run_resumes_and_the_api_reads_every_row(wandb_server: WandbServer, tmp_path: Path) -> None:
    process = start_client(tmp_path, LOG + WAIT, 0, 5)
    run = first_run(wandb_server)
    wait_until(lambda: len(run.history) == 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.state == "running"
    output = run_client(tmp_path, LOG + FINISH + READ, 5, 8)
    assert "resumed True 5" in output
    assert "steps [0, 1, 2, 3, 4, 5, 6, 7] 8" in output
    assert "sampled 8 last 7" in output
    assert steps(run) == [row["_step"] for row in run.history] == list(range(8))
    assert (run.state, run.resumed) == ("finished", 1)


def test_a_run_without_a_heartbeat_has_crashed_or_is_preempted() -> None:
    run = StoredRun("R1", "lab", "t", "job", crash_after=0.05)
    run.start()
    assert run.state == "running"
    time.sleep(0.1)
    assert run.state == "crashed"
    run.receive({"preempting": True}, None)
    assert run.state == "preempting"
    time.sleep(0.1)
    assert run.state == "preempted"


def test_an_offline_run_arrives_with_sync(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_client(tmp_path, LOG + FINISH, 0, 4)
    assert not wandb_server.requests
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    monkeypatch.setenv("WANDB_MODE", "online")
    sync = [sys.executable, "-m", "wandb", "sync", str(folder)]
    subprocess.run(sync, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    run = wandb_server.run("job")
    assert (run.state, steps(run)) == ("finished", [0, 1, 2, 3])


def test_clients_in_shared_mode_write_one_run(wandb_server: WandbServer, tmp_path: Path) -> None:
    script = f"""
        rank = int(sys.argv[1])
        shared = dict(x_label=f"rank_{{rank}}", x_primary=rank == 0, x_update_finish_state=rank == 0)
        run = wandb.init(project="t", id="job", mode="shared", settings={QUICK[:-1]}, **shared))
        for step in range(20):
            run.log({{f"rank_{{rank}}": step}})
            time.sleep(0.02)
        run.finish()
    """
    for process in [start_client(tmp_path, script, rank) for rank in range(2)]:
        end(process)
    run = wandb_server.run("job")
    for rank in range(2):
        key = f"rank_{rank}"
        assert [row[key] for row in run.history if key in row] == list(range(20))
        assert run.summary[key] == 19
        assert any(name.endswith(f"/l:{key}") for row in run.events for name in row)
    assert [row["_step"] for row in run.history] == list(range(40))
    assert run.state == "finished"


def test_an_artifact_is_downloaded_with_the_same_bytes(wandb_server: WandbServer, tmp_path: Path) -> None:
    output = run_client(
        tmp_path,
        """
        import hashlib, pathlib
        for version in range(2):
            with wandb.init(project="t", id=f"writer{version}") as run:
                pathlib.Path("best weights.bin").write_bytes(bytes([version]) * 100_000)
                artifact = wandb.Artifact("net", "model", metadata={"top1": version}, description="text")
                artifact.add_file("best weights.bin")
                run.log_artifact(artifact, aliases=["best"]).wait()
        with wandb.init(project="t", id="reader") as run:
            folder = run.use_artifact("net:best").download("used")
        stored = wandb.Api().artifact("lab/t/net:v0")
        print(stored.aliases, stored.type, stored.metadata, stored.logged_by().id)
        print([a.name for a in wandb.Api().run("lab/t/writer1").logged_artifacts()])
        data = pathlib.Path(stored.download("got"), "best weights.bin").read_bytes()
        print(hashlib.md5(data).hexdigest())
    """,
    )
    assert "[] model {'top1': 0} writer0" in output
    assert "['net:v1']" in output
    assert hashlib.md5(bytes(100_000)).hexdigest() in output
    assert (tmp_path / "used" / "best weights.bin").read_bytes() == b"\1" * 100_000
    old, new = wandb_server.artifacts
    assert (old.name, old.version, old.aliases, old.run_id) == ("net", "v0", [], "writer0")
    assert (new.type, new.version, sorted(new.aliases)) == ("model", "v1", ["best", "latest"])
    assert (new.metadata, new.description) == ({"top1": 1}, "text")
    assert new.files == {"best weights.bin": b"\1" * 100_000}
    assert wandb_server.run("reader").used == [new]


def test_an_artifact_that_differs_from_its_manifest_is_refused() -> None:
    artifact = Artifact("A1", Collection("lab", "t", "net", "model"), "job", "", None, {}, [])
    artifact.files["w"] = b"damaged"
    artifact.manifest[""] = json.dumps({"contents": {"w": {"digest": "1B2M2Y8AsgTpgAmY7PhCfg=="}}}).encode()
    with pytest.raises(ValueError, match="md5 of w"):
        artifact.commit({})


def test_the_stop_button_reaches_the_client_and_is_reset_on_resume(wandb_server: WandbServer, tmp_path: Path) -> None:
    script = f"""
        from wandb.sdk.lib.run_stopping import RunStopChecker
        RunStopChecker.__init__.__kwdefaults__["poll_interval"] = 0.5  # else 15 s
        stop = []
        settings = {QUICK[:-1]}, stop_fn=lambda: stop.append(1))
        run = wandb.init(project="t", id="job", settings=settings)
        for step in range(400):
            run.log({{"step": step}})
            time.sleep(0.1)
            if stop:
                sys.exit(run.finish(exit_code=3) or 3)
    """
    process = start_client(tmp_path, script)
    run = first_run(wandb_server)
    wandb_server.press_stop("job")
    end(process, exit_code=3)
    assert (run.stopped, run.state) == (True, "failed")
    run_client(tmp_path, LOG + FINISH, 0, 3)
    assert (run.stopped, run.state) == (False, "finished")


def test_a_preempted_run_is_marked_as_preempted(wandb_server: WandbServer, tmp_path: Path) -> None:
    run_client(tmp_path, LOG + PREEMPT, 0, 1)
    run = wandb_server.run("job")
    assert (run.state, run.exit_code, run.was_preempting) == ("preempted", 1, True)
    (alert,) = wandb_server.alerts
    assert (alert["runName"], alert["title"], alert["text"]) == ("job", "title", "text")


@pytest.mark.skipif(not importlib.util.find_spec("wandb_workspaces"), reason="needs the extra tinyimnet[dashboard]")
def test_workspaces_and_reports_are_kept(wandb_server: WandbServer, tmp_path: Path) -> None:
    run_client(
        tmp_path,
        """
        import wandb_workspaces.workspaces as ws
        import wandb_workspaces.reports.v2 as wr
        section = ws.Section(name="Quality", panels=[wr.LinePlot(y=["val/top1"])])
        ws.Workspace(entity="lab", project="t", name="Dashboard", sections=[section]).save()
        wr.Report(project="t", entity="lab", title="Results", description="d", blocks=[wr.H1("Table")]).save()
    """,
    )
    workspace, report = wandb_server.views
    assert (workspace.type, workspace.display_name) == ("project-view", "Dashboard")
    assert workspace.spec["section"]["panelBankConfig"]["sections"][0]["name"] == "Quality"
    assert (report.type, report.display_name, report.description) == ("runs", "Results", "d")


def test_rows_arrive_after_faults_in_the_middle_of_a_run(wandb_server: WandbServer, tmp_path: Path) -> None:
    retry = f"{QUICK[:-1]}, x_file_stream_retry_wait_min_seconds=1)"
    process = start_client(
        tmp_path,
        f"""
        run = wandb.init(project="t", id="job", settings={retry})
        step = 0
        while not os.path.exists("enough"):
            run.log({{"trainer/global_step": step}})
            step += 1
            time.sleep(0.05)
        run.finish()
    """,
    )
    run = first_run(wandb_server)
    for what in ("reset", "hang", 503):
        wandb_server.break_with(what, "file_stream")
        wait_until(lambda: wandb_server.broken)
        known = len(run.history)
        wandb_server.heal()
        wait_until(lambda: len(run.history) > known)  # noqa: B023  # it is called in this iteration
        wandb_server.broken = 0
    (tmp_path / "enough").touch()
    end(process)
    assert steps(run) == list(range(len(run.history)))
    assert run.state == "finished"


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_start_is_an_error_of_the_client(wandb_server: WandbServer, tmp_path: Path, status: int) -> None:
    wandb_server.break_with(status, "/graphql")
    output = run_client(
        tmp_path,
        """
        try:
            wandb.init(project="t")
        except Exception as error:
            print("failed:", type(error).__name__)
    """,
    )
    assert re.search(r"failed: (Comm|Authentication)Error", output)
    assert not wandb_server.store.runs


def test_a_hanging_request_gets_no_answer_when_the_server_heals() -> None:
    with WandbServer() as server:
        server.break_with("hang")
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=0.3)
        connection.request("GET", "/graphql")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        assert connection.sock is not None
        connection.sock.settimeout(5)
        threading.Timer(0.2, server.heal).start()
        assert connection.sock.recv(1) == b""


def test_an_unknown_field_is_null_and_reported() -> None:
    with WandbServer() as server:
        query = {"query": "query New { viewer { username shoeSize } }"}
        headers = {"Authorization": f"Bearer {server.api_key}"}
        request = urllib.request.Request(f"{server.url}/graphql", json.dumps(query).encode(), headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert json.load(answer) == {"data": {"viewer": {"username": "lab", "shoeSize": None}}}
        assert server.unknown == {"New.viewer.shoeSize"}
        assert server.requests == ["New"]


def test_the_environment_hides_the_settings_of_the_user(wandb_server: WandbServer) -> None:
    names = {name for name in os.environ if name.startswith("WANDB_")} | {"HOME"}
    assert names == set(wandb_server.environment(Path("home")))
