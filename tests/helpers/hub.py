"""A small Hugging Face Hub on this machine: the calls that `udpm push` and loading make, over HTTP."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_localTokenThatMayWrite"
READ_TOKEN = "hf_localTokenThatMayOnlyRead"
LFS = (".safetensors", ".npz", ".png")


class Repository:
    """A repository: its commits, oldest first, each with all files of the time."""

    def __init__(self, private):
        self.private, self.commits, self.branches = private, [], {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, files):
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    @property
    def sha(self):
        return self.commits[-1][0]

    @property
    def files(self):
        return self.commits[-1][1]

    def at(self, revision):
        """Return (commit, files) of a branch or a commit; None if there is none."""
        wanted = self.sha if revision == "main" else self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)


class Hub:
    """The server, in a thread; use it as a context.

    Attributes:
        url: of the server.
        repositories: by name.
        calls: "METHOD path" of every request.
        tokens: values of Authorization that came.
        failing: part of "METHOD path" -> HTTP status to answer instead, None to cut the connection, or "silence"; with
            the key "after /commit/", commits are made but not answered.
        closing: ends all silence.
    """

    def __init__(self):
        self.repositories, self.calls, self.tokens, self.failing, self.blobs = {}, [], set(), {}, {}
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        self.hub.calls.append(f"{self.command} {path}")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.tokens.add(self.token)
        for part, status in self.hub.failing.items():
            if part in f"{self.command} {path}":
                if status in (None, "silence"):
                    self.close_connection = True
                    if status == "silence":
                        self.hub.closing.wait()
                    return None
                return self._answer(status, {"error": f"as asked, to {self.headers.get('Authorization')}"})
        if self.token not in (None, TOKEN, READ_TOKEN):
            return self._answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials in "
                                "Authorization header"})  # fmt: skip
        self._route(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _route(self, path, body):
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": "owner", "type": "user", "orgs": []} if self.token else None)
        if path == "/api/validate-yaml":
            wrong = "license: nonsense\n" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [mit, ...]'}] if wrong else []
            return self._answer(400 if wrong else 200, {"errors": errors, "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/repos/delete":
            given = json.loads(body)
            del self.hub.repositories[f"{given['organization']}/{given['name']}"]
            return self._answer(200, {})
        if parts[0] == "blobs":
            self.hub.blobs[parts[1]] = body
            assert hashlib.sha256(body).hexdigest() == parts[1]
            return self._answer(200, {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs(json.loads(body))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.token is None):
            return self._answer(404 if self.token else 401, {"error": "Repository not found"}, _code("RepoNotFound"))
        if parts[0] == "api":
            return self._of_repository(name, repository, parts[4:], body)
        return self._resolve(repository, parts[3], "/".join(parts[4:]))

    def _create(self, given):
        name = f"{given['organization']}/{given['name']}"
        if self.token != TOKEN:
            return self._answer(403, {"error": "You don't have the rights to create a model"})
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo"})
        # Version 1 of huggingface_hub says so in another key than version 2.
        private = given.get("visibility") == "private" or given.get("private") is True
        self.hub.repositories[name] = Repository(private)
        return self._answer(200, {"url": f"{self.hub.url}/{name}"})

    def _lfs(self, given):
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/blobs/{item['oid']}"}},
            }
            for item in given["objects"]
        ]
        return self._answer(200, {"objects": objects, "transfer": "basic"})

    def _of_repository(self, name, repository, parts, body):
        if not parts or parts[0] == "revision":
            sha, files = repository.at(parts[1] if parts else "main")
            siblings = [{"rfilename": file} for file in sorted(files)]
            return self._answer(
                200, {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings}
            )
        if self.token != TOKEN:
            return self._answer(403, {"error": "Forbidden: pass `create_pr=1` as a query parameter"})
        if parts[0] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        assert parts[0] == "commit", parts
        return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name, repository, lines):
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.sha):
                return self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        if "after /commit/" in self.hub.failing:
            self.close_connection = True
            return None
        return self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def _resolve(self, repository, revision, file):
        found = repository.at(revision)
        if found is None:
            return self._answer(404, {"error": "Invalid rev id"}, _code("RevisionNotFound"))
        commit = {"X-Repo-Commit": found[0]}
        if file not in found[1]:
            return self._answer(404, {"error": "Entry not found"}, _code("EntryNotFound") | commit)
        data = found[1][file]
        return self._send(200, data, commit | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def _answer(self, status, value, headers=None):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _code(name):
    return {"X-Error-Code": name}
