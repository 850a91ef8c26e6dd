"""Storage and lookup of all records of a W&B test server."""

import itertools
import time
from typing import Any

from helpers.wandb_server.records import Artifact, Collection, StoredRun, View, timestamp
from helpers.wandb_server.sweeps import Agent, Sweep


class Store:
    """In-memory store of a server."""

    def __init__(self, entity: str, crash_after: float):
        self.entity, self.crash_after = entity, crash_after
        self.projects: dict[tuple[str, str], tuple[int, str]] = {}  # (entity, name): number, time
        self.runs: dict[tuple[str, str, str], StoredRun] = {}  # (entity, project, id)
        self.collections: dict[tuple[str, str, str], Collection] = {}  # (entity, project, name)
        self.artifacts: dict[str, Artifact] = {}  # by node id, like the next three
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Agent] = {}
        self.views: dict[str, View] = {}
        self.alerts: list[dict[str, Any]] = []
        self.folders: dict[str, dict[str, bytes]] = {}  # uploaded files, by folder in /storage
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A new number on each call."""
        return next(self._numbers)

    def project(self, entity: str | None, name: str | None) -> tuple[str, str]:
        """Key of a project, which is created if it is missing."""
        key = (entity or self.entity, name or "uncategorized")
        self.projects.setdefault(key, (self.number(), timestamp()))
        return key

    def run(self, entity: str | None, project: str, id: str) -> StoredRun:
        """Look up a run that a client has started."""
        return self.runs[entity or self.entity, project, id]

    def add_run(self, entity: str, project: str, id: str) -> StoredRun:
        """Create a run."""
        node = f"R{self.number()}"
        run = StoredRun(node, entity, project, id, crash_after=self.crash_after, display_name=id)
        self.runs[entity, project, id] = run
        self.folders[f"run-{run.node}"] = run.files
        return run

    def run_of_node(self, node: str) -> StoredRun:
        """The run with this GraphQL node id."""
        return next(run for run in self.runs.values() if run.node == node)

    def trials(self, sweep: Sweep) -> list[StoredRun]:
        """Runs of a sweep that have started."""
        return [run for run in self.runs.values() if run.sweep == sweep.name]

    def any_busy(self, sweep: Sweep) -> bool:
        """Whether any live agent of the sweep has a trial that has not ended."""
        ended = {run.id for run in self.trials(sweep) if run.state not in ("running", "preempting")}
        return any(
            set(agent.trials) - ended and time.monotonic() - agent.heard < self.crash_after
            for agent in self.agents.values()
            if agent.sweep is sweep
        )

    def add_artifact(self, artifact: Artifact) -> None:
        """Store a new version that is not committed yet."""
        self.artifacts[artifact.node] = artifact
        self.folders[f"artifact-{artifact.node}"] = artifact.files
        self.folders[f"manifest-{artifact.node}"] = artifact.manifest

    def find_artifact(self, entity: str, project: str, name: str) -> Artifact | None:
        """The version that name:alias or name:v3 refers to."""
        base, _, alias = name.partition(":")
        collection = self.collections.get((entity, project, base))
        return collection.find(alias or "latest") if collection else None

    def committed(self) -> list[Artifact]:
        """All committed versions."""
        return [artifact for artifact in self.artifacts.values() if artifact.version]
