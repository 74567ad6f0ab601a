"""A hub on this machine: what huggingface_hub needs to make a repository, commit files to it and read them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Repositories = dict[str, dict[str, bytes]]


@contextmanager
def hub() -> Iterator[tuple[str, Repositories]]:
    """Yield the address of a hub that runs, and the files of its repositories by name."""
    repositories: Repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"repositories": repositories}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", repositories
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(BaseHTTPRequestHandler):
    repositories: Repositories
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            return self.reply({})
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(tree|revision)/([\w-]+).*", path):
            name, what, revision = found.groups()
            if self.missing(name, revision):
                return None
            files = self.repositories[name].items()
            tree = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files]
            siblings = [{"rfilename": p} for p, _ in files]
            return self.reply(tree if what == "tree" else {"id": name, "sha": _sha(dict(files)), "siblings": siblings})
        if found := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([\w-]+)/(.+)", path):
            name, revision, file = found.groups()
            if self.missing(name, revision):
                return None
            content = self.repositories[name].get(file)
            if content is None:
                return self.reply({}, 404, {"X-Error-Code": "EntryNotFound"})
            headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": _sha(self.repositories[name])}
            return self.reply(content, 200, headers)
        return self.reply({"error": path}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("authorization") != "Bearer secret":
            return self.reply({"error": "who are you?"}, 401)
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization") or "me", asked["name"])))
            self.repositories.setdefault(name, {})
            return self.reply({"url": f"http://{self.headers['host']}/{name}", "id": name})
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(preupload|commit)/([\w-]+).*", self.path):
            name, what, revision = found.groups()
            if self.missing(name, revision):
                return None
            if what == "preupload":
                files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
                return self.reply({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[name][line["value"]["path"]] = content
            sha = _sha(self.repositories[name])
            return self.reply({"commitUrl": f"http://{self.headers['host']}/{name}/commit/{sha}", "commitOid": sha})
        return self.reply({"error": self.path}, 404)

    def missing(self, name: str, revision: str) -> bool:
        """Say that there is no such repository, or no such revision of it."""
        if name not in self.repositories:
            self.reply({}, 404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", _sha(self.repositories[name])):
            self.reply({}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
