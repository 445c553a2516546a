"""What a run shows while it goes on: progress, usage, trackers, Prometheus.

In: counts and figures of a stage. Out: a bar or log lines, seconds and memory of a stage, curves in
W&B, metrics for Prometheus. Nothing here decides anything about the work.
"""
