"""The report of a run: one self-contained HTML page, from the run directory alone.

In: a run directory in any state (`reading` never fails on what is missing). Out: `report.html`,
sections in the order of `build`, charts as inline SVG. It computes no score of its own: figures
come from `metrics/` as the stages wrote them.
"""

from stepwiser.report.build import build_report

__all__ = ["build_report"]
