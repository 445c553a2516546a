"""Requests that are almost right: what a client sends by mistake or to do harm.

    python -m tests.serve.fuzz URL 10000 [SEED]    any server; STEPWISER_API_TOKEN is its key

Bodies are examples of the schema with some things wrong; of every ten requests one has something
wrong around its body too. A server passes that answers each of them with success or with an error
of the one shape, and none with a fault of its own.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

CLIENTS = 8
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 1e-320, float("nan"), float("inf"), 2**70, 2**63, -(2**64), "", " ",
    "\x00", "\ud800", "%s{0}{x}", "<chunk>", "</chunk>a", "<|im_end|>", "\u202e", "x" * 3000,
    [], [[]], ["", ""], {}, {"": {}}, {"\ud800": "\udfff"}, [[[[[[[[]]]]]]]], "\\boxed{Positive}",
    "\n\n\n", "1", ["1"] * 600, "NaN", "1e999", "\ufeff", "\ufffe", "e\u0301" * 400,
)  # fmt: skip
"""Values in the place of any other."""
NAMES = ("", "stream", "votes", "n", "deadline_s", "temperature", "\ud800", "__class__", "x" * 300)
NUMBERS = ("1e400", "-1e400", "9" * 5000, "-0", "1" + "0" * 400, "0.1e-9999", "Infinity", "NaN")
"""As JSON, or what some take for it."""
DEEP = ("[" * 5000, '{"problem":' * 5000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900)
TYPES = (
    "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "multipart/form-data", "application/json; charset=utf-16", "application/problem+json",
    "application/json, text/html", "\x7f", "application/" + "x" * 3000, "text/event-stream",
)  # fmt: skip
METHODS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FOO", "post", "CONNECT")


def mutated(example: Any, rng: random.Random) -> bytes:
    """A body like ``example`` with one to three things wrong."""
    value = json.loads(json.dumps(example))
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng)
    body = json.dumps(value).encode()
    kind = rng.random()
    if kind < 0.05:
        return body[: rng.randrange(len(body) + 1)]
    if kind < 0.1:
        at = rng.randrange(len(body) + 1)
        return body[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 8))) + body[at:]
    if kind < 0.12:
        return rng.choice(DEEP).encode()
    if kind < 0.14:  # a name twice
        return body.rstrip(b"}") + b"," + body.lstrip(b"{")
    if kind < 0.16:
        return rng.choice((b"\xef\xbb\xbf" + body, body.decode().encode("utf-16"), b"", b"null"))
    if kind < 0.2:
        name = rng.choice(("votes", "temperature", "deadline_s", "max_tokens", "problem"))
        return body.rstrip(b"}") + f', "{name}": {rng.choice(NUMBERS)}}}'.encode()
    if kind < 0.22:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return body


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.15:
            return {k: v for k, v in value.items() if k != name}
        if kind < 0.3:
            return value | {rng.choice([name + "s", *NAMES]): rng.choice(ODD)}
        return value | {name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


# --- around the body ------------------------------------------------------------------------------


def _framed(path: str, body: bytes, key: str, host: str, rng: random.Random) -> tuple[str, bytes]:
    """A request as bytes, of which something outside the body is wrong; and what."""
    method, headers = "POST", {
        "Host": host, "Authorization": f"Bearer {key}", "Content-Type": "application/json",
        "Content-Length": str(len(body)), "Connection": "close",
    }  # fmt: skip
    what = rng.choice(
        ("type", "method", "path", "query", "gzip", "chunked", "bad chunks", "short", "long",
         "length", "both", "header", "headers", "expect", "authorization", "not HTTP")
    )  # fmt: skip
    match what:
        case "type":
            headers["Content-Type"] = rng.choice(TYPES)
        case "method":
            method = rng.choice(METHODS)
        case "path":
            path = rng.choice(
                (f"{path}/", f"/{path}", f"{path}%00", f"{path}%ff", f"/page/..{path}", "/*", "*",
                 f"{path}/%2e%2e/x", f"{path}{'x' * 8000}", "/page/../app.js", "/\u00e9".encode()
                 .decode("latin-1"), path.upper(), f"{path}%0d%0aX: y", "")
            )  # fmt: skip
        case "query":
            path += rng.choice(
                ("?reduction=", "?reduction=%ff", "?reduction=%ed%a0%80", "?" + "a=1&" * 2000,
                 "?reduction=min&reduction=last", "?%00=%00", "?key=" + key)
            )  # fmt: skip
        case "gzip":
            body = rng.choice((gzip.compress(body), gzip.compress(b" " * 10_000_000), body))
            headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
        case "chunked" | "bad chunks" | "both":
            if what != "both":
                del headers["Content-Length"]
            headers["Transfer-Encoding"] = "chunked"
            parts = [body[i : i + 7] for i in range(0, min(len(body), 4000), 7)]
            good = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            bad = (b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", good[:-3], b"5\r\nab\r\n0\r\n")
            body = good if what == "chunked" else rng.choice(bad)
        case "short":
            headers["Content-Length"] = str(len(body) // 2)
        case "long":
            headers["Content-Length"] = str(len(body) + 10)
        case "length":
            headers["Content-Length"] = rng.choice(
                ("-1", "1_0", "\u00b2", "", "0x10", "9" * 30, "9" * 5000, "1, 2", "+5", "1e3")
            )
        case "header":
            headers["X-Long"] = "x" * rng.choice((7_000, 60_000, 200_000))
        case "headers":
            headers |= {f"X-{i}": "\u00ff" for i in range(rng.choice((50, 3000)))}
        case "expect":
            headers["Expect"] = rng.choice(("100-continue", "a miracle"))
        case "authorization":
            headers["Authorization"] = rng.choice(
                ("", "Bearer", f"Basic {key}", "Bearer " + "x" * 20_000, "Basic \u00ff", f" {key}",
                 f"bearer {key}", "Basic Og==", "Digest x", f"Bearer {key}\u00ff")
            )  # fmt: skip
        case "not HTTP":
            noise = bytes(rng.randrange(256) for _ in range(200))
            return what, rng.choice((noise, b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\n"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return what, f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


BROKEN = {"bad chunks", "long", "length", "both", "header", "headers", "not HTTP", "path", "method",
          "short", "type", "authorization", "expect"}  # fmt: skip
"""Whose HTTP may be none, so that whoever speaks HTTP in front refuses it in words of its own."""
UNFINISHED = {"bad chunks", "long", "length", "both", "not HTTP"}
"""Of which a server may wait for more."""


def _sent(address: tuple[str, int], request: bytes, ends: bool) -> http.client.HTTPResponse | None:
    """What comes back; None where the server hangs up, as it may on what is no HTTP.

    ``ends``: tell that nothing more comes, which makes a client that has left of one that waits.
    """
    method = request.partition(b" ")[0].decode("latin-1")
    with socket.create_connection(address, timeout=120) as connection:
        try:
            connection.sendall(request)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            reply = http.client.HTTPResponse(connection, method=method)
            reply.begin()
            reply.body = reply.read()  # type: ignore[attr-defined]
            return reply
        except (ConnectionError, http.client.RemoteDisconnected, http.client.BadStatusLine):
            return None


# --- a server under it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    number: int
    path: str
    body: bytes


def examples(schema: dict[str, Any]) -> dict[str, Any]:
    """A right body of every route that takes one, by path."""

    def example(reference: dict[str, Any]) -> Any:
        model = schema["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
        if "examples" in model:
            return model["examples"][0]
        return {"items": [example(model["properties"]["items"]["items"])]}

    return {
        path: example(methods["post"]["requestBody"]["content"]["application/json"]["schema"])
        for path, methods in schema["paths"].items()
        if "post" in methods
    }


def fuzz(url: str, key: str, count: int, seed: int = 0) -> Counter[str]:
    """Send so many requests, all routes in turn; returns the number of answers by kind.

    Raises AssertionError, with the request, for an answer that is a fault of the server's, an error
    of another shape, or a server that does not answer a right request afterwards.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=300) as client:
        bodies = examples(client.get("/openapi.json").raise_for_status().json())
        for path, body in bodies.items():  # little work where all is right
            name = "items" if path.endswith("/batch") else None
            for solution in body[name] if name else [body]:
                if {"problem", "steps"} <= set(solution):
                    solution |= {"max_tokens": 8, "votes": 1}
        found: Counter[str] = Counter()
        faults: list[str] = []

        def tried(case: _Case) -> str:
            try:
                return _tried(client, url, key, case, seed)
            except AssertionError as fault:
                faults.append(str(fault))
                return "fault"

        with ThreadPoolExecutor(CLIENTS) as threads:
            for kind in threads.map(tried, _cases(bodies, count, seed)):
                found[kind] += 1
        right = bodies["/v1/judge"]
        reply = client.post("/v1/judge", json=right)
        assert reply.status_code == 200, f"after all of it: {reply.status_code} {reply.text}"
    assert not faults, f"{len(faults)} faults, such as\n" + "\n".join(faults[:5])
    return found


