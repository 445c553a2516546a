"""A person's own verifier: a function or a service, bounded in time, and never False by mistake."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stepwiser.config import parse_config
from stepwiser.data.verifiers import AnswerChecker, check_all, make_checker, voices
from stepwiser.errors import UserError

HERE = "tests.stepwiser.data.answers.own_verifiers"


@pytest.fixture
def trouble() -> Iterator[AnswerChecker]:
    checker = make_checker(f"{HERE}:trouble", timeout_s=1.0)
    yield checker
    checker.close()


async def test_a_function_is_asked_about_answer_reference_and_problem() -> None:
    checker = make_checker(f"{HERE}:last_character", timeout_s=5.0)
    try:
        verdicts = await check_all(checker, ["21", "22", None, "1", "21"], "31", "a problem")
        assert verdicts == [True, False, False, True, True]
        assert checker.knows("21", "31", "a problem")
        assert not checker.knows("21", "31", "an unknown problem")
        assert checker.check("21", "31", "an unknown problem") is None
        assert checker.cannot_say == {"it cannot say": 1}
        assert checker.verifies("?") and not checker.verifies("  ")
        assert voices(checker, ["21", "31", "2", "1"]) == {
            "21": "21",
            "31": "21",
            "2": "2",
            "1": "21",
        }
    finally:
        checker.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise", "RuntimeError: no database"),
        ("exit", "SystemExit: 3"),
        ("die", "its process died"),
        ("sleep", "deadline"),
        ("swallow", "deadline"),
        ("string", "it said str, not True, False or None"),
        ("number", "it said int, not True, False or None"),
        ("none", "it cannot say"),
    ],
)
def test_what_fails_is_none_and_counted_and_the_others_are_checked(
    trouble: AnswerChecker, answer: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    verdicts = trouble.check_many(["7", answer, "8", "7"], "7", "p")
    assert verdicts == [True, None, False, True]
    assert trouble.cannot_say == {reason: 1}
    assert time.monotonic() - started < 30
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module:check", ["answer_checker=no_such_module:check", "ModuleNotFoundError"]),
        (f"{HERE}:no_such_function", ["AttributeError", "module:function"]),
        (f"{HERE}:NO_FUNCTION", ["is a int, no function"]),
    ],
)
def test_a_function_that_is_not_there_is_named(path: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make_checker(path, timeout_s=5.0)
    for word in words:
        assert word in str(error.value)


class _Service(BaseHTTPRequestHandler):
    """Right where the answer is the reference; `seen` has the sizes of what was asked."""

    def do_POST(self) -> None:
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        self.server.seen.append(len(items))  # type: ignore[attr-defined]
        answers = {item["answer"] for item in items}
        if "slow" in answers:
            for _ in range(100):  # drips, so that no single read takes long
                self.wfile.write(b"H")
                self.wfile.flush()
                time.sleep(0.1)
        status = 500 if "broken" in answers else 200
        verdicts = [None if i["answer"] == "?" else i["answer"] == i["reference"] for i in items]
        if "short" in answers:
            verdicts.pop()
        body = b"no JSON" if "garbage" in answers else json.dumps({"verdicts": verdicts}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


def test_a_service_is_asked_about_many_at_once(service: ThreadingHTTPServer) -> None:
    checker = make_checker(f"http://127.0.0.1:{service.server_port}/check", timeout_s=2.0)
    try:
        answers = [*map(str, range(100)), "?", None]
        verdicts = checker.check_many(answers, "7", "p")
        assert verdicts == [answer == "7" for answer in answers[:100]] + [None, False]
        assert service.seen == [64, 37]  # type: ignore[attr-defined]
        for bad in ("broken", "short", "garbage", "slow"):
            assert checker.check_many([bad, "9"], "9", bad) == [None, None]
        assert checker.check("9", "9", "again") is True
        reasons = " ".join(checker.cannot_say)
        for word in ("HTTPError", "no list verdicts of 2", "JSONDecodeError", "deadline"):
            assert word in reasons or (word == "deadline" and "imeout" in reasons), reasons
        assert checker.cannot_say.total() == 9
    finally:
        checker.close()


@pytest.mark.parametrize(
    "kind", ["exact", "math_verify", "pkg.checks:same", "m:C.same", "http://host:1/x", "https://h"]
)
def test_the_configuration_takes_names_functions_and_addresses(kind: str) -> None:
    assert parse_config({"answer_checker": kind}).answer_checker == kind


@pytest.mark.parametrize("kind", ["exakt", "pkg.checks.same", "a b:c", "ftp://host", "", "m:"])
def test_the_configuration_refuses_others(kind: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config({"answer_checker": kind})
    for word in ("answer_checker", repr(kind), "module:function", "math_verify", "http"):
        assert word in str(error.value)
