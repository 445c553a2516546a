"""Ray's Jobs API: who may ask, what it says, and its errors in words for a person."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.submission.job import PART, RUN, STAGES, WAIT, Job, Known
from stepwiser.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
"""Where `ray dashboard` and a port that is forwarded have it."""
REACH_S = 10.0
"""Longest wait for the first answer."""
AGAIN_S, TRIES = 5.0, 60
"""A tunnel that was cut is tried again so often, while a job is followed."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_OTHERS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that Ray would take in place of the address that it is given."""


class Cluster:
    """The jobs of the cluster behind a dashboard."""

    def __init__(self, address: str) -> None:
        """Raises UserError where nobody answers at the address, or the token is refused."""
        self.address = _checked(address)
        _use_token()
        with _explained(self.address):
            from ray.job_submission import JobSubmissionClient

            # Of what it packs and uploads the summary of `submit` says enough.
            for name in _TALKATIVE:
                logging.getLogger(name).setLevel(logging.WARNING)
            for name in _OTHERS:
                os.environ.pop(name, None)
            self._client: JobSubmissionClient = JobSubmissionClient(self.address)

    def known(self) -> list[Known]:
        """Every job that was submitted, the oldest first."""
        with _explained(self.address):
            found = [_known(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda one: one.started or 0.0)

    def submit(
        self, job: Job, name: str, folder: Path, variables: dict[str, str], stop_s: int
    ) -> None:
        """Upload the folder where the cluster has not got it, and start the job."""
        with _explained(self.address, name):
            self._client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=name,
                metadata=job.metadata,
                runtime_env={
                    "working_dir": str(folder),
                    "env_vars": {**variables, WAIT: str(stop_s)},
                },
            )

    def one(self, name: str) -> Known:
        with _explained(self.address):
            return _known(self._client.get_job_info(name))

    def lines(self, name: str) -> str:
        """What the job has printed until now."""
        with _explained(self.address):
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], object]) -> Known:
        """Hand on what a job prints until it has ended; a connection that breaks is made again."""
        import aiohttp

        seen = 0

        async def tail() -> None:
            nonlocal seen
            at = 0
            async for text in self._client.tail_job_logs(name):
                # Every connection begins with the first line.
                new = text[max(0, seen - at) :]
                at += len(text)
                if new:
                    seen = at
                    write(new)

        for _ in range(TRIES):
            try:
                asyncio.run(tail())
                job = self.one(name)
                if job.over:
                    return job
            except (RuntimeError, OSError, aiohttp.ClientError, UserError) as error:
                write(f"\n[connection lost ({error}); the job goes on, trying again]\n")
            time.sleep(AGAIN_S)
        raise UserError(
            f"{self.address} has not answered for {AGAIN_S * TRIES / 60:.0f} minutes; {name} may "
            f"well go on: `stepwiser logs {name} --follow` when it can be reached"
        )

    def stop(self, name: str) -> bool:
        """Tell a job to end; False where it had."""
        with _explained(self.address):
            return bool(self._client.stop_job(name))


def _checked(address: str) -> str:
    """The address with its scheme; raises UserError for another kind, and where nobody answers."""
    full = address if "://" in address else f"http://{address}"
    parts = urlsplit(full)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address} is not the dashboard's: give http://HEAD:8265, which "
            "`ray dashboard` forwards to this machine"
        )
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=REACH_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"nobody answers at {full} ({error}): is the cluster up, and its port 8265 forwarded "
            "(`ray dashboard FILE`, `kubectl port-forward`)?"
        ) from error
    return full.rstrip("/")


def _use_token() -> None:
    """Send the token where there is one: Ray does so only if it is told that tokens are in use."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextlib.contextmanager
def _explained(address: str, name: str = "") -> Iterator[None]:
    """Ray's errors as a UserError that says what to do."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"{address} refuses this machine's token ({str(error).splitlines()[0]}): set "
            "RAY_AUTH_TOKEN to the cluster's, or put it into ~/.ray/auth_token (docs/cluster.md)"
        ) from error
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise UserError(f"{address} does not answer as a Ray dashboard does: {error}") from error
    except RuntimeError as error:
        if name and "already exists" in str(error):
            raise UserError(
                f"somebody else has just submitted the same: `stepwiser logs {name} --follow`"
            ) from error
        raise UserError(f"{address}: {error}") from error


def _known(details: Any) -> Known:
    """``details``: Ray's `JobDetails`, whose times are milliseconds."""
    about = details.metadata or {}
    wait = ((details.runtime_env or {}).get("env_vars") or {}).get(WAIT)
    return Known(
        name=details.submission_id,
        state=str(getattr(details.status, "value", details.status)),
        run=about.get(RUN, ""),
        stages=tuple(filter(None, about.get(STAGES, "").split(","))),
        part=about.get(PART, ""),
        started=None if details.start_time is None else details.start_time / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        stop_s=int(wait) if wait and wait.isdigit() else None,
    )