def _cases(bodies: dict[str, Any], count: int, seed: int) -> Iterator[_Case]:
    rng, paths = random.Random(seed), sorted(bodies)
    for number in range(count):
        path = paths[number % len(paths)]
        yield _Case(number, path, mutated(bodies[path], rng))


def _tried(client: httpx.Client, url: str, key: str, case: _Case, seed: int) -> str:
    rng = random.Random(f"{seed} {case.number}")
    if rng.random() < 0.1:
        return _tried_frame(url, key, case, rng)
    reply = client.post(case.path, content=case.body, headers={"content-type": "application/json"})
    told = f"{case.path} {case.body[:600]!r}: {reply.status_code} {reply.text[:600]}"
    late = reply.status_code == 504 and b"deadline_s" in case.body
    assert reply.status_code < 500 or late, told
    if reply.status_code >= 400:
        _check_shape(reply.content, reply.headers.get("x-request-id"), told)
    return str(reply.status_code)


def _tried_frame(url: str, key: str, case: _Case, rng: random.Random) -> str:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    what, request = _framed(case.path, case.body, key, f"{host}:{port}", rng)
    reply = _sent((host, port), request, what in UNFINISHED)
    if reply is None:
        assert what in BROKEN, f"{what}: hung up on {request[:600]!r}"
        return "hung up"
    body: bytes = reply.body  # type: ignore[attr-defined]
    told = f"{what} {request[:600]!r}: {reply.status} {body[:600]!r}"
    late = reply.status == 504 and b"deadline_s" in case.body
    assert reply.status < 500 or late, told
    is_path = request.partition(b" ")[2].startswith(b"/")
    plain = (
        what in BROKEN
        and reply.status in ((400,) if is_path else (400, 404))
        and not body.startswith(b"{")
    )
    if reply.status >= 400 and body and not plain:
        _check_shape(body, reply.headers.get("x-request-id"), told)
    return "not HTTP" if plain else str(reply.status)


def _check_shape(content: bytes, request_id: str | None, told: str) -> None:
    try:
        body = json.loads(content)
    except ValueError:
        raise AssertionError(told) from None
    assert set(body) == {"error"}, told
    keys = set(body["error"])
    assert {"type", "message", "request_id"} <= keys, told
    assert keys <= {"type", "message", "request_id", "param"}, told
    assert body["error"]["request_id"] == request_id, told


if __name__ == "__main__":
    token, seed = os.environ.get("STEPWISER_API_TOKEN", ""), int((sys.argv[3:] or ["0"])[0])
    answers = fuzz(sys.argv[1], token, int(sys.argv[2]), seed)
    print(json.dumps(dict(answers.most_common())))
