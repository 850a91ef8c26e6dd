"""GraphQL objects for the artifacts of the W&B test server."""

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from helpers.wandb_server.graphql import Node, connection
from helpers.wandb_server.records import Artifact, Collection, base64_md5, timestamp

if TYPE_CHECKING:
    from helpers.wandb_server.queries import Queries


class ArtifactQueries:
    """Build the GraphQL objects.

    Args:
        queries: builds the objects of runs and projects.
        url: URL of the server, for links to files.
    """

    def __init__(self, queries: "Queries", url: str):
        self.queries, self.store, self.url = queries, queries.store, url

    def file(self, folder: str, name: str, data: bytes) -> Node:
        """A file to download."""
        link = self.link(folder, name)
        return {
            "__typename": "File",
            "id": name,
            "name": name,
            "displayName": name,
            "url": lambda **_: link,
            "directUrl": link,
            "sizeBytes": len(data),
            "mimetype": "application/octet-stream",
            "updatedAt": timestamp(),
            "digest": base64_md5(data),
            "md5": base64_md5(data),
            "storagePath": None,
        }

    def link(self, folder: str, name: str = "") -> str:
        """URL to which a file is uploaded and from which it is downloaded."""
        return f"{self.url}/storage/{folder}/{quote(name)}"

    def version(self, artifact: Artifact | None) -> Node | None:
        """One version of an artifact."""
        if artifact is None:
            return None
        manifest = {"id": artifact.node, "file": {"directUrl": self.link(f"manifest-{artifact.node}")}}
        run = next((r for r in self.store.runs.values() if r.id == artifact.run_id), None)
        users = [r for r in self.store.runs.values() if artifact in r.used]
        return {
            "__typename": "Artifact",
            "id": artifact.node,
            "state": "COMMITTED" if artifact.version else "PENDING",
            "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "description": artifact.description,
            "metadata": json.dumps(artifact.metadata),
            "labels": "[]",
            "tags": [],
            "ttlDurationSeconds": -1,
            "ttlIsInherited": False,
            "historyStep": None,
            "commitHash": artifact.node,
            "size": sum(len(data) for data in artifact.files.values()),
            "fileCount": len(artifact.files),
            "createdAt": artifact.created,
            "updatedAt": None,
            "versionIndex": int(artifact.version[1:]) if artifact.version else None,
            "artifactSequence": lambda: self.collection(artifact.collection),
            "artifactType": {"__typename": "ArtifactType", "id": artifact.type, "name": artifact.type},
            "currentManifest": manifest if artifact.manifest else None,
            "files": lambda **_: self.files(artifact),
            "filesByManifestEntries": lambda **_: self.files(artifact),
            "aliases": lambda **_: self.aliases(artifact),
            "createdBy": self.queries.run(run) if run else None,
            "usedBy": lambda **_: connection([self.queries.run(r) for r in users]),
            "artifactMemberships": lambda **_: connection([self.membership(artifact)]),
        }

    def files(self, artifact: Artifact) -> Node:
        """All files of a version."""
        folder = f"artifact-{artifact.node}"
        return connection([self.file(folder, name, data) for name, data in artifact.files.items()])

    def aliases(self, artifact: Artifact) -> list[Node]:
        """Aliases that currently point to this version."""
        return [
            {
                "__typename": "ArtifactAlias",
                "id": f"{artifact.name}:{alias}",
                "alias": alias,
                "artifactCollection": lambda: self.collection(artifact.collection),
                "artifactCollectionName": artifact.name,
            }
            for alias in artifact.aliases
        ]

    def membership(self, artifact: Artifact | None) -> Node | None:
        """A version as a member of its collection."""
        if artifact is None:
            return None
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"M-{artifact.node}",
            "versionIndex": int(artifact.version[1:]),
            "createdAt": artifact.created,
            "aliases": lambda **_: self.aliases(artifact),
            "artifactCollection": lambda: self.collection(artifact.collection),
            "artifact": lambda: self.version(artifact),
            "files": lambda **_: self.files(artifact),
        }

    def collection(self, collection: Collection | None) -> Node | None:
        """All versions of one artifact name."""
        if collection is None:
            return None
        newest_first = list(reversed(collection.versions))
        return {
            "__typename": "ArtifactSequence",
            "__interfaces": ("ArtifactCollection",),
            "id": f"C-{collection.name}",
            "name": collection.name,
            "description": None,
            "state": "READY",
            "createdAt": timestamp(),
            "updatedAt": None,
            "tags": connection([]),
            "project": lambda: self.queries.project(collection.entity, collection.project),
            "type": {"name": collection.type},
            "defaultArtifactType": {"name": collection.type},
            "aliases": lambda **_: connection([{"alias": alias} for alias in collection.aliases]),
            "artifacts": lambda **_: self.versions(collection),
            "artifactMemberships": lambda **_: connection([self.membership(a) for a in newest_first]),
            "artifactMembership": lambda aliasName: self.membership(collection.find(aliasName)),
            "latestArtifact": lambda: self.version(newest_first[0]) if newest_first else None,
        }

    def versions(self, collection: Collection) -> Node:
        """Versions of a collection; each edge has the version number."""
        page = connection([self.version(artifact) for artifact in collection.versions])
        for edge, artifact in zip(page["edges"], collection.versions, strict=True):
            edge["version"] = artifact.version
        return page

    def kind(self, name: str, collections: list[Collection]) -> Node:
        """An artifact type of a project with its collections."""
        mine = {c.name: c for c in collections if c.type == name}
        return {
            "__typename": "ArtifactType",
            "id": name,
            "name": name,
            "description": None,
            "createdAt": timestamp(),
            "artifactCollections": lambda **_: connection([self.collection(c) for c in mine.values()]),
            "artifactCollection": lambda name: self.collection(mine.get(name)),
        }
