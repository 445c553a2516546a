"""A head that goes away is told once, and its return."""

from __future__ import annotations

import socket

import pytest
from rich.console import Console

from pipelines.session.head_watch import HeadWatch, answers


def _listening(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def test_it_is_told_once_and_its_return_too() -> None:
    console = Console(record=True, width=400)
    server = _listening()
    port = server.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", console)
    watch.look()
    server.close()
    watch.look()
    assert not console.export_text(clear=False), "one look that finds nobody says nothing"
    for _ in range(3):
        watch.look()
    with _listening(port):
        watch.look()
        watch.look()
    said = console.export_text().splitlines()
    assert len(said) == 2
    assert f"head at 127.0.0.1:{port} does not answer" in said[0]
    assert "start the same command" in said[0] and "answers again" in said[1]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "nowhere.invalid:6379"])
def test_who_is_not_there_does_not_answer(address: str) -> None:
    assert not answers(address, timeout_s=1.0)
