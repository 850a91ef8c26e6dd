"""Downloads from a real server on this machine: resumed, retried and verified, or one helpful error."""

import fcntl
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tinyimnet.data import download
from tinyimnet.errors import UserError

CONTENT = bytes(range(256)) * 8192  # 2 MiB: several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serve CONTENT at any path except /missing; `requests` has the Range header of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []
        self.ranges = True
        self.breaks = 0  # how many more answers to break off half-way

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/tiny-imagenet-200.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.headers["Range"])
        if self.path == "/missing":
            return self.send_error(404)
        start = 0
        if self.server.ranges and self.headers["Range"]:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data/tiny-imagenet-200.zip"


def part_of(target: Path, content: bytes) -> Path:
    target.parent.mkdir(parents=True)
    part = target.with_name("tiny-imagenet-200.zip.part")
    part.write_bytes(content)
    return part


def fetch(target: Path, server: Server) -> Path:
    return download.fetch(target, server.url, len(CONTENT), SHA256)


def test_only_the_complete_file_is_left(target: Path, server: Server) -> None:
    assert fetch(target, server) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_partial_file_is_resumed(target: Path, server: Server) -> None:
    part_of(target, CONTENT[:500_000])
    assert fetch(target, server).read_bytes() == CONTENT
    assert server.requests == ["bytes=500000-"]


def test_a_complete_partial_file_is_not_requested_again(target: Path, server: Server) -> None:
    part_of(target, CONTENT)
    assert fetch(target, server).read_bytes() == CONTENT
    assert server.requests == []


def test_a_partial_file_that_is_too_long_is_discarded(target: Path, server: Server) -> None:
    part_of(target, CONTENT + b"x")
    assert fetch(target, server).read_bytes() == CONTENT
    assert server.requests == ["bytes=0-"]


def test_a_server_without_ranges_starts_from_zero(target: Path, server: Server) -> None:
    server.ranges = False
    part_of(target, CONTENT[:500_000])
    assert fetch(target, server).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed_where_it_broke(target: Path, server: Server) -> None:
    server.breaks = 2
    assert fetch(target, server).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.requests == ["bytes=0-", f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_connection_that_keeps_breaking_keeps_the_partial_file(target: Path, server: Server) -> None:
    server.breaks = 3
    with pytest.raises(UserError, match="the connection broke after 1,835,008 of 2,097,152 bytes"):
        fetch(target, server)
    assert target.with_name(f"{target.name}.part").read_bytes() == CONTENT[:1_835_008]


def test_a_complete_target_is_returned_without_a_request(target: Path, server: Server) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    assert fetch(target, server) == target
    assert server.requests == []


def test_an_unrelated_file_at_the_target_is_kept(target: Path, server: Server) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists but is not the archive"):
        fetch(target, server)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("size, sha256", [(len(CONTENT), "0" * 64), (len(CONTENT) - 300_000, SHA256)])
def test_a_file_with_a_wrong_digest_or_size_is_deleted(target: Path, server: Server, size: int, sha256: str) -> None:
    with pytest.raises(UserError, match="its sha256 or size differs"):
        download.fetch(target, server.url, size, sha256)
    assert list(target.parent.iterdir()) == []


def test_a_second_download_at_the_same_time_is_refused(target: Path, server: Server) -> None:
    part = part_of(target, CONTENT[:100])
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            fetch(target, server)
    assert part.read_bytes() == CONTENT[:100]


def test_a_404_is_not_retried(target: Path, server: Server) -> None:
    url = server.url.replace("tiny-imagenet-200.zip", "missing")
    with pytest.raises(UserError, match="HTTP Error 404: Not Found"):
        download.fetch(target, url, len(CONTENT), SHA256)
    assert len(server.requests) == 1


def test_without_a_network_the_error_names_url_target_and_alternatives(target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/tiny-imagenet-200.zip"
        with pytest.raises(UserError) as raised:
            download.fetch(target, url, len(CONTENT), SHA256)
    for part in (url, str(target), "python -m tinyimnet prepare PATH/", "--config configs/smoke.yaml"):
        assert part in str(raised.value)
    assert not list(target.parent.iterdir())


def test_progress_without_a_terminal_is_at_most_a_line_per_tenth(
    target: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(target, server)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "downloaded 100 % of 2 MB"
    assert 2 <= len(lines) <= 10
