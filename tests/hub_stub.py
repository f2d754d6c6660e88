"""A Hub in memory: models, datasets and spaces are created, pushed and pulled by huggingface_hub as from the real one.

```python
with running_hub() as endpoint:
    subprocess.run([...], env={**os.environ, **client_environment(endpoint, tmp_path)})
```

Clients are processes of their own, because huggingface_hub reads its endpoint when it is imported.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

USER = "user"
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = (".safetensors", ".parquet", ".bin", ".mp4")  # what goes through LFS


class HubError(Exception):
    """An answer with the headers from which huggingface_hub makes its exceptions."""

    def __init__(self, code: str, message: str):
        self.code, self.message = code, message


@dataclass
class Repository:
    """Its commits, oldest first: (id, {path: content}), and who may see it."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        for oid, files in reversed(self.commits):
            if revision in ("main", oid):
                return oid, files
        raise HubError("RevisionNotFound", f"there is no revision {revision}")


@dataclass
class Hub:
    """Everything that was pushed: repositories by (kind, "owner/name"), and large files by their SHA-256."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def repository(self, kind: str, repo: str) -> Repository:
        if (kind, repo) not in self.repositories:
            raise HubError("RepoNotFound", f"there is no {kind} {repo}")
        return self.repositories[kind, repo]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def folders(files: dict[str, bytes]) -> set[str]:
    """The folders that hold files, at any depth."""
    return {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}


def entry(files: dict[str, bytes], path: str) -> dict:
    """What the Hub tells of a file or folder."""
    if path not in files:
        return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
    return {"type": "file", "path": path, "size": len(files[path]), "oid": git_oid(files[path])}


def make_app() -> FastAPI:
    hub = Hub()
    app = FastAPI()

    @app.exception_handler(HubError)
    def explain(request: Request, error: HubError) -> JSONResponse:
        headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
        return JSONResponse({"error": error.message}, 404, headers=headers)

    @app.get("/api/whoami-v2")
    def whoami():
        token = {"displayName": "test", "role": "write"}
        return {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    @app.post("/api/validate-yaml")
    def validate_card():
        return {"errors": [], "warnings": []}

    @app.post("/api/repos/create")
    async def create(request: Request):
        asked = await request.json()
        kind, repo = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{request.base_url}{'' if kind == 'model' else kind + 's/'}{repo}"
        if (kind, repo) in hub.repositories:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        hidden = asked["visibility"] == "private" if asked.get("visibility") else bool(asked.get("private"))
        hub.repositories[kind, repo] = Repository(private=hidden)
        hub.repositories[kind, repo].commit({".gitattributes": b""})
        return {"url": url, "name": repo, "id": repo}

    @app.post("/api/{kinds}/{owner}/{name}/preupload/{revision}")
    async def choose_upload(kinds: str, owner: str, name: str, revision: str, request: Request):
        hub.repository(KINDS[kinds], f"{owner}/{name}")
        files = (await request.json())["files"]
        modes = {True: "lfs", False: "regular"}
        return {
            "files": [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(LARGE)], "shouldIgnore": False}
                for f in files
            ]
        }

    @app.post("/{repo:path}.git/info/lfs/objects/batch")
    async def offer_large_upload(repo: str, request: Request):
        objects = []
        for item in (await request.json())["objects"]:
            upload = {"actions": {"upload": {"href": f"{request.base_url}lfs/{item['oid']}", "header": {}}}}
            objects.append({**item, **({} if item["oid"] in hub.large else upload)})
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    @app.put("/lfs/{oid}")
    async def upload_large(oid: str, request: Request):
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return Response("the content has another SHA-256", 400)
        hub.large[oid] = content
        return Response()

    @app.post("/api/{kinds}/{owner}/{name}/commit/{revision}")
    async def commit(kinds: str, owner: str, name: str, revision: str, request: Request):
        repository = hub.repository(KINDS[kinds], f"{owner}/{name}")
        files = dict(repository.at(revision)[1])
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{request.base_url}{owner}/{name}/commit/{oid}"}

    @app.get("/api/{kinds}/{owner}/{name}")
    @app.get("/api/{kinds}/{owner}/{name}/revision/{revision}")
    def information(kinds: str, owner: str, name: str, revision: str = "main"):
        repository = hub.repository(KINDS[kinds], f"{owner}/{name}")
        oid, files = repository.at(revision)
        siblings = [{"rfilename": path} for path in files]
        return {
            "id": f"{owner}/{name}",
            "sha": oid,
            "private": repository.private,
            "tags": [],
            "siblings": siblings,
        }

    @app.get("/api/{kinds}/{owner}/{name}/tree/{revision}")
    @app.get("/api/{kinds}/{owner}/{name}/tree/{revision}/{folder:path}")
    def tree(kinds: str, owner: str, name: str, revision: str, folder: str = "", recursive: bool = False):
        _, files = hub.repository(KINDS[kinds], f"{owner}/{name}").at(revision)
        entries = {
            path: entry(files, path)
            for path in (*files, *folders(files))
            if path.startswith(f"{folder}/" if folder else "")
        }
        if folder and not entries:
            raise HubError("EntryNotFound", f"there is no folder {folder}")
        depth = folder.count("/") + bool(folder)
        return [entries[path] for path in sorted(entries) if recursive or path.count("/") == depth]

    @app.post("/api/{kinds}/{owner}/{name}/paths-info/{revision}")
    async def paths_info(kinds: str, owner: str, name: str, revision: str, request: Request):
        _, files = hub.repository(KINDS[kinds], f"{owner}/{name}").at(revision)
        paths = (await request.form()).getlist("paths")
        return [entry(files, path) for path in paths if path in files or path in folders(files)]

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kinds}/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def download(owner: str, name: str, revision: str, path: str, request: Request, kinds: str = "models"):
        oid, files = hub.repository(KINDS[kinds], f"{owner}/{name}").at(revision)
        if path not in files:
            raise HubError("EntryNotFound", f"there is no file {path}")
        content = files[path]
        headers = {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(content))})
        if asked := request.headers.get("Range"):  # streamed datasets read pieces
            first, last = asked.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return Response(content[first : last + 1], 206, headers=headers)
        return Response(content, headers=headers)

    return app


@contextmanager
def running_hub() -> Iterator[str]:
    """An empty Hub on a free port of this machine; yields its address."""
    server = uvicorn.Server(uvicorn.Config(make_app(), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the Hub did not start")
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Variables that lead a process to this Hub, with a cache of its own under `home`."""
    return {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": "hf_test"}
