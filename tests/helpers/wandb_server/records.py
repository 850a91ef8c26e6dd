"""What the W&B test server keeps of runs, artifacts and saved views, by the rules of W&B."""

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
    """Now, as GraphQL answers give it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(eq=False)
class StoredRun:
    """One run as the server knows it.

    Args:
        node: its id in GraphQL; `id` is what wandb.init calls id.
        crash_after: seconds without a word of the client after which a running run counts as crashed.
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
    resumed: int = 0  # how often it was started again; in shared mode each further client counts
    stopped: bool = False  # somebody pressed the stop button in this attempt
    was_preempting: bool = False
    created: str = field(default_factory=timestamp)
    lines: dict[str, dict[int, str]] = field(default_factory=dict, repr=False)  # file: line number: line
    _said: str = "running"
    _heard: float = 0.0
    _places: dict[tuple[str, str, int], int] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> str:
        """running, finished, failed, crashed, preempting or preempted."""
        if time.monotonic() - self._heard > self.crash_after:
            return {"running": "crashed", "preempting": "preempted"}.get(self._said, self._said)
        return self._said

    @property
    def config(self) -> dict[str, Any]:
        """{key: value}, without what the client adds for itself."""
        return {key: item.get("value") for key, item in self.raw_config.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows, in order."""
        return [json.loads(line) for line in self.text(HISTORY)]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The rows of system metrics, in order."""
        return [json.loads(line) for line in self.text(EVENTS)]

    @property
    def output(self) -> list[str]:
        """The console, without the time before each line."""
        return [re.sub(r"^(ERROR )?\d{4}-\d\d-\d\dT\S+ ", "", line) for line in self.text(OUTPUT)]

    def text(self, file: str) -> list[str]:
        """The lines of a streamed file, in order."""
        return [line for _, line in sorted(self.lines.get(file, {}).items())]

    def line_count(self, file: str) -> int:
        """Lines that a client which resumes the run has to leave alone."""
        return max(self.lines.get(file, {}), default=-1) + 1

    def history_keys(self) -> dict[str, Any]:
        """Which keys were logged how often, and the last step."""
        rows = self.history
        counts = Counter(key for row in rows for key in row)
        keys = {key: {"typeCounts": [{"type": "number", "count": n}]} for key, n in counts.items()}
        return {"sets": [], "keys": keys, "lastStep": max((row["_step"] for row in rows), default=-1)}

    def select(
        self, keys: Sequence[str] = (), minStep: int = 0, maxStep: float = math.inf, **_: Any
    ) -> list[dict[str, Any]]:
        """The rows that have all keys, as sampledHistory gives them; they are too few here to be sampled.

        maxStep is in the range, unlike in GraphQL's history: so it is on W&B's own server, and the client asks for
        one step less (wandb/wandb pull request 12010).
        """
        rows = [row for row in self.history if minStep <= row["_step"] <= maxStep]
        return [{key: row[key] for key in keys} if keys else row for row in rows if row.keys() >= set(keys)]

    def start(self) -> None:
        """A client begins with this run, the first one or a later one."""
        self._said, self.exit_code, self.stopped = "running", None, False
        self.hear()

    def hear(self) -> None:
        """The client attempts."""
        self._heard = time.monotonic()

    def receive(self, stream: dict[str, Any], client: str | None) -> None:
        """Take one file_stream request.

        Args:
            stream: the decoded body.
            client: the id of a client in mode="shared", None in other modes. Each of these counts its own lines
                and steps from where it found the run, so here they get places in the order in which they arrive.
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
    """The versions of one artifact name; an alias is at one version, and moves."""

    entity: str
    project: str
    name: str
    type: str
    versions: list["Artifact"] = field(default_factory=list)
    aliases: dict[str, "Artifact"] = field(default_factory=dict)

    def find(self, alias: str) -> "Artifact | None":
        """The version with an alias such as best, or a number such as v3."""
        return self.aliases.get(alias) or next((a for a in self.versions if a.version == alias), None)

    def assign(self, artifact: "Artifact") -> None:
        """Move the aliases that a client asked for to a version; the newest one is always latest, too."""
        for alias in (*artifact.asked_aliases, "latest"):
            self.aliases[alias] = artifact


@dataclass(eq=False)
class Artifact:
    """One version. It has a version and aliases once the client has committed it."""

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
        """Without the version."""
        return self.collection.name

    @property
    def type(self) -> str:
        """As in wandb.Artifact."""
        return self.collection.type

    @property
    def aliases(self) -> list[str]:
        """Those that are at this version now."""
        return [alias for alias, artifact in self.collection.aliases.items() if artifact is self]

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The manifest: file name to digest (base64 of the md5), size and more."""
        return json.loads(self.manifest[""])["contents"] if self.manifest else {}

    def commit(self, others: dict[str, "Artifact"]) -> None:
        """Make it the newest version.

        Raises:
            ValueError: a file of the manifest did not arrive, or with other bytes.
        """
        for name, entry in self.entries.items():
            if "ref" in entry:
                continue
            birth = others.get(entry.get("birthArtifactID", ""))  # it uploaded a file that is unchanged
            if name not in self.files and birth and name in birth.files:
                self.files[name] = birth.files[name]
            if name not in self.files:
                raise ValueError(f"{self.name}: {name} was not uploaded")
            if base64_md5(self.files[name]) != entry["digest"]:
                raise ValueError(f"{self.name}: the md5 of {name} is not that of the manifest")
        self.version = f"v{len(self.collection.versions)}"
        self.collection.versions.append(self)
        self.collection.assign(self)


def base64_md5(data: bytes) -> str:
    """The digest of a file in manifests."""
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
