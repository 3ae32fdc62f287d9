"""A server on this machine that speaks W&B's protocol as far as the client 0.31 asks: GraphQL, the file stream, and the
storage that files are put to. It keeps what arrives; a test may stop it in the middle, and start it again.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "gardener"


@dataclass
class ServedRun:
    """A run as the server has it."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)  # of the upserts, the last that is not null
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)  # of the history, by their place
    summary: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    exit_code: int | None = None
    starts: int = 0  # of sessions

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in their order; a gap is a defect."""
        assert sorted(self.lines) == list(range(len(self.lines))), f"lines {sorted(self.lines)}"
        return [json.loads(self.lines[i]) for i in sorted(self.lines)]

    @property
    def settings(self) -> dict[str, Any]:
        """What was sent as config, without W&B's own."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}


class WandbServer:
    """Listens while it is entered."""

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.committed: list[str] = []  # artifacts whose files are all there
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []  # operations and paths, in their order
        self.headers: list[dict[str, str]] = []
        self.unknown: list[str] = []
        self.pause_s = 0.0
        self.lock = threading.RLock()
        self.port = 0
        self.server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        """For WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """On the port that it had before, if it had one."""
        self.server = _Server(("127.0.0.1", self.port), _handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Nobody answers any more."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, operation: str, given: dict[str, Any], query: str) -> dict[str, Any]:
        """To a GraphQL request."""
        own = getattr(self, f"_{operation}", None)
        if own is None:
            self.unknown.append(f"{operation}: {' '.join(query.split())}")
            return {}
        return dict(own(given))

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """The file stream of a run."""
        run = self.runs[name]
        for file, chunk in body.get("files", {}).items():
            if file == "wandb-history.jsonl":
                run.lines |= {chunk["offset"] + i: line for i, line in enumerate(chunk["content"])}
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if body.get("complete"):
            run.complete, run.exit_code = True, body.get("exitcode")

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _GetDefaultEntity(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "v", "entity": ENTITY}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": None}
        tail = [run.lines[i] for i in sorted(run.lines)[-1:]]
        bucket = {
            "id": run.name,
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.fields.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.fields.get("tags"),
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "m", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, ServedRun(name))
        run.fields |= {key: value for key, value in given.items() if value is not None}
        if inserted and given.get("sweep"):
            self.sweeps[given["sweep"]]["state"] = "RUNNING"
        if given.get("config"):
            run.config = json.loads(given["config"])
        if given.get("groupName") or given.get("displayName"):
            run.starts += 1
            run.complete = False
        bucket = {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": run.fields.get("sweep"),
            "project": _project(given["project"]),
            "historyLineCount": len(run.lines),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": f, "uploadUrl": f"{self.url}/storage/{given['run']}/{f}"} for f in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append(given["input"])
        artifact = {
            "id": f"a{len(self.artifacts) - 1}",
            "state": "PENDING",
            "artifactSequence": {"latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or given.get("input", {}).get("name")
        url = f"{self.url}/storage/manifest"
        file = {"id": "f", "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = [
            {
                "node": {
                    "storagePath": f"artifacts/{spec['artifactID']}/{spec['name']}",
                    "uploadUrl": f"{self.url}/storage/artifacts/{spec['artifactID']}/{spec['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": spec["artifactID"]},
                }
            }
            for spec in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.committed.append(given["artifactID"])
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def _ArtifactByID(self, given: dict[str, Any]) -> dict[str, Any]:
        name = self.artifacts[int(given["id"][1:])]["artifactCollectionName"]
        sequence = {"__typename": "ArtifactSequence", "name": name, "project": _project("p") | {"internalId": "i"}}
        artifact = {
            "__typename": "Artifact",
            "id": given["id"],
            "artifactSequence": sequence,
            "versionIndex": 0,
            "artifactType": {"name": "model"},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -1,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": "d",
            "commitHash": "c",
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [],
        }
        return {"artifact": artifact}

    def _UpsertSweep(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["id"].removeprefix("id-") if given.get("id") else f"sweep{len(self.sweeps)}"
        known = self.sweeps.setdefault(name, {"state": "PENDING", "states": []})
        known |= {key: value for key, value in given.items() if value is not None}
        if given.get("state"):
            known["states"].append(given["state"])
        sweep = {"name": name, "project": _project(given["projectName"])}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _GetSweepState(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"sweep": {"state": self.sweeps[given["sweep"]]["state"]}}}

    def _SweepWithRuns(self, given: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": f"id-{given['sweep']}", "name": given["sweep"], "state": self.sweeps[given["sweep"]]["state"]}
        return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        self.views.append(given)
        return {"upsertView": {"view": {"id": "w", "name": given["name"]}, "inserted": True}}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, as when it is killed, is no defect."""


def _project(name: str) -> dict[str, Any]:
    return {"id": "p", "name": name, "entity": {"id": "e", "name": ENTITY}}


def _handler(house: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal."""

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _reply(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            house.asked.append(f"GET {self.path}")
            self._reply({})

        def do_PUT(self) -> None:
            body = self._body()
            with house.lock:
                house.files[self.path.removeprefix("/storage/")] = body
            self._reply({})

        def do_POST(self) -> None:
            body = self._body()
            threading.Event().wait(house.pause_s)
            with house.lock:
                house.headers.append(dict(self.headers))
                if not self.path.startswith("/graphql"):
                    house.asked.append(f"POST {self.path}")
                    if match := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                        house.stream(match[1], json.loads(body))
                    self._reply({})
                    return
                request = json.loads(body)
                found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
                operation = found[1] if found else "?"
                house.asked.append(operation)
                answer = house.answer(operation, request.get("variables") or {}, request["query"])
            self._reply({"data": answer} if answer else {"data": None, "errors": [{"message": f"no {operation}"}]})

    return Handler
