"""Where `ray up` keeps its SSH connections, which nothing of it removes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def ssh_connections(user: str) -> Path:
    """The folder, called after the person whatever TMPDIR is."""
    return Path(f"/tmp/ray_ssh_{hashlib.sha256(user.encode()).hexdigest()[:10]}")
