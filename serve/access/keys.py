"""API keys in a file: their hashes, their limits, when they were revoked.

A key is 256 random bits, so one SHA-256 of it gives nothing away and cannot be searched for; a slow
hash, which guards passwords that people choose, would only cost every request its time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepwiser.errors import UserError

PREFIX = "sw-"
REREAD_S = 1.0
"""Longest time that a key goes on working after it was revoked."""


class Key(BaseModel):
    """One key; of the secret itself only the hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: str
    per_minute: int | None = Field(None, ge=1, description="Solutions in any 60 seconds.")
    concurrency: int | None = Field(None, ge=1, description="Solutions judged at a time.")
    revoked: str | None = None


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = []


def digest(secret: str) -> str:
    """What the file has of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """All keys of a file, revoked ones too; raises UserError where it cannot be read."""
    try:
        return _Keys.model_validate_json(path.read_text(encoding="utf-8")).keys
    except OSError as error:
        raise UserError(
            f"key file {path}: {error.strerror}; make one with `stepwiser keys add NAME --file "
            f"{path}`"
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(
            f"key file {path} is damaged: {error}; restore it, or make a new one"
        ) from error


def add_key(
    path: Path, name: str, per_minute: int | None = None, concurrency: int | None = None
) -> str:
    """Write a new key into a file, which is made if there is none; returns the key.

    Raises UserError for a name that is in use or has other characters than letters, digits and
    `.@_-`.
    """
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name and key.revoked is None for key in keys):
        raise UserError(f"key {name}: there is one in {path}; revoke it first or choose a name")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(
            name=name,
            sha256=digest(secret),
            created=_now(),
            per_minute=per_minute,
            concurrency=concurrency,
        )
    except ValidationError as error:
        found = error.errors()[0]
        raise UserError(f"key {name}: {found['loc'][0]}: {found['msg']}") from error
    _write(path, [*keys, key])
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Mark a key as revoked; raises UserError where there is none of that name in use."""
    keys = read_keys(path)
    if not any(key.name == name and key.revoked is None for key in keys):
        known = ", ".join(key.name for key in keys if key.revoked is None) or "none"
        raise UserError(f"key {name}: {path} has no such key in use (in use: {known})")
    now = _now()
    revoked = [
        key.model_copy(update={"revoked": now}) if key.name == name and key.revoked is None else key
        for key in keys
    ]
    _write(path, revoked)


class KeyRing:
    """The keys that a server takes: those of a file, and one of its environment.

    The file is looked at again every second, so a key that is added or revoked needs no restart.
    """

    def __init__(self, path: Path | None, token: str | None = None) -> None:
        """``token``: a key without limits, called `environment`.

        Raises UserError for a file that cannot be read.
        """
        self._path = path
        self._fixed = []
        if token is not None:
            self._fixed = [Key(name="environment", sha256=digest(token), created=_now())]
        self._keys: list[Key] = []
        self._stamp: tuple[int, int, int] | None = None
        self._looked = 0.0
        self._refresh()

    @property
    def required(self) -> bool:
        """Whether anyone has to show a key."""
        return self._path is not None or bool(self._fixed)

    def find(self, secret: str) -> Key | None:
        """The key of a secret, None where it is unknown or revoked.

        Takes the same time whichever it is: every hash is compared, and each in constant time.
        Raises UserError where the file cannot be read any more: then nobody is let in.
        """
        if time.monotonic() - self._looked > REREAD_S:
            self._refresh()
        wanted, found = digest(secret), None
        for key in (*self._fixed, *self._keys):
            if hmac.compare_digest(key.sha256, wanted) and key.revoked is None:
                found = key
        return found

    def _refresh(self) -> None:
        if self._path is not None:
            try:
                status = self._path.stat()
            except OSError:
                self._stamp = None
                read_keys(self._path)  # raises with the reason
                raise
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                self._keys = read_keys(self._path)
                self._stamp = stamp
        self._looked = time.monotonic()


def secret_of(authorization: str) -> str:
    """The secret in an Authorization header; empty where there is none.

    `Bearer SECRET`, or `Basic` with the secret as the password: trainers that send no header of
    their own do send that one for an address like `http://any:SECRET@host/…`.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except ValueError:  # not base64, or not of ASCII, or not of UTF-8
            return ""
        return decoded.partition(":")[2]
    return ""


def _write(path: Path, keys: list[Key]) -> None:
    """Whole or not at all, and for its owner's eyes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_Keys(keys=keys).model_dump_json(indent=1, exclude_none=True) + "\n")
    os.replace(partial, path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
