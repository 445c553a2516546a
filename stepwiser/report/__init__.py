"""The report of a run: one self-contained HTML page."""

from stepwiser.report.build import build_report

__all__ = ["build_report"]
