from pipelines.cli.app import STAGES, app, main

__all__ = ["STAGES", "app", "main"]
