"""A Hub of this machine: the few addresses that huggingface_hub asks, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REFUSALS = {
    "gated": (403, "GatedRepo"),
    "absent": (401, "RepoNotFound"),
    "unknown-revision": (404, "RevisionNotFound"),
    "broken": (500, ""),
}
"""Names of models that this Hub does not give, with its answer."""


class LocalHub:
    """Gives models by folder, `org/name`, each at its newest commit."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.asked: list[str] = []
        """Paths, in order."""

    def commit(self, name: str) -> str:
        folder = self.folders[name]
        parts = [f"{file.name} {file.stat().st_mtime_ns}" for file in sorted(folder.iterdir())]
        return hashlib.sha1("\n".join([name, *parts]).encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name, kind, *rest = ["/".join(parts[2:4] if api else parts[:2]), *parts[4 if api else 2 :]]
        if (refusal := REFUSALS.get(name.partition("/")[2])) and not (
            refusal[1] == "GatedRepo" and kind == "revision"  # what a gated model has is no secret
        ):
            return refusal[0], {"X-Error-Code": refusal[1]}, b"{}"
        if name not in self.folders and name != "org/gated":
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if name == "org/gated":
            names, sha = ["config.json", "model.safetensors"], "a" * 40
        else:
            names, sha = sorted(f.name for f in self.folders[name].iterdir()), self.commit(name)
        if kind == "revision":
            info = {"id": name, "sha": sha, "siblings": [{"rfilename": n} for n in names]}
            return 200, {}, json.dumps(info).encode()
        if kind == "tree":
            files = [(n, (self.folders[name] / n).read_bytes()) for n in names]
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files
            ]
            return 200, {}, json.dumps(tree).encode()
        content = (self.folders[name] / rest[-1]).read_bytes()
        digest = hashlib.sha1(content).hexdigest()
        return 200, {"X-Repo-Commit": sha, "ETag": f'"{digest}"'}, content


@contextlib.contextmanager
def local_hub(patch: pytest.MonkeyPatch, folders: dict[str, Path]) -> Iterator[LocalHub]:
    """A Hub that this process asks."""
    hub = LocalHub(folders)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    use_endpoint(patch, f"http://127.0.0.1:{server.server_port}")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_endpoint(patch: pytest.MonkeyPatch, address: str) -> None:
    from huggingface_hub import constants

    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
