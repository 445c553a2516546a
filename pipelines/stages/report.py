"""The report of what has run so far."""

from __future__ import annotations

from typing import Any

from pipelines.session.session import Session
from stepwiser.report import build_report


def run(session: Session) -> dict[str, Any]:
    """Writes reports/report.html; returns its path."""
    path = build_report(session.store)
    session.console.print(f"report: {path}")
    return {"path": path}
