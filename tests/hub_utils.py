"""The Hugging Face Hub without a network: repositories laid into a cache, and a server that takes uploads."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants
from testing_utils import CHECKPOINT, TEXT_ENCODER

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache_repository(cache_dir: Path, repo_id: str, folder: Path) -> Path:
    """Puts the files of a folder (not of its sub-folders) into a Hub cache, as a download would; its snapshot."""
    repository = Path(cache_dir) / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for path in Path(folder).iterdir():
        if path.is_file():
            shutil.copy(path, snapshot / path.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def use_tiny_audiogen_medium(cache_dir: Path, monkeypatch) -> Path:
    """Lets this process find the tiny checkpoint as facebook/audiogen-medium, and its text encoder as t5-large.

    The cache knows that the repository has no config.json, as after a download.
    """
    cache_repository(cache_dir, "facebook/audiogen-medium", CHECKPOINT)
    cache_repository(cache_dir, "t5-large", TEXT_ENCODER)
    missing = cache_dir / "models--facebook--audiogen-medium" / ".no_exist" / COMMIT
    missing.mkdir(parents=True)
    (missing / "config.json").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache_dir))
    return cache_dir


class HubStandIn:
    """The part of the Hub's HTTP API that creates repositories, takes commits and gives files back.

    As a context manager it serves at `endpoint`; `repositories[repo_id]` maps a path to its bytes.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        repositories = self.repositories

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, content: bytes | dict, status: int = 200, **headers):
                content = json.dumps(content).encode() if isinstance(content, dict) else content
                self.send_response(status)
                for name, value in {"Content-Length": len(content), "X-Repo-Commit": COMMIT, **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def do_GET(self):
                repo_id, _, name = self.path[1:].partition("/resolve/main/")
                files = repositories.get(repo_id, {})
                if name in files:
                    self.answer(files[name], ETag=f'"{name}"')
                else:
                    self.answer({}, 404, **{"X-Error-Code": "EntryNotFound"})

            do_HEAD = do_GET

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                repo_id = "/".join(self.path.split("/")[3:5])  # /api/models/OWNER/NAME/...
                if self.path == "/api/repos/create":
                    request = json.loads(content)
                    repo_id = f"{request['organization']}/{request['name']}"
                    repositories.setdefault(repo_id, {})
                    self.answer({"url": f"http://{self.headers['Host']}/{repo_id}", "name": repo_id})
                elif "/preupload/" in self.path:
                    files = [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(content)["files"]
                    ]
                    self.answer({"files": files})
                elif "/commit/" in self.path:
                    for entry in map(json.loads, content.splitlines()):
                        if entry["key"] == "file":
                            file = entry["value"]
                            repositories[repo_id][file["path"]] = base64.b64decode(file["content"])
                    url = f"http://{self.headers['Host']}/{repo_id}/commit/{COMMIT}"
                    self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
                elif self.path == "/api/validate-yaml":
                    self.answer({"errors": [], "warnings": []})
                else:
                    self.answer({}, 404)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which a process talks to this Hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": "token", "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
