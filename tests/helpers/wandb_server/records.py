"""Runs, artifacts and saved views as the W&B test server stores them, following the rules of W&B."""

import base64
import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HISTORY, EVENTS, OUTPUT, SUMMARY = (
    "wandb-history.jsonl",
    "wandb-events.jsonl",
    "output.log",
    "wandb-summary.json",
)


def timestamp() -> str:
    """The current time in the format of GraphQL answers."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(eq=False)
class StoredRun:
    """A run as the server stores it.

    Args:
        node: GraphQL node id; `id` is the id passed to wandb.init.
        crash_after: seconds without a request from the client after which a running run counts as crashed.
    """

    node: str
    entity: str
    project: str
    id: str
    crash_after: float
    display_name: str = ""
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    sweep: str | None = None
    commit: str | None = None
    host: str | None = None
    raw_config: dict[str, Any] = field(default_factory=dict, repr=False)  # {key: {"value": ...}}, with _wandb
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    used: list["Artifact"] = field(default_factory=list)
    exit_code: int | None = None
    resumed: int = 0  # how often the run was resumed; in shared mode, each additional client counts
    stopped: bool = False  # the stop button was pressed in this attempt
    was_preempting: bool = False
    created: str = field(default_factory=timestamp)
    lines: dict[str, dict[int, str]] = field(default_factory=dict, repr=False)  # file: line number: line
    _said: str = "running"
    _heard: float = 0.0
    _places: dict[tuple[str, str, int], int] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> str:
        """State of the run: running, finished, failed, crashed, preempting or preempted."""
        if time.monotonic() - self._heard > self.crash_after:
            return {"running": "crashed", "preempting": "preempted"}.get(self._said, self._said)
        return self._said

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as {key: value}, without the client's own entry."""
        return {key: item.get("value") for key, item in self.raw_config.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Logged rows, in order."""
        return [json.loads(line) for line in self.text(HISTORY)]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Rows of system metrics, in order."""
        return [json.loads(line) for line in self.text(EVENTS)]

    @property
    def output(self) -> list[str]:
        """Console output, without the timestamp of each line."""
        return [re.sub(r"^(ERROR )?\d{4}-\d\d-\d\dT\S+ ", "", line) for line in self.text(OUTPUT)]

    def text(self, file: str) -> list[str]:
        """Lines of a streamed file, in order."""
        return [line for _, line in sorted(self.lines.get(file, {}).items())]

    def line_count(self, file: str) -> int:
        """Number of lines that a client must keep when it resumes the run."""
        return max(self.lines.get(file, {}), default=-1) + 1

    def history_keys(self) -> dict[str, Any]:
        """How often each key was logged, and the last step."""
        rows = self.history
        counts = Counter(key for row in rows for key in row)
        keys = {key: {"typeCounts": [{"type": "number", "count": n}]} for key, n in counts.items()}
        return {"sets": [], "keys": keys, "lastStep": max((row["_step"] for row in rows), default=-1)}

    def select(
        self, keys: Sequence[str] = (), minStep: int = 0, maxStep: float = math.inf, **_: Any
    ) -> list[dict[str, Any]]:
        """Rows that have all keys, as in sampledHistory, but not sampled because there are few.

        maxStep is inclusive, unlike in `history`. W&B's own server does the same, and the client asks for one step less
        (wandb/wandb pull request 12010).
        """
        rows = [row for row in self.history if minStep <= row["_step"] <= maxStep]
        return [{key: row[key] for key in keys} if keys else row for row in rows if row.keys() >= set(keys)]

    def start(self) -> None:
        """A client starts or resumes this run."""
        self._said, self.exit_code, self.stopped = "running", None, False
        self.hear()

    def hear(self) -> None:
        """Note that the client is alive."""
        self._heard = time.monotonic()

    def receive(self, stream: dict[str, Any], client: str | None) -> None:
        """Store the rows of a file_stream request.

        Args:
            stream: decoded request body.
            client: id of the client in mode="shared", None in other modes. Each shared client numbers its own lines
                and steps from where it found the run, so lines are renumbered in order of arrival.
        """
        self.hear()
        for file, chunk in (stream.get("files") or {}).items():
            if file == SUMMARY:
                summary = json.loads(chunk["content"][-1])
                self.summary = {**self.summary, **summary} if client else summary
                continue
            lines = self.lines.setdefault(file, {})
            for number, line in enumerate(chunk["content"], chunk.get("offset") or 0):
                if not client:
                    lines[number] = line
                    continue
                place = self._places.setdefault((file, client, number), self.line_count(file))
                lines[place] = json.dumps({**json.loads(line), "_step": place}) if file == HISTORY else line
        if stream.get("preempting"):
            self._said, self.was_preempting = "preempting", True
        if stream.get("complete"):
            self.exit_code = stream.get("exitcode")
            failed = "preempted" if self._said == "preempting" else "failed"
            self._said = failed if self.exit_code else "finished"


@dataclass(eq=False)
class Collection:
    """Versions of one artifact name; each alias points to one version and can move."""

    entity: str
    project: str
    name: str
    type: str
    versions: list["Artifact"] = field(default_factory=list)
    aliases: dict[str, "Artifact"] = field(default_factory=dict)

    def find(self, alias: str) -> "Artifact | None":
        """The version with an alias such as best or a number such as v3."""
        return self.aliases.get(alias) or next((a for a in self.versions if a.version == alias), None)

    def assign(self, artifact: "Artifact") -> None:
        """Move the requested aliases and `latest` to a version."""
        for alias in (*artifact.asked_aliases, "latest"):
            self.aliases[alias] = artifact


@dataclass(eq=False)
class Artifact:
    """A version of an artifact; it has a version number and aliases once the client has committed it."""

    node: str
    collection: Collection
    run_id: str | None
    digest: str
    description: str | None
    metadata: dict[str, Any]
    asked_aliases: list[str]
    client_id: str | None = None
    version: str = ""
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    manifest: dict[str, bytes] = field(default_factory=dict, repr=False)  # {"": JSON}: a folder of one file
    created: str = field(default_factory=timestamp)

    @property
    def name(self) -> str:
        """Artifact name without the version."""
        return self.collection.name

    @property
    def type(self) -> str:
        """Type, as in wandb.Artifact."""
        return self.collection.type

    @property
    def aliases(self) -> list[str]:
        """Aliases that currently point to this version."""
        return [alias for alias, artifact in self.collection.aliases.items() if artifact is self]

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Manifest entries: file name to digest (base64 of the md5), size and more."""
        return json.loads(self.manifest[""])["contents"] if self.manifest else {}

    def commit(self, others: dict[str, "Artifact"]) -> None:
        """Make this the newest version.

        Raises:
            ValueError: a file of the manifest was not uploaded, or its contents differ.
        """
        for name, entry in self.entries.items():
            if "ref" in entry:
                continue
            birth = others.get(entry.get("birthArtifactID", ""))  # the artifact that uploaded an unchanged file
            if name not in self.files and birth and name in birth.files:
                self.files[name] = birth.files[name]
            if name not in self.files:
                raise ValueError(f"{self.name}: {name} was not uploaded")
            if base64_md5(self.files[name]) != entry["digest"]:
                raise ValueError(f"{self.name}: the md5 of {name} does not match the manifest")
        self.version = f"v{len(self.collection.versions)}"
        self.collection.versions.append(self)
        self.collection.assign(self)


def base64_md5(data: bytes) -> str:
    """Digest of a file, as in manifests."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@dataclass(eq=False)
class View:
    """A saved workspace (type project-view) or report (type runs)."""

    node: str
    entity: str
    project: str
    name: str
    display_name: str
    type: str
    description: str
    spec: dict[str, Any]
