"""A small hub on loopback, with as much of its HTTP API as pushing a folder takes.

It keeps what was pushed in `repositories`. `refuse` maps a part of a path to an HTTP status.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"
COMMIT = "0" * 40
REPO = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(preupload|commit|revision)/.*)?$")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, Repository] = {}  # by kind and name: models/owner/name
        self.objects: dict[str, bytes] = {}  # large files by their hash
        self.refuse: dict[str, int] = {}
        self.writes: list[str] = []  # the paths of all requests that would change something

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        if not self.is_refused():
            self.answer_get()

    def answer_get(self) -> None:
        if self.path == "/api/whoami-v2":
            return self.answer(200, {"type": "user", "name": "me", "auth": {}})
        kind, name, _ = REPO.match(self.path).groups()
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None:
            return self.answer(404, {"error": "Repository not found"}, "RepoNotFound")
        facts = {"id": name, "modelId": name, "sha": COMMIT, "private": repository.private}
        return self.answer(200, {**facts, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if not self.is_refused():
            self.server.writes.append(self.path)
            self.answer_post(body)

    def answer_post(self, body: bytes) -> None:
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.offer_objects(json.loads(body))
        kind, name, action = REPO.match(self.path).groups()
        repository = self.server.repositories[f"{kind}/{name}"]
        if action == "preupload":
            return self.choose_modes(json.loads(body))
        return self.commit(repository, [json.loads(line) for line in body.splitlines()])

    def create(self, body: dict[str, Any]) -> None:
        kind = f"{body.get('type', 'model')}s"
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        if f"{kind}/{name}" in self.server.repositories:
            return self.answer(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
        is_private = body.get("private", body.get("visibility") == "private")
        self.server.repositories[f"{kind}/{name}"] = Repository(bool(is_private))
        prefix = "" if kind == "models" else f"{kind}/"
        return self.answer(200, {"url": f"{self.server.address}/{prefix}{name}"})

    def choose_modes(self, body: dict[str, Any]) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs"
                if one["path"].endswith((".safetensors", ".parquet"))
                else "regular",
                "shouldIgnore": False,
            }
            for one in body["files"]
        ]
        self.answer(200, {"files": files})

    def offer_objects(self, body: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.address}/put/{one['oid']}"}}}
            for one in body["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if not self.is_refused():
            assert self.path == f"/put/{hashlib.sha256(data).hexdigest()}"
            self.server.objects[self.path.rpartition("/")[2]] = data
            self.answer(200, {})

    def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    repository.commits.append(value["summary"])
                case "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.files[value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.address}/me/x/commit/{COMMIT}"
        self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def is_refused(self) -> bool:
        """Refuse a wrong token, and what the test refuses."""
        statuses = [code for part, code in self.server.refuse.items() if part in self.path]
        is_upload = self.path.startswith("/put/")
        if not is_upload and self.headers.get("authorization") != f"Bearer {TOKEN}":
            statuses = [401]
        if statuses:
            self.answer(statuses[0], {"error": "refused by the hub"})
        return bool(statuses)

    def answer(self, code: int, body: dict[str, Any], error: str | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def run_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
