"""A stand-in of the Hugging Face Hub's HTTP API on 127.0.0.1: as much of it as its client asks for when models are pushed and loaded.

Repositories are dictionaries; weights go the way of large files (LFS), everything else in the commit itself, as on the hub.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"


class Repository:
    def __init__(self, private=False, gated=False):
        self.private, self.gated = private, gated
        self.commits, self.branches = {}, {}
        self.commit("main", {})

    def commit(self, branch, files):
        """Puts {path: bytes} on top of a branch; returns the commit."""
        content = {**self.files(branch), **files}
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(content)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = content, sha
        return sha

    def resolve(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision):
        return self.commits.get(self.resolve(revision), {})


class Hub:
    """Attributes: repositories by name; large: objects by SHA-256; asked: (method, path) of every request; url."""

    def __init__(self):
        self.repositories, self.large, self.asked, self.url = {}, {}, [], ""

    def downloaded(self):
        """Names of the files whose content was sent."""
        return {path.split("/", 5)[5] for method, path in self.asked if method == "GET" and "/resolve/" in path}

    @contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "X-Request-Id": "stand-in", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code, message="no"):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self):
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size)
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path))
        self.owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        words = [unquote(word) for word in path.strip("/").split("/")]
        if self.command == "PUT":
            self.hub.large[words[1]] = self.body
            self.answer(200)
        elif words[0] == "api":
            self.api(words[1:])
        elif words[-3:] == ["lfs", "objects", "batch"]:
            self.batch()
        else:
            self.resolve("/".join(words[:2]), words[3], "/".join(words[4:]))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def api(self, words):
        if words == ["validate-yaml"]:
            return self.answer(200, {"errors": [], "warnings": []})
        if words == ["repos", "create"]:
            return self.create(json.loads(self.body))
        name, rest = "/".join(words[1:3]), words[3:]
        repository = self.allowed(name)
        if repository is None:
            return None
        if not rest or rest[0] == "revision":
            sha = repository.resolve(rest[1] if rest else "main")
            files = [{"rfilename": path} for path in repository.files(sha)]
            return self.answer(200, {"id": name, "sha": sha, "siblings": files}) if sha else self.no_revision()
        if rest[0] == "tree":
            return self.answer(200, [self.entry(path, data) for path, data in repository.files(rest[1]).items()])
        if not self.owner:
            return self.refuse(401, "", "Invalid username or password.")
        if rest[0] == "branch":
            there = rest[1] in repository.branches
            repository.branches.setdefault(rest[1], repository.branches["main"])
            return self.answer(409 if there else 201, {})
        if rest[0] == "preupload":
            files = json.loads(self.body)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            return self.answer(200, {"files": [{"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in zip(files, modes)]})
        assert rest[0] == "commit", rest
        sent = [json.loads(line) for line in self.body.splitlines()]
        files = {item["value"]["path"]: base64.b64decode(item["value"]["content"]) for item in sent if item["key"] == "file"}
        files |= {item["value"]["path"]: self.hub.large[item["value"]["oid"]] for item in sent if item["key"] == "lfsFile"}
        sha = repository.commit(rest[1], files)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if not self.owner:
            return self.refuse(401, "", "Invalid username or password.")
        there = name in self.hub.repositories
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories.setdefault(name, Repository(private=private))
        return self.answer(409 if there else 200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def allowed(self, name):
        """The repository, or None after a refusal."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.owner):
            return self.refuse(404 if self.owner else 401, "RepoNotFound", "Repository not found")
        if repository.gated and not self.owner:
            return self.refuse(403, "GatedRepo", "Access to it is restricted")
        return repository

    def no_revision(self):
        return self.refuse(404, "RevisionNotFound", "Invalid rev id")

    def entry(self, path, data):
        sha = hashlib.sha256(data).hexdigest()
        large = {"lfs": {"oid": sha, "size": len(data), "pointerSize": 1}} if path.endswith(".safetensors") else {}
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest(), **large}

    def batch(self):
        objects = json.loads(self.body)["objects"]
        upload = [{**thing, "actions": {"upload": {"href": f"{self.hub.url}/large/{thing['oid']}"}}} for thing in objects]
        self.answer(200, {"transfer": "basic", "objects": upload})

    def resolve(self, name, revision, path):
        repository = self.allowed(name)
        if repository is None:
            return None
        sha = repository.resolve(revision)
        if sha is None:
            return self.no_revision()
        data = repository.files(sha).get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)
