"""Places of a configuration and of a command line: paths of this machine, and addresses of buckets.

A run directory may be an address (`s3://bucket/run`); everything else is a folder or a file. An
address read as a path is a folder called `s3:` on whatever node the process runs on, which is lost
with that node; so it is refused there, and `file://` is a path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

from stepwiser.errors import UserError

# One slash is enough: a `Path` has dropped the second. A single letter is a drive, not a scheme.
OBJECT_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
"""Addresses of object stores: S3 and its likenesses, Google Cloud Storage, Azure Blob Storage."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def scheme_of(text: str | Path) -> str | None:
    """The scheme of an address, in small letters; None for a path or a name.

    A folder of this machine whose name ends in a colon can be written `./name:/rest`.
    """
    match = _SCHEME.match(str(text))
    return match[1].lower() if match else None


def without_file_scheme(text: str) -> str:
    """A `file://` address as a path; everything else as it is.

    Raises ValueError for one that names another machine.
    """
    if scheme_of(text) != "file":
        return text
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(
            f"{text} names a machine, {parts.netloc!r}; a path of this one has three slashes: "
            "file:///folder/name"
        )
    # Not parts.path: '#' and '?' are characters of a file's name, not of an address's end.
    return unquote(re.sub(r"(?i)^file:(//(localhost)?(?=/))?", "", text))


def object_address(text: str | Path) -> str | None:
    """The address in a bucket that a text is; None where it is a path, a name, or another address.

    Raises UserError for one that names no bucket.
    """
    scheme = scheme_of(text)
    if scheme not in OBJECT_SCHEMES:
        return None
    place = str(text).partition(":")[2].strip("/")
    if not place:
        raise UserError(f"{text} names no bucket: write {scheme}://bucket/folder")
    return f"{scheme}://{place}"


LocalPlace = Annotated[str, AfterValidator(without_file_scheme)]
"""A path, a `file://` address of one, or a name that stands for something else."""


def address_problem(name: str, text: str | Path) -> str:
    """Why an address cannot be the value of this key or option; empty where it is none."""
    scheme = scheme_of(text)
    if scheme is None or scheme == "file":
        return ""
    return (
        f"{name}={text} is an address of the scheme {scheme}, and only folders and files that this "
        "machine has mounted can be read and written: mount or copy it and name its path "
        "(file:///folder/name works too)"
    )


def local_path(name: str, text: str | Path) -> Path:
    """The path that a command-line option or argument names.

    Raises UserError for an address other than `file://`.
    """
    if problem := address_problem(name, text):
        raise UserError(problem)
    try:
        return Path(without_file_scheme(str(text)))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
