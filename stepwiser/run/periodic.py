"""A call that is made again and again beside the work of a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(
    call: Callable[[], object], every_s: float, name: str | None = None
) -> Iterator[None]:
    """Make the call every so many seconds, from a thread of that name, while the block runs.

    The first comes after the first wait; none is under way any more when the block is left. What a
    call raises is printed, as of any thread, and ends the calls, not the block.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            call()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
