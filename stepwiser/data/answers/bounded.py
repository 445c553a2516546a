"""Work in one process of its own, each piece under a deadline that nothing can outlast.

Math-Verify and whatever a person brings as a verifier may loop, eat memory, print, or die. So they
run in a spawned process, where an alarm ends what is Python, and its parent ends the rest by
killing the process. What was not answered is None with a reason, never False.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stepwiser.data.answers.spawned import ProcessDied, SpawnedProcess

GRACE_S = 1.0
"""What the process has beyond a deadline to say so itself, before it is killed."""

START_S = 60.0
"""Longest start of the process with its imports, which is no part of a deadline."""

MEMORY_BYTES = 4 << 30
"""Address space that mathematics may take on top of a new process: 9^9^9^9 wants all there is."""


class Outcome(NamedTuple):
    """What came of one question."""

    verdict: bool | None
    reason: str = ""
    """Why it is None."""


Job = Callable[[Sequence[str], str, str], list[Outcome]]
"""Answers, their reference and the problem; picklable, so a function of a module or a partial."""


class Deadline(BaseException):
    """Passes through the handlers of libraries that swallow every Exception."""


class BoundedProcess:
    """Runs one job after another in a process that starts when it is first needed."""

    def __init__(self, deadline_s: float, *, warm_up: Callable[[], object], quiet: bool) -> None:
        """
        Args:
            deadline_s: seconds of one job.
            warm_up: called once in a new process, for its imports.
            quiet: also nothing on stderr, and no more memory than mathematics needs.
        """
        self.deadline_s = deadline_s
        self._warm_up = warm_up
        self._quiet = quiet
        self._process: SpawnedProcess | None = None

    def run(
        self, job: Job, batches: Sequence[Sequence[str]], reference: str, problem: str
    ) -> list[list[Outcome]]:
        """Outcomes of every batch, in order; not to be called by two threads at a time.

        A batch that outlasts its deadline, or that the process dies of twice, is None throughout.
        """
        done: list[list[Outcome]] = []
        died = False
        while len(done) < len(batches):
            batch = batches[len(done)]
            arguments = (job, batch, reference, problem, self.deadline_s)
            try:
                process = self._started()
                done.append(process.call(self.deadline_s + GRACE_S, _in_time, *arguments))
                died = False
            except (TimeoutError, ProcessDied) as error:
                # Killed, perhaps not for this answer: only a second death speaks against it.
                self.close()
                if isinstance(error, TimeoutError) or died:
                    reason = "its process died" if died else "deadline"
                    done.append([Outcome(None, reason)] * len(batch))
                    died = False
                else:
                    died = True
        return done

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns or raises in the process, which has long enough to import."""
        return self._started().call(START_S, function)

    def _started(self) -> SpawnedProcess:
        if self._process is None:
            self._process = SpawnedProcess(partial(_begin, self._quiet))
            self._process.call(START_S, self._warm_up)
        return self._process

    def close(self) -> None:
        """End the process, also one that hangs; it starts again when it is needed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()


def _begin(quiet: bool) -> None:
    """Before anything is imported: what is printed here belongs on nobody's terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if quiet:
        os.dup2(nowhere, 2)
        logging.disable()
        warnings.simplefilter("ignore")
        with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _ring)


_working = False


def _ring(signum: int, frame: object) -> None:
    if _working:
        raise Deadline


def _in_time(
    job: Job, answers: Sequence[str], reference: str, problem: str, seconds: float
) -> list[Outcome]:
    """A job under an alarm, which rings again and again: somebody may catch the first."""
    global _working
    reason = "deadline"
    try:
        _working = True
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        return job(answers, reference, problem)
    except Deadline:
        pass
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        _working = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return [Outcome(None, reason)] * len(answers)
