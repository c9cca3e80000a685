"""A Hub on 127.0.0.1 for huggingface_hub's real client: what it stores can be looked into, and it can be made to fail.

Covers what uploads and downloads of models and data sets ask for: who am I, repositories, branches, trees, uploads by
LFS in one part or several, commits, and files by range. Xet is answered with "not here"; the client must have it off.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import datasets
import diffusers.loaders.lora_base
import huggingface_hub
import pytest
import yaml

USER = "me"
WRITE_TOKEN, READ_TOKEN = "hf_writes", "hf_reads"
LFS_SUFFIXES = (".safetensors", ".parquet", ".pt", ".pth", ".bin")
LONGEST_HANG = 30.0
"""Seconds after which a request that hangs is let go, should no test stop the server before."""


@dataclass
class Commit:
    """Files by path after a commit, and what it did."""

    oid: str
    message: str
    files: dict[str, bytes]
    added: list[str]
    deleted: list[str]


@dataclass
class Repository:
    """A repository: commits of each branch, oldest first."""

    repo_id: str
    repo_type: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = [Commit(_oid(self.repo_id), "initial commit", {}, [], [])]

    @property
    def files(self) -> dict[str, bytes]:
        """What is on the main branch."""
        return self.branches["main"][-1].files

    @property
    def commits(self) -> list[Commit]:
        """The main branch without the commit that every repository begins with."""
        return self.branches["main"][1:]

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch ends with, or that has this name."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((commit for branch in self.branches.values() for commit in branch if commit.oid == revision), None)

    def put(self, files: dict[str, bytes], message: str = "put there", branch: str = "main") -> None:
        """A commit by somebody else."""
        history = self.branches[branch]
        oid = _oid(f"{history[-1].oid}{message}{len(history)}")
        history.append(Commit(oid, message, {**history[-1].files, **files}, sorted(files), []))


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match.

    Kinds: `status` answers with `status` and `headers`; `drop` reads the request and hangs up; `reset` hangs up in the
    middle of the request's body; `cut` hangs up in the middle of the answer; `lost` does what is asked, then hangs up;
    `lost-status` does what is asked, then answers with `status`; `hang` says nothing; `slow` waits `seconds` first.
    """

    pattern: str
    kind: str = "status"
    status: int = 503
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "out of order"
    seconds: float = 0.3
    met: int = 0


