"""S3 servers, one of each kind for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stepwiser.storage.servers import (
    FaultyProxy,
    faulty_proxy,
    rclone_server,
    s3_server,
    use_endpoint,
)


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as url:
        yield url


@pytest.fixture
def proxy(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between this process and the server; no fault yet."""
    with faulty_proxy(s3_url) as proxy:
        use_endpoint(monkeypatch, proxy.url)
        yield proxy


@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("rclone")
    with rclone_server(folder / "server.log", folder / "objects") as url:
        yield url
