"""A Hub on the loopback, to which the real client speaks real HTTP: repositories of models, their branches and files.

Repositories live in memory, the bytes of large files beside them. Those whose names begin with "spaces/" are Spaces, of
which files are served and no more. Anyone with a token may do anything; without one, private repositories are as if
they were not there. `fail(...)` makes the next requests fail.
"""

import base64
import contextlib
import hashlib
import inspect
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import RepoCard

TOKEN = "hf_loopback"


@dataclass
class Repo:
    """A repository: `commits` holds the files of each, `branches` the newest commit of each branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        identity = hashlib.sha1(repr((len(self.history), sorted(files.items()))).encode()).hexdigest()
        self.commits[identity], self.branches[branch] = files, identity
        self.history.append(identity)
        return identity

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


class Hub(ThreadingHTTPServer):
    """The server; `url` is what HF_ENDPOINT wants."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.failures: list[tuple[re.Pattern, int, dict[str, str]]] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    def fail(self, path: str, status: int, times: int = 1, **headers: str) -> None:
        """Lets the next requests that match a pattern, as "GET /path", fail; with status 0 they are cut off."""
        self.failures += [(re.compile(path), status, headers)] * times

    def publish(self, name: str, files: dict[str, bytes]) -> None:
        """Makes a repository with these files, as if somebody had pushed them with git."""
        self.repos[name] = made = Repo()
        made.commit("main", files)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        """Says nothing."""

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        query = {key: values for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.cut = False
        with self.server.lock:
            self.server.requests.append((self.command, path))
            for failure in self.server.failures:
                if failure[0].search(f"{self.command} {path}"):
                    self.server.failures.remove(failure)
                    if failure[1]:
                        return self._send(failure[1], {"error": "made to fail"}, **failure[2])
                    self.cut = True
                    break
            for pattern, handle in ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    return handle(self, body, query, **match.groupdict())
        return self._send(404, {"error": f"no route for {self.command} {path}"})

    def _send(self, status: int, content: dict | list | bytes, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if self.cut:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(data)

    def _error(self, status: int, code: str, **headers: str) -> None:
        self._send(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, repo: str) -> Repo | None:
        """A repository that whoever asks may see; else an error has been sent."""
        found = self.server.repos.get(repo)
        if found is None or (found.private and not self._known()):
            self._error(404 if self._known() else 401, "RepoNotFound")
            return None
        return found

    def _files(self, repo: str, revision: str) -> tuple[Repo, dict[str, bytes]] | None:
        found = self._repo(repo)
        if found is None:
            return None
        files = found.files(revision)
        if files is None:
            self._error(404, "RevisionNotFound")
            return None
        return found, files

    # Accounts and repositories

    def whoami(self, body, query):
        if not self._known():
            return self._send(401, {"error": "Invalid username or password."})
        return self._send(200, {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body, query):
        if not self._known():
            return self._send(401, {"error": "Invalid username or password."})
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.server.repos:
            return self._send(409, {"error": "exists", "url": f"{self.server.url}/{repo}"})
        self.server.repos[repo] = made = Repo(private=asked.get("visibility") == "private")
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._send(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def branch(self, body, query, repo, revision):
        if (found := self._repo(repo)) is None:
            return None
        if revision in found.branches:
            return self._send(409, {"error": "exists"})
        found.branches[revision] = found.branches["main"]
        return self._send(200, {})

    def validate(self, body, query):
        request = json.loads(body)
        errors = [{"message": error} for error in metadata_errors(request["content"])]
        return self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    # Committing

    def preupload(self, body, query, repo, revision):
        if self._files(repo, revision) is None:
            return None
        files = json.loads(body)["files"]
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False}
            for file in files
        ]  # fmt: skip
        return self._send(200, {"files": modes})

    def batch(self, body, query, repo):
        objects = []
        for wanted in json.loads(body)["objects"]:
            address = f"{self.server.url}/lfs/{wanted['oid']}"
            here = wanted["oid"] in self.server.large
            objects.append({**wanted, **({} if here else {"actions": {"upload": {"href": address, "header": {}}}})})
        return self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body, query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "damaged on its way"})
        self.server.large[oid] = body
        return self._send(200, {})

    def commit(self, body, query, repo, revision):
        if (found := self._files(repo, revision)) is None:
            return None
        files = dict(found[1])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        identity = found[0].commit(revision, files)
        address = f"{self.server.url}/{repo}/commit/{identity}"
        return self._send(200, {"success": True, "commitOid": identity, "commitUrl": address})

    # Reading

    def _info(self, name: str, repo: Repo, revision: str = "main") -> dict:
        files = repo.files(revision)
        page = files.get("README.md", b"").decode()
        data = page.split("---\n")[1] if page.startswith("---\n") else ""
        tags = re.search(r"^tags:\n((?:- .*\n)+)", data, re.MULTILINE)
        return {
            "_id": name, "id": name, "modelId": name, "private": repo.private, "downloads": 0, "likes": 0,
            "sha": repo.branches.get(revision, revision), "lastModified": "2026-01-01T00:00:00.000Z",
            "tags": [line.removeprefix("- ") for line in tags[1].splitlines()] if tags else [],
            "siblings": [{"rfilename": path} for path in files],
        }  # fmt: skip

    def info(self, body, query, repo, revision="main"):
        if (found := self._files(repo, revision)) is not None:
            self._send(200, self._info(repo, found[0], revision))

    def models(self, body, query):
        seen = [
            self._info(name, repo)
            for name, repo in self.server.repos.items()
            if not name.startswith("spaces/")
            if not repo.private or self._known()
            if not query.get("author") or name.split("/")[0] in query["author"]
        ]
        return self._send(200, [model for model in seen if set(query.get("filter", [])) <= set(model["tags"])])

    def _entry(self, path: str, data: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def tree(self, body, query, repo, revision):
        if (found := self._files(repo, revision)) is not None:
            self._send(200, [self._entry(path, data) for path, data in found[1].items()])

    def paths(self, body, query, repo, revision):
        if (found := self._files(repo, revision)) is not None:
            wanted = parse_qs(body.decode()).get("paths", [])
            self._send(200, [self._entry(path, found[1][path]) for path in wanted if path in found[1]])

    def refs(self, body, query, repo):
        if (found := self._repo(repo)) is not None:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": at} for name, at in found.branches.items()
            ]
            self._send(200, {"branches": branches, "tags": [], "converts": []})

    def resolve(self, body, query, repo, revision, path):
        if (found := self._files(repo, revision)) is None:
            return None
        identity = found[0].branches.get(revision, revision)
        if path not in found[1]:
            return self._error(404, "EntryNotFound", X_Repo_Commit=identity)
        data = found[1][path]
        large = path.endswith(".safetensors")
        tag = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X_Repo_Commit": identity, "Content_Type": "application/octet-stream"}
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if first and self.command == "GET":
            start = int(first[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], **headers)
        return self._send(200, data, Accept_Ranges="bytes", **headers)