class Hub:
    """What the server holds, and how it misbehaves."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size: int | None = None
        self.refused_lfs: str | None = None
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self.url = ""

    def model(self, repo_id: str) -> Repository:
        """A model's repository."""
        return self.repositories["models", repo_id]

    def dataset(self, repo_id: str) -> Repository:
        """A data set's repository."""
        return self.repositories["datasets", repo_id]

    def create(self, repo_id: str, repo_type: str = "models", private: bool = False) -> Repository:
        """A repository that is there already."""
        repository = Repository(repo_id, repo_type, private)
        self.repositories[repo_type, repo_id] = repository
        return repository

    def fail(self, pattern: str, kind: str = "status", **settings: Any) -> Fault:
        """Adds a fault for requests, as `"POST /api/..."`, in which the pattern is found."""
        fault = Fault(pattern, kind, **settings)
        self.faults.append(fault)
        return fault

    def asked(self, pattern: str) -> int:
        """How many requests had the pattern."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def meet(self, request: str) -> Fault | None:
        """The fault that a request meets."""
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > fault.met and re.search(fault.pattern, request):
                    fault.met += 1
                    return fault
        return None


class Refused(Exception):  # noqa: N818 (an answer)
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def handle(self) -> None:
        """Serves the requests of a connection, until either side hangs up."""
        with contextlib.suppress(OSError):
            super().handle()

    def setup(self) -> None:
        """Bounds every wait for the client."""
        self.timeout = LONGEST_HANG
        super().setup()

    # ---- One request ----

    def _serve(self) -> None:
        fault = self.hub.meet(f"{self.command} {self.path}")
        self.fault = fault
        if fault is not None and fault.kind == "reset":
            self.rfile.read(min(1, int(self.headers.get("Content-Length") or 0)))
            self._hang_up(reset=True)
            return
        self.body = self._read()
        if fault is not None and fault.kind in ("drop", "hang", "slow", "status"):
            if fault.kind == "hang":
                self.hub.stopped.wait(LONGEST_HANG)
            if fault.kind == "slow":
                time.sleep(fault.seconds)
            elif fault.kind == "status":
                self._send_error(fault.status, fault.message, "", fault.headers)
                return
            else:
                self._hang_up()
                return
        try:
            self._route()
        except Refused as error:
            self._send_error(error.status, str(error), error.code)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionAbortedError("the client died while it sent this")
        return data

    def _hang_up(self, reset: bool = False) -> None:
        self.close_connection = True
        if reset:  # so that the client, which is still writing, notices
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        kind = self.fault.kind if self.fault is not None else ""
        if kind == "lost":
            self._hang_up()
            return
        if kind == "lost-status":
            status, data = self.fault.status, b""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._hang_up()
            return
        self.wfile.write(data)

    def _send_error(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send({"error": message}, status, named)

    # ---- Who may do what ----

    def _role(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, "")

    def _may_write(self, name: str) -> None:
        role = self._role()
        if not role:
            raise Refused(401, "Invalid username or password.")
        if role != "write" or name.partition("/")[0] != USER:
            raise Refused(403, "Forbidden: you must use a write token to upload to this repository.")

    def _repository(self, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not self._role()):
            raise Refused(401 if not self._role() else 404, "Repository not found", "RepoNotFound")
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit:
        found = repository.find(unquote(revision))
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # ---- Where requests go ----

    def _route(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {parts.path}")
            if match:
                with self.hub.lock:
                    answer = getattr(self, method)(**match.groupdict())
                self._send(*answer)
                return
        raise Refused(404, f"no such page: {self.command} {parts.path}", "EntryNotFound")

    def _whoami(self) -> tuple[Any, ...]:
        role = self._role()
        if not role:
            raise Refused(401, "Invalid username or password.")
        return ({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": role}}},)

    def _create(self) -> tuple[Any, ...]:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        self._may_write(name)
        kind = asked.get("type", "model") + "s"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repositories:
            return {"error": "You already created this repo", "url": url}, 409, {"X-Error-Message": "already created"}
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.create(name, kind, private)
        return ({"url": url, "name": name},)

    def _info(self, kind: str, name: str, revision: str = "main") -> tuple[Any, ...]:
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision)
        siblings = [{"rfilename": path, "size": len(data)} for path, data in commit.files.items()]
        base = {"id": name, "private": repository.private, "sha": commit.oid, "siblings": siblings, "tags": []}
        return ({**base, "lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0},)

    def _branch(self, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        repository = self._repository(kind, name)
        self._may_write(name)
        if unquote(revision) in repository.branches:
            raise Refused(409, "Reference already exists")
        repository.branches[unquote(revision)] = list(repository.branches["main"])
        return ({},)

    def _refs(self, kind: str, name: str) -> tuple[Any, ...]:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": history[-1].oid}
            for branch, history in self._repository(kind, name).branches.items()
        ]
        return ({"branches": branches, "converts": [], "tags": []},)

    def _tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> tuple[Any, ...]:
        files = self._commit(self._repository(kind, name), revision).files
        prefix = f"{unquote(folder)}/" if folder else ""
        below = {path: data for path, data in files.items() if path.startswith(prefix)}
        if folder and not below:
            raise Refused(404, "Entry not found", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() == "true"
        entries = {}
        for path, data in sorted(below.items()):
            steps = path[len(prefix) :].split("/")
            for depth in range(1, len(steps)):
                where = prefix + "/".join(steps[:depth])
                if recursive or depth == 1:
                    entries[where] = {"type": "directory", "path": where, "oid": _oid(where), "size": 0}
            if recursive or len(steps) == 1:
                entries[path] = _file(path, data)
        return self._page(list(entries.values()))

    def _page(self, entries: list[Any], size: int = 20) -> tuple[Any, ...]:
        begin = int(self.query.get("cursor", 0))
        headers = {}
        if begin + size < len(entries):
            query = "&".join(f"{k}={quote(v)}" for k, v in {**self.query, "cursor": str(begin + size)}.items())
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        return entries[begin : begin + size], 200, headers

    def _paths(self, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        files = self._commit(self._repository(kind, name), revision).files
        asked = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        found = [_file(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if path not in files and any(f.startswith(f"{path}/") for f in files)]
        return (found + [{"type": "directory", "path": path, "oid": _oid(path), "size": 0} for path in folders],)

    # ---- Uploads ----

    def _validate(self) -> tuple[Any, ...]:
        text = json.loads(self.body)["content"]
        try:
            front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
            errors = [] if isinstance(front, dict) else [{"message": "metadata must be an object"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        return {"errors": errors, "warnings": []}, 400 if errors else 200

    def _preupload(self, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        repository = self._repository(kind, name)
        self._may_write(name)
        files = self._commit(repository, revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            there = files.get(file["path"])
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            oid = None if there is None else _sha256(there) if mode == "lfs" else _git_hash(there)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return ({"files": answers},)

    def _batch(self, name: str, kind: str | None = None) -> tuple[Any, ...]:
        self._repository(kind or "models", name)
        self._may_write(name)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if self.hub.refused_lfs is not None:
                answer["error"] = {"code": 422, "message": self.hub.refused_lfs}
            elif asked["oid"] not in self.hub.lfs:
                answer["actions"] = self._actions(asked["oid"], asked["size"])
            objects.append(answer)
        return ({"transfer": "basic", "objects": objects},)

    def _actions(self, oid: str, size: int) -> dict[str, Any]:
        upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{oid}?X-Amz-Signature=5ec3e7"}
        if self.hub.part_size is not None and size > self.hub.part_size:
            parts = range(1, -(-size // self.hub.part_size) + 1)
            urls = {f"{part:05d}": f"{self.hub.url}/lfs/{oid}/{part}" for part in parts}
            upload["header"] = {"chunk_size": str(self.hub.part_size), **urls}
        return {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{oid}/verify"}}

    def _put(self, oid: str, part: str | None = None) -> tuple[Any, ...]:
        if part is None:
            self.hub.lfs[oid] = self.body
        else:
            self.hub.parts[oid, int(part)] = self.body
        return b"", 200, {"ETag": f'"{_sha256(self.body)}"'}

    def _complete(self, oid: str) -> tuple[Any, ...]:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self.hub.lfs[oid] = b"".join(self.hub.parts[oid, number] for number in numbers)
        return ({},)

    def _verify(self, oid: str) -> tuple[Any, ...]:
        if _sha256(self.hub.lfs[oid]) != oid:
            del self.hub.lfs[oid]
            raise Refused(422, "sha256 of the uploaded file is another")
        return ({},)

    def _post_commit(self, kind: str, name: str, revision: str) -> tuple[Any, ...]:
        repository = self._repository(kind, name)
        self._may_write(name)
        head = self._commit(repository, revision)
        files, added, deleted, header = dict(head.files), [], [], {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                header = value
            elif entry["key"] == "deletedFile":
                if value["path"] not in files:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[value["path"]]
                deleted.append(value["path"])
            else:
                files[value["path"]] = self._content(entry["key"], value)
                added.append(value["path"])
        if header.get("parentCommit", head.oid) != head.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        history = repository.branches[unquote(revision)]
        oid = _oid(f"{head.oid}{header['summary']}{len(history)}")
        history.append(Commit(oid, header["summary"], files, added, deleted))
        return ({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"},)

    def _content(self, key: str, value: dict[str, Any]) -> bytes:
        if key == "file":
            return base64.b64decode(value["content"])
        if value["oid"] not in self.hub.lfs:
            raise Refused(400, f"LFS object {value['oid']} was not uploaded")
        return self.hub.lfs[value["oid"]]

    # ---- Downloads ----

    def _resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> tuple[Any, ...]:
        commit = self._commit(self._repository(kind or "models", name), revision)
        data = commit.files.get(unquote(path))
        if data is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        etag = _sha256(data) if path.endswith(LFS_SUFFIXES) else _git_hash(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.command == "HEAD":
            return b"", 200, {**headers, "Content-Length": str(len(data))}
        if not asked:
            return data, 200, headers
        begin, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if begin >= len(data):
            raise Refused(416, "Range not satisfiable")
        return data[begin : end + 1], 206, {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"}


API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = (
    (r"GET /api/whoami-v2", "_whoami"),
    (r"POST /api/repos/create", "_create"),
    (r"POST /api/validate-yaml", "_validate"),
    (rf"GET {API}", "_info"),
    (rf"GET {API}/revision/(?P<revision>[^/]+)", "_info"),
    (rf"GET {API}/refs", "_refs"),
    (rf"POST {API}/branch/(?P<revision>[^/]+)", "_branch"),
    (rf"GET {API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "_tree"),
    (rf"POST {API}/paths-info/(?P<revision>[^/]+)", "_paths"),
    (rf"POST {API}/preupload/(?P<revision>[^/]+)", "_preupload"),
    (rf"POST {API}/commit/(?P<revision>[^/]+)", "_post_commit"),
    (rf"POST {PAGE}\.git/info/lfs/objects/batch", "_batch"),
    (r"PUT /lfs/(?P<oid>\w+)(?:/(?P<part>\d+))?", "_put"),
    (r"POST /lfs/(?P<oid>\w+)/verify", "_verify"),
    (r"POST /lfs/(?P<oid>\w+)", "_complete"),
    (rf"(?:GET|HEAD) {PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "_resolve"),
)
"""Requests, and the method that answers each: with a body, and with a status and headers if it has any."""


class Server(ThreadingHTTPServer):
    """Requests in threads that end with the process."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that broke are what this server is for."""


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers as long as the context lasts, and until every upload has ended."""
    hub = Hub()
    server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.faults.clear()
        hub.stopped.set()
        for upload in [thread for thread in threading.enumerate() if thread.name == "upload"]:
            upload.join(timeout=60)  # one that was given up would ask on, and pause, in the middle of the next test
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _file(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def connect(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the libraries of this process take the server for the Hub, with a cache and a home of their own.

    They read `HF_ENDPOINT` once, when they are imported; see `environment` for a process of its own.
    """
    for name, value in environment(hub, folder).items():
        monkeypatch.setenv(name, value)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(diffusers.loaders.lora_base, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets-cache")
    huggingface_hub.close_session()


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    """Variables with which a new process takes the server for the Hub.

    It looks for certificates in a folder without any: to load the machine's takes each client longer than an upload.
    """
    return {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(folder / "hf-home"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "SSL_CERT_DIR": str(folder),
    }  # fmt: skip
