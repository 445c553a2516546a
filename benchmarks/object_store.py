"""An S3 server of this machine, in a process of its own, and a proxy before it that throttles.

moto's server comes with `make setup`, into `.venv/s3`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}
START_S = 300.0
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"


@contextlib.contextmanager
def throttling_bucket(log: Path, refused: float) -> Iterator[str]:
    """An empty bucket that answers a share of all requests with 503; gives its address, to which
    the environment leads while the block lasts.

    Raises FileNotFoundError where there is no server.
    """
    program = Path(sys.prefix) / "s3" / "bin" / "moto_server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    before = dict(os.environ)
    with log.open("wb") as file, subprocess.Popen(words, stdout=file, stderr=file) as server:
        try:
            _make_bucket(f"http://127.0.0.1:{port}/{BUCKET}", server, log)
            with _proxy(port, refused) as url:
                os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=url)
                yield f"s3://{BUCKET}"
        finally:
            os.environ.clear()
            os.environ.update(before)
            server.kill()


def _make_bucket(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {log.read_text()}") from None
            time.sleep(0.2)


@contextlib.contextmanager
def _proxy(port: int, refused: float) -> Iterator[str]:
    one_put = threading.Lock()
    rng = random.Random(3)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if rng.random() < refused:
                self._answer(503, {"Content-Length": str(len(SLOW_DOWN))}, SLOW_DOWN)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            # moto looks at the condition and then writes, in threads; a store does both at once.
            with one_put if self.command == "PUT" else contextlib.nullcontext():
                upstream.request(self.command, self.path, body, dict(self.headers))
                got = upstream.getresponse()
                data = got.read()
            upstream.close()
            kept = ("content-type", "etag", "last-modified", "content-range", "content-length")
            headers = {name: value for name, value in got.getheaders() if name.lower() in kept}
            self._answer(got.status, {"Content-Length": str(len(data)), **headers}, data)

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """Clients that are killed break off."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
