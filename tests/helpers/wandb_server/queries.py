"""GraphQL queries of the W&B test server: its records as the objects that wandb 0.31 selects from."""

import json
import re
from typing import Any

import yaml

from helpers.wandb_server.artifacts import ArtifactQueries
from helpers.wandb_server.graphql import Node, connection
from helpers.wandb_server.records import (
    EVENTS,
    HISTORY,
    OUTPUT,
    StoredRun,
    View,
    timestamp,
)
from helpers.wandb_server.store import Store
from helpers.wandb_server.sweeps import Sweep

FEATURES = (
    "ARTIFACT_TAGS",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
)


class Queries:
    """Build the GraphQL objects. References between them are functions, so that only selected objects are built.

    Args:
        store: records of the server.
        url: URL of the server, for links to files.
    """

    def __init__(self, store: Store, url: str):
        self.store = store
        self.artifacts = ArtifactQueries(self, url)

    def root(self) -> Node:
        """Fields of the Query type."""

        def project(name: str = "", entityName: str = "") -> Node | None:
            key = (entityName or self.store.entity, name)
            return self.project(*key) if key in self.store.projects else None

        def mapping(clientID: str) -> Node | None:
            found = [a for a in self.store.artifacts.values() if a.client_id == clientID]
            return {"serverID": found[0].node} if found else None

        return {
            "viewer": self.user,
            "serverInfo": {"features": [{"name": name, "isEnabled": True} for name in FEATURES]},
            "entity": lambda name=self.store.entity: self.entity(name),
            "model": project,
            "project": project,
            "models": lambda entityName=self.store.entity, **_: self.projects(entityName),
            "artifact": lambda id: self.artifacts.version(self.store.artifacts.get(id)),
            "clientIDMapping": mapping,
            "view": lambda id: self.view(self.store.views[id]) if id in self.store.views else None,
        }

    def user(self) -> Node:
        """The only user."""
        return {
            "__typename": "User",
            "id": "VXNlcjox",
            "name": "Lab",
            "username": "lab",
            "email": "lab@localhost",
            "photoUrl": None,
            "admin": False,
            "flags": "{}",
            "entity": self.store.entity,
            "deletedAt": None,
            "defaultEntity": {"name": self.store.entity},
            "teams": connection([{"name": self.store.entity}]),
            "apiKeys": connection([]),
        }

    def entity(self, name: str) -> Node:
        """A team."""
        return {
            "id": f"E-{name}",
            "name": name,
            "isTeam": True,
            "organization": None,
            "projects": lambda **_: self.projects(name),
        }

    def projects(self, entity: str) -> Node:
        """Projects of a team."""
        return connection([self.project(owner, name) for owner, name in self.store.projects if owner == entity])

    def project(self, entity: str, name: str) -> Node:
        """A project, with access to its runs, sweeps, views and artifacts."""

        def run(name: str, missingOk: bool = False) -> Node | None:
            found = self.store.runs.get((entity, project, name))
            return self.run(found) if found else None

        def runs(filters: str = "{}", **_: Any) -> list[StoredRun]:
            mine = [r for r in self.store.runs.values() if (r.entity, r.project) == (entity, project)]
            sweep = re.search(r'"sweep(?:Name)?":\s*"([^"]+)"', filters)
            return [r for r in mine if not sweep or r.sweep == sweep[1]]

        def views(viewType: str = "runs", viewName: str | None = None, **_: Any) -> Node:
            mine = [v for v in self.store.views.values() if (v.entity, v.project) == (entity, project)]
            fitting = [v for v in mine if v.type == viewType and viewName in (None, v.name)]
            return connection([self.view(v) for v in fitting])

        project = name
        number, created = self.store.projects[entity, project]
        collections = [c for c in self.store.collections.values() if (c.entity, c.project) == (entity, project)]
        named = {c.name: c for c in collections}
        find = self.store.find_artifact
        return {
            "__typename": "Project",
            "id": f"P{number}",
            "internalId": str(number),
            "name": project,
            "entityName": entity,
            "entity": lambda: self.entity(entity),
            "description": None,
            "createdAt": created,
            "isBenchmark": False,
            "readOnly": False,
            "user": self.user,
            "run": run,
            "bucket": run,
            "runs": lambda **selection: connection([self.run(r) for r in runs(**selection)]),
            "runCount": lambda **selection: len(runs(**selection)),
            "sweep": lambda sweepName: self.sweep(self.store.sweeps.get(sweepName)),
            "allViews": views,
            "artifact": lambda name: self.artifacts.version(find(entity, project, name)),
            "artifactType": lambda name: self.artifacts.kind(name, collections),
            "artifactCollection": lambda name: self.artifacts.collection(named.get(name)),
            "artifactCollectionMembership": lambda name: self.artifacts.membership(find(entity, project, name)),
        }

    def run(self, run: StoredRun) -> Node:
        """A run, with the fields that a client needs to resume it and wandb.Api to read it."""

        def wandb_config(keys: list[str] | None = None) -> str:
            own = run.raw_config.get("_wandb", {}).get("value", {})
            return json.dumps({key: own[key] for key in keys or own if key in own})

        def history(minStep: int = 0, maxStep: int | None = None, samples: int = 0) -> list[str]:
            fits = range(minStep, run.line_count(HISTORY) if maxStep is None else maxStep)
            return [json.dumps(row) for row in run.history if row["_step"] in fits]

        def outputs(**_: Any) -> Node:
            return connection([self.artifacts.version(a) for a in self.store.committed() if a.run_id == run.id])

        return {
            "__typename": "Run",
            "id": run.node,
            "name": run.id,
            "displayName": run.display_name,
            "description": run.notes,
            "notes": run.notes,
            "tags": run.tags,
            "group": run.group,
            "groupName": run.group,
            "jobType": run.job_type,
            "sweepName": run.sweep,
            "commit": run.commit,
            "host": run.host,
            "project": lambda: self.project(run.entity, run.project),
            "projectId": str(self.store.projects[run.entity, run.project][0]),
            "user": self.user,
            "readOnly": False,
            "state": run.state,
            "running": run.state == "running",
            "failed": run.state in ("failed", "crashed"),
            "exitcode": run.exit_code,
            "stopped": run.stopped,
            "shouldStop": run.stopped,
            "createdAt": run.created,
            "heartbeatAt": timestamp(),
            "config": json.dumps(run.raw_config),
            "wandbConfig": wandb_config,
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": lambda: json.dumps(run.events[-1] if run.events else {}),
            # A client that resumes the run appends after these lines.
            "historyLineCount": run.line_count(HISTORY),
            "eventsLineCount": run.line_count(EVENTS),
            "logLineCount": run.line_count(OUTPUT),
            "historyTail": json.dumps(run.text(HISTORY)[-1:]),
            "eventsTail": json.dumps(run.text(EVENTS)[-1:]),
            "historyKeys": run.history_keys,
            "history": history,
            "sampledHistory": lambda specs: [run.select(**json.loads(spec)) for spec in specs],
            "parquetHistory": lambda liveKeys: {"parquetUrls": [], "liveData": run.history},
            "events": lambda **_: run.text(EVENTS),
            "files": lambda **selection: self.run_files(run, **selection),
            "fileCount": len(run.files),
            "inputArtifacts": lambda **_: connection([self.artifacts.version(a) for a in run.used]),
            "outputArtifacts": outputs,
        }

    def run_files(self, run: StoredRun, names: list[str] | None = None, pattern: str = "%", **_: Any) -> Node:
        """Uploaded files of a run; % in a pattern matches any text."""
        shape = re.compile(re.escape(pattern).replace("%", ".*"))
        chosen = [name for name in run.files if (not names or name in names) and shape.fullmatch(name)]
        return connection([self.artifacts.file(f"run-{run.node}", name, run.files[name]) for name in chosen])

    def sweep(self, sweep: Sweep | None) -> Node | None:
        """A sweep with its runs."""
        if sweep is None:
            return None
        runs = self.store.trials(sweep)
        return {
            "__typename": "Sweep",
            "id": f"S-{sweep.name}",
            "name": sweep.name,
            "displayName": sweep.config.get("name"),
            "description": sweep.config.get("description"),
            "method": sweep.config["method"],
            "state": "FINISHED" if sweep.finished else "RUNNING",
            "config": yaml.safe_dump(sweep.config),
            "createdAt": timestamp(),
            "heartbeatAt": None,
            "updatedAt": None,
            "earlyStopJobRunning": False,
            "bestLoss": None,
            "controller": None,
            "scheduler": None,
            "priorRunsFilters": None,
            "runCount": len(sweep.issued),
            "runCountExpected": None,
            "runLimit": sweep.config.get("run_cap"),
            "project": lambda: self.project(sweep.entity, sweep.project),
            "runs": lambda **_: connection([self.run(r) for r in runs]),
        }

    def view(self, view: View) -> Node:
        """A saved workspace or report."""
        return {
            "__typename": "View",
            "id": view.node,
            "name": view.name,
            "displayName": view.display_name,
            "description": view.description,
            "type": view.type,
            "spec": json.dumps(view.spec),
            "entityName": view.entity,
            "project": lambda: self.project(view.entity, view.project),
            "user": self.user,
            "createdAt": timestamp(),
            "updatedAt": timestamp(),
            "locked": False,
        }
