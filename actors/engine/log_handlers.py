"""What the first use of vLLM does to the logs of a process that has some already."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler


@contextmanager
def log_targets_kept() -> Iterator[None]:
    """Give buffered logs their files back that lose them in here.

    vLLM configures its own loggers when it is first used, for which `logging.config` closes every
    handler of the process. A file opens again with its next record, but a `MemoryHandler` has
    forgotten its target, writes nothing from then on and keeps all that it is given: that of Ray
    Serve gets a record a request.
    """
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [h for one in loggers if isinstance(one, logging.Logger) for h in one.handlers]
    targets = {h: h.target for h in handlers if isinstance(h, MemoryHandler)}
    try:
        yield
    finally:
        for handler, target in targets.items():
            if handler.target is None:
                handler.setTarget(target)
