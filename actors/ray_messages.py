"""What Ray prints of a cluster, on the terminal of the program that uses it."""

from __future__ import annotations


def hush() -> None:
    """Print nothing of what Ray reports from here on, for whoever takes actors down on purpose.

    Calls to them that were under way are reported as "(raylet) Task … failed", as if something had
    gone wrong. The next `ray.init` of the process prints again.
    """
    # Ray 2.60 has no public switch: `log_to_driver` leaves these on. This is what it does itself
    # when a driver disconnects.
    from ray._private.worker import global_worker

    if global_worker.connected and hasattr(global_worker, "gcs_error_subscriber"):
        global_worker.threads_stopped.set()
        global_worker.gcs_error_subscriber.close()
