"""The `stepwiser` command.

In: words of a command line. Out: a stage, here or as a job of a cluster (`jobs_commands`), or a
printed answer from a run directory (`run_commands`) or from arithmetic (`cost_command`,
`layout_command`). Heavy imports happen inside a command, so that `--help` is instant.
"""

from pipelines.cli.app import STAGES, app, main

__all__ = ["STAGES", "app", "main"]
