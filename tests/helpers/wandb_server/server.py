"""A small in-memory W&B server on 127.0.0.1, for tests with the unmodified wandb 0.31 client.

It is inferred from the client's protocol (HTTP here, GraphQL in queries.py and mutations.py). Tests therefore show what
the client does and what such a server would store, but not how wandb.ai behaves beyond that.
"""

import base64
import gzip
import json
import os
import re
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from helpers.wandb_server.graphql import Operation
from helpers.wandb_server.mutations import Mutations
from helpers.wandb_server.queries import Queries
from helpers.wandb_server.records import Artifact, StoredRun, View
from helpers.wandb_server.store import Store
from helpers.wandb_server.sweeps import Sweep

Answer = tuple[int, bytes]  # HTTP status and body


class WandbServer:
    """The server, which runs inside a `with` block.

    Args:
        entity: team of the only user.
        api_key: the only key that is accepted (clients require at least 40 characters).
        crash_after: seconds without a heartbeat after which a running run counts as crashed.
    """

    def __init__(self, entity: str = "lab", api_key: str = "k" * 40, crash_after: float = 60):
        self.entity, self.api_key = entity, api_key
        self.store = Store(entity, crash_after)
        self.requests: list[str] = []  # names of GraphQL operations
        self.unknown: set[str] = set()  # unsupported fields and paths that clients requested
        self.errors: list[str] = []  # tracebacks
        self.fault: Fault | None = None
        self.broken = 0  # number of requests that hit a fault
        self.lock = threading.RLock()
        self.http = HttpServer(self)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.queries = Queries(self.store, self.url)
        self.mutations = Mutations(self.queries)

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.break_with("reset")  # closes connections that are still open
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables that make a client use this server and write only inside `home`."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": self.api_key,
            "WANDB_MODE": "online",
            "WANDB_CACHE_DIR": str(home / "cache"),
            "WANDB_CONFIG_DIR": str(home / "config"),
            "WANDB_DATA_DIR": str(home / "data"),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # seconds between uploads of rows; the default is 15
            "HOME": str(home),
        }

    def run(self, id: str, project: str | None = None) -> StoredRun:
        """Find a run by its id.

        Raises:
            KeyError: there is no such run, or several projects have one and `project` is not given.
        """
        runs = list(self.store.runs.values())
        found = [run for run in runs if run.id == id and project in (None, run.project)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} runs {id!r} in {[(run.project, run.id) for run in runs]}")
        return found[0]

    def press_stop(self, id: str) -> None:
        """Press the stop button of a run."""
        self.run(id).stopped = True

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alerts from run.alert: title, text, severity, runName and more."""
        return self.store.alerts

    @property
    def artifacts(self) -> list[Artifact]:
        """All committed versions of all artifacts, in order of creation."""
        return self.store.committed()

    @property
    def views(self) -> list[View]:
        """Saved workspaces and reports."""
        return list(self.store.views.values())

    @property
    def sweeps(self) -> list[Sweep]:
        """All sweeps, in order of creation."""
        return list(self.store.sweeps.values())

    def break_with(self, what: str | int, path: str = "") -> None:
        """Break every request whose path contains `path`, until `heal`.

        Args:
            what: "reset" (close the connection without an answer), "hang" (no answer; the connection is closed when
                the server heals or ends) or an HTTP status.
            path: part of a path, such as /graphql, file_stream or /storage; "" for all paths.
        """
        self.heal()
        self.fault = Fault(what, path)

    def heal(self) -> None:
        """Answer requests again."""
        fault, self.fault = self.fault, None
        if fault:
            fault.over.set()

    def answer(self, method: str, path: str, body: bytes, client: str | None) -> Answer:
        """Answer a request that no fault intercepted."""
        if path == "/graphql":
            return self.graphql(json.loads(body))
        stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        if stream:
            run = self.store.run(*stream.groups())
            run.receive(json.loads(body), client)
            return 200, json.dumps({"exitcode": None, "limits": {}, "stopped": run.stopped}).encode()
        storage = re.fullmatch(r"/storage/([^/]+)/(.*)", path)
        if storage and storage[1] in self.store.folders:
            folder, name = self.store.folders[storage[1]], storage[2]
            if method == "PUT":
                folder[name] = body
            return (200, folder[name]) if name in folder else (404, b"")
        self.unknown.add(f"{method} {path}")
        return 404, b"{}"

    def graphql(self, request: dict[str, Any]) -> Answer:
        """Answer a query or mutation."""
        operation = Operation(request["query"], request.get("variables") or {}, self.unknown.add)
        self.requests.append(operation.name)
        root = self.mutations.root() if operation.is_mutation else self.queries.root()
        return 200, json.dumps({"data": operation.answer(root)}).encode()


class Fault:
    """A fault of the server; `over` is set when it is healed."""

    def __init__(self, what: str | int, path: str):
        if what not in ("reset", "hang") and not isinstance(what, int):
            raise ValueError(f'a fault is "reset", "hang" or an HTTP status, not {what!r}')
        self.what, self.path = what, path
        self.over = threading.Event()


class HttpServer(ThreadingHTTPServer):
    """HTTP server on a free port of 127.0.0.1; hung connections do not keep the process alive."""

    daemon_threads = True

    def __init__(self, server: WandbServer):
        self.wandb = server
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Record an error, but not a broken connection: tests kill clients."""
        error = traceback.format_exc()
        if "ConnectionResetError" not in error and "BrokenPipeError" not in error:
            self.wandb.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: HttpServer

    def handle_request(self) -> None:
        """Read a request, apply a fault if there is one, check the API key and answer."""
        server, path = self.server.wandb, unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = server.fault
        if fault and fault.path in path:
            server.broken += 1
            self.break_with(fault)
            return
        if not path.startswith("/storage/") and self.api_key() != server.api_key:
            self.send(401, b'{"errors": [{"message": "invalid API key"}]}')
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        client = self.headers.get("X-WANDB-ASYNC-CLIENT-ID")
        try:
            with server.lock:
                status, data = server.answer(self.command, path, body, client)
        except Exception as error:
            server.errors.append(traceback.format_exc())
            status = 200 if path == "/graphql" else 400  # after a 500 the client would retry forever
            data = json.dumps({"data": None, "errors": [{"message": repr(error)}]}).encode()
        self.send(status, data)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_request

    def break_with(self, fault: Fault) -> None:
        """Fail a request as the fault specifies."""
        if isinstance(fault.what, int):
            self.send(fault.what, b'{"errors": [{"message": "broken on purpose"}]}')
            return
        if fault.what == "hang":
            fault.over.wait()
        self.close_connection = True

    def api_key(self) -> str:
        """The API key of a request, from basic authentication (user:key) or a token."""
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(secret).decode().partition(":")[2] if kind == "Basic" else secret

    def send(self, status: int, data: bytes) -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing to the console."""


@pytest.fixture
def wandb_server(clean_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server for one test, used by every client in this process and its children."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    with WandbServer() as server:
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        yield server
    assert not server.unknown and not server.errors, (
        "The wandb client sent requests that the test server does not support. A newer client needs additions to "
        f"tests/helpers/wandb_server. Unknown: {sorted(server.unknown)}. Errors: {server.errors}"
    )
