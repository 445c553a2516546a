"""A server over HTTP that answers as the test says: late, in pieces, with an error, or not."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 9, "judge_tokens": 3, "milliseconds": 1.5}
MODEL = {"name": "m", "weight_version": 4}


def judged(*verdicts: str | None) -> dict[str, Any]:
    """The body of an answer with one step a verdict."""
    scores = {"Positive": 0.75, "Negative": 0.25, None: None}
    steps = [
        {"index": i, "text": "s", "verdict": verdict, "score": scores[verdict], "analysis": "a",
         "votes": [verdict], "tokens": 3, "truncated": 0}
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip
    first = next((i for i, v in enumerate(verdicts) if v == "Negative"), -1)
    return {"steps": steps, "first_negative": first, "model": MODEL, "usage": USAGE}


def refusal(kind: str, message: str = "no", param: str | None = None) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "param": param, "request_id": "r1"}}


class Request(BaseHTTPRequestHandler):
    """One request: `path`, `body`, `number` from 0; answered by the server's rule."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer
    body: Any
    number: int

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.body = json.loads(self.rfile.read(length)) if length else None
        with self.server.lock:
            self.number = len(self.server.requests)
            # A connection that is kept has one of these for all its requests.
            self.server.requests.append((time.monotonic(), copy.copy(self)))
        with contextlib.suppress(ConnectionError):  # who asked may have left
            self.server.rule(self)

    do_GET = do_POST

    def answer(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def events(self, *events: tuple[str, Any]) -> None:
        """A stream of these, which then ends."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for name, data in events:
            self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # else clients that connect together wait for seconds

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.rule: Callable[[Request], None] = lambda r: r.answer(200, judged("Positive"))
        self.requests: list[tuple[float, Request]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def pauses(self) -> list[float]:
        """Seconds between each request and the one before it."""
        times = [when for when, _ in self.requests]
        return [b - a for a, b in itertools.pairwise(times)]


@contextlib.contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Serves until the block ends; judges until it gets another rule."""
    made = FaultyServer()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
