"""What Ray prints of a cluster, on the terminal of the program that uses it."""

from __future__ import annotations


def hush() -> None:
    """Print nothing of what Ray reports from here on, for whoever takes actors down on purpose.

    Calls to them that were under way are reported as failed tasks "(raylet) Task … failed", as if
    something had gone wrong. The next `ray.init` of the process prints again.
    """
    # Ray 2.60 has no public switch: `log_to_driver` leaves these on.
    from ray._private.ray_logging import global_worker_stdstream_dispatcher

    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
