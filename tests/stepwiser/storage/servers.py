"""A real S3 server in a process of its own, and a proxy before it that does what networks do."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}


def _program(name: str) -> Path:
    """Of an environment of its own, since moto wants older packages than we do."""
    program = Path(sys.prefix) / "s3" / "bin" / name
    if not program.is_file():
        pytest.skip(f"no S3 server at {program}: `make setup` installs it")
    return program


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """moto's S3 server with an empty bucket; gives its URL."""
    port = _free_port()
    with _serving([_program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, log) as url:
        yield url


@contextlib.contextmanager
def rclone_server(log: Path, folder: Path) -> Iterator[str]:
    """rclone's S3 server, which keeps objects as files of a folder and takes no notice of
    conditions, with an empty bucket; gives its URL."""
    port = _free_port()
    key = ",".join(CREDENTIALS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    words = [_program("rclone"), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    (folder / BUCKET).mkdir(parents=True)
    with _serving([*words, "--auth-key", key, "--config", os.devnull], port, log) as url:
        yield url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _serving(words: list[str | Path], port: int, log: Path) -> Iterator[str]:
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120.0
        while True:
            try:
                make_bucket(url, BUCKET)
                break
            except urllib.error.HTTPError:  # it has one, and wants signed requests
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def make_bucket(url: str, name: str) -> None:
    request = urllib.request.Request(f"{url}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


@dataclass
class Fault:
    """What happens to the next requests that fit, instead of what should."""

    method: str
    part: str = ""
    """Of the path and query."""
    times: int = 1
    status: int | None = None
    """Answer with it at once, the server never hears of the request."""
    code: str = ""
    """In the answer's XML."""
    lose_answer: bool = False
    """The server does what it is asked, and the connection ends before it can say so."""
    cut_at: int | None = None
    """The answer's connection ends after so many bytes of the body."""
    stall_s: float = 0.0
    """Wait so long in the middle of the answer's body."""
    before: Callable[[], object] | None = None
    """Called before the request goes on."""
    after: Callable[[], object] | None = None
    """Called when the server has done what it was asked."""
    seen: int = 0


@dataclass
class FaultyProxy:
    """Passes requests on to a server, but for those that a fault fits."""

    target: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def fault(self, method: str, part: str = "", **kind: object) -> Fault:
        self.faults.append(Fault(method, part, **kind))  # type: ignore[arg-type]
        return self.faults[-1]

    def next_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and fault.part in path and fault.seen < fault.times:
                fault.seen += 1
                return fault
        return None


@contextlib.contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(target)
    host, port = target.removeprefix("http://").split(":")
    one_put = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.requests.append((self.command, self.path))
            fault = proxy.next_fault(self.command, self.path)
            if fault is not None and fault.before is not None:
                fault.before()
            if fault is not None and fault.status is not None:
                xml = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>"
                self.answer(fault.status, {"Content-Type": "application/xml"}, xml.encode(), None)
                return
            upstream = http.client.HTTPConnection(host, int(port), timeout=60)
            # moto looks at the condition and then writes, in threads; a store does both at once.
            with one_put if self.command == "PUT" else contextlib.nullcontext():
                upstream.request(self.command, self.path, body, dict(self.headers))
                got = upstream.getresponse()
                data = got.read()
            upstream.close()
            if fault is not None and fault.after is not None:
                fault.after()
            if fault is not None and fault.lose_answer:
                self.end()
                return
            kept = ("content-type", "etag", "last-modified", "content-range", "accept-ranges")
            headers = {k: v for k, v in got.getheaders() if k.lower() in kept}
            if self.command == "HEAD":
                headers["Content-Length"] = got.getheader("Content-Length") or "0"
            self.answer(got.status, headers, data, fault)

        def answer(
            self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return  # what came after the headers would be read as the next answer
            if fault is not None and fault.cut_at is not None:
                self.wfile.write(data[: fault.cut_at])
                self.end()
                return
            middle = len(data) // 2
            self.wfile.write(data[:middle])
            if fault is not None and fault.stall_s:
                self.wfile.flush()
                time.sleep(fault.stall_s)
            self.wfile.write(data[middle:])

        def end(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: object) -> None:
            pass

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """A client that gives a slow answer up is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have this process, and those that it starts, find the store there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