validates = pytest.mark.skipif(
    "https://huggingface.co" in inspect.getsource(RepoCard.validate), reason="This client asks no other server."
)


def metadata_errors(page: str) -> list[str]:
    """What the Hub would refuse in the metadata of a page, as far as its documentation tells."""
    found = re.match(r"---\n(.*?)\n---\n", page, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no metadata"]
    lists = {name: data[name] if isinstance(data[name], list) else [data[name]] for name in LISTED if name in data}
    errors = [
        f"{name}: {value!r}"
        for name, values in lists.items()
        for value in values
        if not (isinstance(value, str) and re.fullmatch(LISTED[name], value))
    ]
    errors += [f"license: {data['license']!r}" for _ in [0] if data.get("license", "mit") not in LICENSES]
    for model in data.get("model-index", []):
        for result in model["results"] if model.get("name") else [{}]:
            wanted = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            errors += [f"model-index: no {part}.{key}" for part, key in wanted if not result.get(part, {}).get(key)]
            metrics = result.get("metrics") or [{}]
            errors += [
                "model-index: a metric without type or value"
                for each in metrics
                if not {"type", "value"} <= each.keys()
            ]
    return errors


LISTED = {
    "tags": r".{1,100}",
    "language": r"[a-z]{2,3}|multilingual|code",
    "datasets": r"[\w.-]+(/[\w.-]+)?",
    "base_model": r"[\w.-]+(/[\w.-]+)?",
    "library_name": r"[\w.-]+",
    "pipeline_tag": r"[a-z0-9-]+",
}
LICENSES = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-sa-4.0",
    "gpl-3.0",
    "openrail",
    "other",
)

NAME = r"(?P<repo>(?:spaces/)?[^/ ]+/[^/ ]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"POST /api/models/{NAME}/branch/(?P<revision>.+)", Handler.branch),
    (rf"POST /api/models/{NAME}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/(?P<revision>.+)", Handler.commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.store),
    (r"GET /api/models", Handler.models),
    (rf"GET /api/models/{NAME}/refs", Handler.refs),
    (rf"GET /api/models/{NAME}/tree/(?P<revision>[^/]+)", Handler.tree),
    (rf"POST /api/models/{NAME}/paths-info/(?P<revision>.+)", Handler.paths),
    (rf"GET /api/models/{NAME}/revision/(?P<revision>.+)", Handler.info),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"(GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
