"""A Hub on 127.0.0.1: the routes that huggingface_hub and datasets ask, over files in memory, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

LFS = (".safetensors", ".bin", ".model", ".parquet", ".jpeg")  # as the Hub stores them: behind a redirect


@dataclass
class Repo:
    """A repository at one commit."""

    files: dict[str, bytes]
    gated: bool = False
    """Opened by the token "accepted" alone."""

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name in sorted(self.files):
            digest.update(name.encode() + hashlib.sha1(self.files[name]).digest())
        return digest.hexdigest()


Fault = Callable[["_Handler", str, str], bool]
"""Given the request, its method and path: True where it has answered (or has not)."""


@dataclass
class Hub:
    """What is served, and what was asked; ``raw`` is raw.githubusercontent.com's part, path → content."""

    models: dict[str, Repo] = field(default_factory=dict)
    datasets: dict[str, Repo] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 → what came by LFS."""
    endpoint: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answers on a free port of 127.0.0.1 until the end of the block; ``hub.endpoint`` says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag_of(data: bytes, name: str) -> str:
    """The SHA-256 of what is behind a redirect, git's blob id of the rest."""
    if name.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return body

    def _answer(self, method: str) -> None:
        path = unquote(urlparse(self.path).path)
        self.body = self._read()
        self.hub.asked.append((method, path))
        if any(fault(self, method, path) for fault in list(self.hub.faults)):
            return
        parts = path.strip("/").split("/")
        if parts[0] == "raw":
            self._raw("/".join(parts[1:]))
        elif parts[0] == "cdn":
            self._cdn(parts[1])
        elif method == "PUT" or path in ("/api/repos/create", "/api/validate-yaml") or path.endswith("/objects/batch"):
            self._upload(parts)
        elif parts[0] == "api" and len(parts) == 6 and parts[4] in ("preupload", "commit"):
            self._commit("/".join(parts[2:4]), parts[4])
        elif parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            self._resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "NotFound")

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """The whole answer; a HEAD's body stays here."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, message: str = "") -> None:
        """As the Hub says no: the reason in a header."""
        self.send(status, json.dumps({"error": message or code}).encode(), X_Error_Code=code, X_Error_Message=message)

    def _repo(self, kind: str, name: str, revision: str | None) -> Repo | None:
        repo: Repo | None = getattr(self.hub, kind).get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
            return None
        if repo.gated and token != "accepted":
            self.refuse(403 if token else 401, "GatedRepo", f"Access to {name} is restricted")
            return None
        if revision not in (None, "main", repo.commit):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        what = rest[0] if rest else "revision"
        repo = self._repo(kind, name, rest[1] if len(rest) > 1 else None)
        if repo is None:
            return
        if what == "revision":
            siblings = [self._sibling(repo, file) for file in sorted(repo.files)]
            self.send_json(
                {"_id": "0" * 24, "id": name, "sha": repo.commit, "private": False, "tags": [], "downloads": 0,
                 "likes": 0, "gated": "manual" if repo.gated else False, "siblings": siblings}
            )  # fmt: skip
        elif what == "tree":
            below = "/".join(rest[2:])
            recursive = "recursive=true" in self.path.lower()
            entries = self._entries(repo, below, recursive)
            if entries or not below:
                self.send_json(entries)
            else:
                self.refuse(404, "EntryNotFound", f"{below} does not exist")
        elif what == "paths-info":
            asked = self._asked_paths()
            self.send_json([entry for path in asked for entry in self._info(repo, path)])
        else:
            self.refuse(404, "NotFound")

    def _upload(self, parts: list[str]) -> None:
        """A repository is made, a card is looked at, large files are announced and brought; by the token "accepted"."""
        asked = json.loads(self.body) if self.command == "POST" else {}
        if self.command == "PUT":
            self.hub.uploaded[parts[-1]] = self.body
            self.send(200)
        elif parts[-1] == "validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != "Bearer accepted":
            self.refuse(401, "Unauthorized", "Invalid username or password.")
        elif parts[-1] == "create":
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.models.setdefault(name, Repo({}))
            self.send_json({"url": f"{self.hub.endpoint}/{name}", "name": name})
        else:
            actions = [{"upload": {"href": f"{self.hub.endpoint}/put/{o['oid']}"}} for o in asked["objects"]]
            found = [{**one, "actions": do} for one, do in zip(asked["objects"], actions, strict=True)]
            self.send_json({"transfer": "basic", "objects": found})

    def _commit(self, name: str, what: str) -> None:
        """Which files go by LFS; and what a commit adds."""
        if self.headers.get("Authorization") != "Bearer accepted" or name not in self.hub.models:
            self.refuse(403, "Forbidden", "You have no right to push here")
        elif what == "preupload":
            files = json.loads(self.body)["files"]
            modes = [{"path": file["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular"} for file in files]  # fmt: skip
            self.send_json({"files": modes})
        else:
            repo = self.hub.models[name]
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo.files[value["path"]] = self.hub.uploaded[value["oid"]]
            url = f"{self.hub.endpoint}/{name}/commit/{repo.commit}"
            self.send_json({"success": True, "commitOid": repo.commit, "commitUrl": url})

    def _sibling(self, repo: Repo, name: str) -> dict[str, Any]:
        data = repo.files[name]
        if "blobs=true" not in self.path.lower():
            return {"rfilename": name}
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": etag_of(data, "")}
        if name.endswith(LFS):
            entry["lfs"] = {"sha256": etag_of(data, name), "size": len(data), "pointerSize": 130}
        return entry

    def _asked_paths(self) -> list[str]:
        text = self.body.decode()
        if text.startswith("{"):
            paths = json.loads(text)["paths"]
            return [paths] if isinstance(paths, str) else list(paths)
        return [
            unquote(pair.split("=", 1)[1].replace("+", " ")) for pair in text.split("&") if pair.startswith("paths=")
        ]

    def _info(self, repo: Repo, path: str) -> list[dict[str, Any]]:
        if path in repo.files:
            return [self._file(repo, path)]
        below = any(name.startswith(f"{path.rstrip('/')}/") for name in repo.files) or path in ("", "/")
        return [{"type": "directory", "path": path, "oid": "0" * 40}] if below else []

    def _file(self, repo: Repo, path: str) -> dict[str, Any]:
        data = repo.files[path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if path.endswith(LFS):
            entry["lfs"] = {"oid": etag_of(data, path), "size": len(data), "pointerSize": 130}
        return entry

    def _entries(self, repo: Repo, below: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(repo.files):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :].split("/")
            for depth in range(1, len(rest)):
                folder = prefix + "/".join(rest[:depth])
                if recursive or depth == 1:
                    found.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            if recursive or len(rest) == 1:
                found[name] = self._file(repo, name)
        return list(found.values())

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name, revision)
        if repo is None:
            return
        if path not in repo.files:
            self.refuse(404, "EntryNotFound", f"{path} does not exist")
            return
        data = repo.files[path]
        etag = etag_of(data, path)
        common = {"X_Repo_Commit": repo.commit, "Accept_Ranges": "bytes"}
        if path.endswith(LFS):
            where = f"{self.hub.endpoint}/cdn/{etag}".replace("127.0.0.1", "localhost")  # another host, as the CDN is
            self.send(302, **common, Location=where, X_Linked_Etag=f'"{etag}"', X_Linked_Size=str(len(data)))
        else:
            self._content(data, **common, ETag=f'"{etag}"')

    def _cdn(self, digest: str) -> None:
        for repo in [*self.hub.models.values(), *self.hub.datasets.values()]:
            for name, data in repo.files.items():
                if name.endswith(LFS) and etag_of(data, name) == digest:
                    self._content(data, ETag=f'"{digest}"')
                    return
        self.refuse(404, "EntryNotFound")

    def _raw(self, path: str) -> None:
        if path in self.hub.raw:
            self._content(self.hub.raw[path])
        else:
            self.refuse(404, "NotFound")

    def _content(self, data: bytes, **headers: str) -> None:
        """All of it, or from the byte that a Range asks for."""
        wanted = (self.headers.get("Range") or "").removeprefix("bytes=")
        if wanted and "-" in wanted:
            first, _, last = wanted.partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            part = data[start:end]
            said = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            self.send(206, part, **headers, Content_Range=said)
        elif self.command == "HEAD":
            self.send(200, **headers, Content_Length=str(len(data)))
        else:
            self.send(200, data, **headers)
