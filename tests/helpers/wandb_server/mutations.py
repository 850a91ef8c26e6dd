"""GraphQL mutations that wandb 0.31 sends to the W&B test server."""

import base64
import json
import uuid
from typing import Any

import yaml

from helpers.wandb_server.graphql import Node, connection
from helpers.wandb_server.queries import Queries
from helpers.wandb_server.records import Artifact, Collection, View
from helpers.wandb_server.sweeps import Agent, Sweep

RUN_FIELDS = {
    "displayName": "display_name",
    "notes": "notes",
    "groupName": "group",
    "jobType": "job_type",
    "tags": "tags",
    "sweep": "sweep",
    "commit": "commit",
    "host": "host",
}


class Mutations:
    """The mutations. Each takes the client's `input`, in which omitted fields are missing or null."""

    def __init__(self, queries: Queries):
        self.queries, self.artifacts, self.store = queries, queries.artifacts, queries.store

    def root(self) -> Node:
        """Fields of the Mutation type."""
        return {
            "upsertBucket": self.upsert_run,
            "stopRun": self.stop_run,
            "createRunFiles": self.create_run_files,
            "notifyScriptableRunAlert": self.alert,
            "createArtifact": self.create_artifact,
            "createArtifactManifest": lambda input: self.manifest(input["artifactID"]),
            "updateArtifactManifest": lambda input: self.manifest(input["artifactManifestID"]),
            "createArtifactFiles": self.create_artifact_files,
            "commitArtifact": self.commit_artifact,
            "useArtifact": self.use_artifact,
            "upsertSweep": self.upsert_sweep,
            "createAgent": self.create_agent,
            "agentHeartbeat": self.heartbeat,
            "upsertView": self.upsert_view,
            "upsertModel": self.upsert_project,
        }

    def upsert_run(self, input: Node) -> Node:
        """Start, resume or update a run."""
        if input.get("name"):
            key = (*self.store.project(input.get("entityName"), input.get("modelName")), input["name"])
            inserted = key not in self.store.runs
            run = self.store.add_run(*key) if inserted else self.store.run(*key)
        else:
            run, inserted = self.store.run_of_node(input["id"]), False
        for name, attribute in RUN_FIELDS.items():
            if input.get(name) is not None:
                setattr(run, attribute, input[name])
        if input.get("config"):
            run.raw_config = json.loads(input["config"])
        if input.get("summaryMetrics"):
            run.summary = json.loads(input["summaryMetrics"])
        if input.get("host") is not None:  # the client sends its host only when it starts a run
            run.start()
            run.resumed += not inserted
        return {
            "bucket": self.queries.run(run),
            "inserted": inserted,
            "serverSettings": {"serverMessages": []},
        }

    def stop_run(self, input: Node) -> Node:
        """Press the stop button; the answer to the client's next file_stream request reports it."""
        self.store.run_of_node(input["id"]).stopped = True
        return {"success": True}

    def create_run_files(self, input: Node) -> Node:
        """Upload URLs for files of a run."""
        run = self.store.run(input.get("entityName"), input["projectName"], input["runName"])
        link = self.artifacts.link
        files = [{"name": name, "uploadUrl": link(f"run-{run.node}", name)} for name in input["files"]]
        return {"runID": run.node, "uploadHeaders": [], "files": files}

    def alert(self, input: Node) -> Node:
        """Store an alert from run.alert."""
        self.store.alerts.append(input)
        return {"success": True}

    def create_artifact(self, input: Node) -> Node:
        """Create a version; content identical to the newest version only moves the aliases."""
        key = (
            *self.store.project(input.get("entityName"), input["projectName"]),
            input["artifactCollectionName"],
        )
        collection = self.store.collections.setdefault(key, Collection(*key, type=input["artifactTypeName"]))
        artifact = Artifact(
            node=f"A{self.store.number()}",
            collection=collection,
            run_id=input.get("runName"),
            digest=input["digest"],
            description=input.get("description"),
            metadata=json.loads(input.get("metadata") or "{}"),
            asked_aliases=[alias["alias"] for alias in input.get("aliases") or []],
            client_id=input.get("clientID"),
        )
        newest = collection.versions[-1] if collection.versions else None
        if newest and input.get("enableDigestDeduplication") and newest.digest == artifact.digest:
            newest.asked_aliases = artifact.asked_aliases
            collection.assign(newest)
            return {"artifact": self.artifacts.version(newest)}
        self.store.add_artifact(artifact)
        return {"artifact": self.artifacts.version(artifact)}

    def manifest(self, node: str) -> Node:
        """Upload URL for the manifest of an artifact; its id is the artifact's node id."""
        file = {"id": node, "uploadUrl": self.artifacts.link(f"manifest-{node}"), "uploadHeaders": []}
        return {"artifactManifest": {"id": node, "file": file}}

    def create_artifact_files(self, input: Node) -> Node:
        """Upload URLs for the files of an artifact."""
        return {"files": connection([self.upload(**file) for file in input["artifactFiles"]])}

    def upload(self, artifactID: str, name: str, **_: Any) -> Node:
        """Upload URL for one file of an artifact."""
        return {
            "name": name,
            "storagePath": f"{artifactID}/{name}",
            "uploadUrl": self.artifacts.link(f"artifact-{artifactID}", name),
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": artifactID},
        }

    def commit_artifact(self, input: Node) -> Node:
        """Commit a version whose files match the manifest."""
        artifact = self.store.artifacts[input["artifactID"]]
        artifact.commit(self.store.artifacts)
        return {"artifact": self.artifacts.version(artifact)}

    def use_artifact(self, input: Node) -> Node:
        """Record that a run reads an artifact."""
        artifact = self.store.artifacts[input["artifactID"]]
        run = self.store.run(input.get("entityName"), input["projectName"], input["runName"])
        run.used.append(artifact)
        return {"artifact": self.artifacts.version(artifact)}

    def upsert_sweep(self, input: Node) -> Node:
        """Create a sweep; updating one is not supported."""
        config = yaml.safe_load(input["config"])
        project = self.store.project(input.get("entityName"), input.get("projectName"))
        sweep = Sweep(uuid.uuid4().hex[:8], *project, config=config)
        self.store.sweeps[sweep.name] = sweep
        return {"sweep": self.queries.sweep(sweep), "configValidationWarnings": []}

    def create_agent(self, input: Node) -> Node:
        """Register an agent of a sweep."""
        node = f"Agent{self.store.number()}"
        self.store.agents[node] = Agent(self.store.sweeps[input["sweep"]])
        return {"agent": {"id": node}}

    def heartbeat(self, input: Node) -> Node:
        """Tell an agent what to do next."""
        agent = self.store.agents[input["id"]]
        trials = json.loads(input.get("runState") or "{}")
        running = [run_id for run_id, alive in trials.items() if alive]
        agent.hear(running)
        commands = self.commands(agent.sweep, running)
        agent.trials += [command["run_id"] for command in commands if command["type"] in ("run", "resume")]
        return {"agent": {"id": input["id"]}, "commands": json.dumps(commands)}

    def commands(self, sweep: Sweep, running: list[str]) -> list[dict[str, Any]]:
        """Commands for an agent, given the trials that it runs.

        An idle agent gets a preempted trial if there is one, else a new trial. Otherwise it waits while other agents
        run trials, since these can be preempted, and then exits.
        """
        runs = self.store.trials(sweep)
        if running:
            behind = [run.id for run in runs if run.id in running and sweep.falls_behind(run, runs)]
            return [{"type": "stop", "run_id": run_id} for run_id in behind]
        for run in runs:
            if run.state == "preempted":
                run.start()  # otherwise the next agent would get it too
                return [sweep.command("resume", run.id)]
        run_id = uuid.uuid4().hex[:8]
        if sweep.next_trial(run_id):
            return [sweep.command("run", run_id)]
        if self.store.any_busy(sweep):
            return []
        sweep.finished = True
        return [{"type": "exit"}]

    def upsert_view(self, input: Node) -> Node:
        """Save a workspace or report."""
        # wandb-workspaces looks a report up by the end of its URL, which it decodes as base64.
        node = input.get("id") or base64.b64encode(f"View:{self.store.number()}".encode()).decode()
        inserted = node not in self.store.views
        entity, project = self.store.project(input.get("entityName"), input.get("projectName"))
        view = View(
            node=node,
            entity=entity,
            project=project,
            name=input.get("name") or "",
            display_name=input.get("displayName") or "",
            type=input.get("type") or "",
            description=input.get("description") or "",
            spec=json.loads(input["spec"]),
        )
        self.store.views[node] = view
        return {"view": self.queries.view(view), "inserted": inserted}

    def upsert_project(self, input: Node) -> Node:
        """Create a project."""
        project = self.queries.project(*self.store.project(input.get("entityName"), input.get("name")))
        return {"model": project, "project": project, "inserted": True}
