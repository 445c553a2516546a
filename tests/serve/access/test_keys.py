"""Key files: what is in them, who gets in, and when no longer."""

from __future__ import annotations

import base64
import json
import stat
import time
from pathlib import Path

import pytest

from serve.access.keys import KeyRing, add_key, digest, read_keys, revoke_key, secret_of
from stepwiser.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "keys.json"


def test_a_key_is_told_once_and_only_its_hash_is_kept(file: Path) -> None:
    secret = add_key(file, "team", per_minute=60, concurrency=4)
    assert len(secret) > 40
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (key,) = read_keys(file)
    assert (key.name, key.sha256, key.per_minute, key.concurrency) == (
        "team",
        digest(secret),
        60,
        4,
    )


def test_names_are_unique_among_those_in_use(file: Path) -> None:
    first = add_key(file, "team")
    with pytest.raises(UserError, match="key team: there is one"):
        add_key(file, "team")
    with pytest.raises(UserError, match="key a b: name"):
        add_key(file, "a b")
    revoke_key(file, "team")
    second = add_key(file, "team")
    ring = KeyRing(file)
    assert ring.find(first) is None
    assert ring.find(second) is not None
    with pytest.raises(UserError, match=r"has no such key in use \(in use: team\)"):
        revoke_key(file, "other")


def test_a_revoked_key_is_refused_without_a_restart(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.access.keys.REREAD_S", 0.0)
    secret, other = add_key(file, "one"), add_key(file, "two")
    ring = KeyRing(file)
    assert ring.find(secret).name == "one"  # type: ignore[union-attr]
    revoke_key(file, "one")
    assert ring.find(secret) is None
    assert ring.find(other) is not None
    third = add_key(file, "three")
    assert ring.find(third) is not None


def test_every_hash_is_compared_whichever_fits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [add_key(file, f"k{i}") for i in range(5)]
    ring = KeyRing(file)
    compared = []
    real = __import__("hmac").compare_digest

    def counting(one: str, two: str) -> bool:
        compared.append(one)
        return bool(real(one, two))

    monkeypatch.setattr("serve.access.keys.hmac.compare_digest", counting)
    for secret in (secrets[0], secrets[4], "wrong", ""):
        compared.clear()
        ring.find(secret)
        assert len(compared) == 5


def test_no_answer_takes_longer_than_another(file: Path) -> None:
    """Whether a key is the first of two thousand, the last, revoked, unknown or none at all."""
    secrets = [f"sw-{number:040}" for number in range(2000)]
    keys = [
        {"name": f"k{number}", "sha256": digest(secret), "created": "2026-01-01T00:00:00+00:00"}
        for number, secret in enumerate(secrets)
    ]
    keys[1000]["revoked"] = keys[1000]["created"]
    file.parent.mkdir()
    file.write_text(json.dumps({"keys": keys}))
    ring = KeyRing(file)
    asked = [secrets[0], secrets[-1], secrets[1000], secrets[0][:-1] + "x", ""]
    assert [ring.find(secret) is not None for secret in asked] == [True, True, False, False, False]
    fastest = dict.fromkeys(asked, float("inf"))
    for _ in range(60):  # in turn, so that all see the same load of the machine
        for secret in asked:
            began = time.thread_time_ns()
            ring.find(secret)
            fastest[secret] = min(fastest[secret], time.thread_time_ns() - began)
    times = sorted(fastest.values())
    assert times[-1] < 1.3 * times[0], fastest


def test_a_file_that_is_gone_or_damaged_lets_nobody_in(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.access.keys.REREAD_S", 0.0)
    with pytest.raises(UserError, match="stepwiser keys add"):
        KeyRing(file)
    secret = add_key(file, "one")
    ring = KeyRing(file)
    content = file.read_text()
    file.write_text(content[:-10])
    with pytest.raises(UserError, match="is damaged"):
        ring.find(secret)
    file.unlink()
    with pytest.raises(UserError, match="key file"):
        ring.find(secret)
    file.write_text(content)
    assert ring.find(secret) is not None


def test_the_file_is_plain_json(file: Path) -> None:
    add_key(file, "one")
    assert set(json.loads(file.read_text())["keys"][0]) == {"name", "sha256", "created"}


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic " + base64.b64encode(b"any:abc").decode(), "abc"),
        ("Basic " + base64.b64encode(b"abc").decode(), ""),
        ("Basic %%%", ""),
        ("Basic \u00ff", ""),
        ("Basic " + base64.b64encode(b"\xff\xfe:abc").decode(), ""),
        ("abc", ""),
        ("Digest abc", ""),
        ("", ""),
    ],
)
def test_where_a_secret_may_stand(header: str, secret: str) -> None:
    assert secret_of(header) == secret


def test_no_keys_at_all(file: Path) -> None:
    assert KeyRing(None).required is False
    ring = KeyRing(None, "token")
    assert ring.required is True
    assert ring.find("token").name == "environment"  # type: ignore[union-attr]
    assert ring.find("") is None
