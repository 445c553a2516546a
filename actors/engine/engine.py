"""One engine: requests from any thread or event loop, answered by a thread that steps vLLM.

The thread owns vLLM's synchronous engine (`vllm_core`). Commands (new weights, sleep) run in it
between two steps, so nothing has to be paused for them and running requests survive. Engine and
callers share a process by default, which on a laptop saves two processes and ten seconds;
``multiprocess=True`` gives vLLM's core a process of its own, which a GPU engine wants.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any

from actors.engine.vllm_core import MAX_TOP_LOGPROBS, EngineOptions, VllmCore, engine_environment
from actors.engine.worker_extension import Payload
from actors.weight_sync.transfer import TransferFailed
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling

__all__ = ["Engine", "EngineFailure", "EngineOptions", "EngineStats", "engine_environment"]


@dataclass(frozen=True)
class EngineStats:
    """Counters since the engine was ready."""

    generated_tokens: int = 0
    """As they are sampled, also of requests that are not answered yet or never will be."""
    prompt_tokens: int = 0
    """Tokens of the prompts answered, each prompt once however many samples it gave."""
    cached_prompt_tokens: int = 0
    """Of those, tokens that the prefix cache held for the last sample of each prompt."""
    finished_requests: int = 0
    sequences_running: int = 0
    sequences_waiting: int = 0
    max_num_seqs: int = 0
    """Sequences decoded at once."""
    kv_usage: float | None = None
    """Share of the KV cache in use; None before the first step."""
    weight_version: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    """Time spent in vLLM's steps."""

    @property
    def prefix_hit_rate(self) -> float:
        return self.cached_prompt_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class EngineFailure(RuntimeError):
    """The engine died, or was shut down, before it answered."""


@dataclass
class _Request:
    """A prompt on its way through the engine; `score_from` marks one that is scored."""

    prompt_ids: list[int]
    sampling: Sampling
    future: Future[Any]
    score_from: int | None = None
    on_text: Callable[[str], None] | None = None
    version: int = 0


@dataclass
class _Command:
    run: Callable[[VllmCore], Any]
    future: Future[Any]
    after: str
    """What must have left the engine first: `scores` or `requests`."""


class Engine:
    """A generator (`stepwiser.prompting.generation.Generator`) over one vLLM engine.

    Returns at once; the model is loaded in the background (`start` waits for it) and requests made
    meanwhile wait. After a failure inside vLLM every open and every later request raises
    `EngineFailure`: build a new engine then.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._condition = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._commands: deque[_Command] = deque()
        self._aborted: deque[str] = deque()
        self._running: dict[str, _Request] = {}
        self._ids = count()
        self._closing = False
        self._failure: BaseException | None = None
        self._core: VllmCore | None = None
        self._version = 0
        self._counts = {"scored": 0, "prompt": 0, "cached": 0, "finished": 0}
        self._busy = 0.0
        self._started = time.monotonic()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    # --- what callers use -----------------------------------------------------------------------

    async def start(self) -> None:
        """Wait until the model is loaded; raises what went wrong."""
        await asyncio.shield(asyncio.wrap_future(self._ready))

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """`start` for code without an event loop."""
        self._ready.result(timeout_s)

    @property
    def context_length(self) -> int:
        """Longest prompt plus continuation, in tokens."""
        return self.options.max_model_len

    @property
    def weight_version(self) -> int:
        return self._version

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        """Continue a prompt; ``affinity`` is for pools and ignored here.

        Cancelling the call takes the request out of the engine. Raises UserError for a prompt that
        does not fit and EngineFailure when the engine died.
        """
        return await asyncio.wrap_future(self.submit(prompt_ids, sampling))

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, on_text: Callable[[str], None]
    ) -> Sample:
        """`generate` for one sample whose text so far is told after every step.

        ``on_text`` is called in the engine's thread: it must return at once and not raise.
        """
        if sampling.n != 1:
            raise UserError(f"n={sampling.n}: one sample can be streamed")
        self._check(sampling)
        request = _Request(list(prompt_ids), sampling, Future(), on_text=on_text)
        return (await asyncio.wrap_future(self._enqueue(request)))[0]

    def generate_sync(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Sample]]:
        """Continue many prompts, blocking."""
        futures = [self.submit(prompt, sampling) for prompt in prompts]
        return [future.result() for future in futures]

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling) -> Future[list[Sample]]:
        """Queue a prompt from any thread."""
        self._check(sampling)
        return self._enqueue(_Request(list(prompt_ids), sampling, Future()))

    @staticmethod
    def _check(sampling: Sampling) -> None:
        if sampling.n < 1 or sampling.max_tokens < 1 or sampling.temperature < 0:
            raise UserError(f"{sampling}: n and max_tokens start at 1, temperature at 0")
        if sampling.top_logprobs > MAX_TOP_LOGPROBS:
            raise UserError(
                f"top_logprobs={sampling.top_logprobs}: at most {MAX_TOP_LOGPROBS} per position"
            )

    async def score(self, token_ids: Sequence[int], start: int) -> list[float]:
        """Log-probs of ``token_ids[start:]``, each given all tokens before it, at temperature 1.

        ``start`` is at least 1. The whole sequence may have `context_length` - 1 tokens.
        """
        if not 1 <= start <= len(token_ids):
            raise UserError(f"start={start}: must lie in 1..{len(token_ids)}, the number of tokens")
        request = _Request(list(token_ids), Sampling(max_tokens=1), Future(), score_from=start)
        return await asyncio.wrap_future(self._enqueue(request))

    async def update_weights(self, payload: Payload, version: int) -> None:
        """Load new weights between two steps: a directory of safetensors, safetensors bytes, or
        those of a learner that waits with them (a TransferSpec).

        Running requests go on with the new weights (their prefix is recomputed); their samples keep
        the version they began with. An engine that sleeps takes back the memory for weights before
        they are loaded and the rest after that, and is awake. Raises UserError when names or shapes
        are not those of the loaded model, TransferFailed when the learner's did not arrive; both
        change nothing.
        """
        await self._command(lambda core: self._update(core, payload, version), after="scores")

    async def sleep(self, level: int = 1) -> None:
        """Free GPU memory once running requests are done; later ones wait for `update_weights` or
        `wake`. Nothing happens to an engine that sleeps.

        Level 1 keeps the weights in host memory, level 2 drops them (`update_weights` must follow).
        On a CPU only the waiting happens.
        """
        await self._command(lambda core: core.sleep(level), after="requests")

    async def wake(self, tags: tuple[str, ...] = ("weights", "kv_cache")) -> None:
        """Take these parts of the memory back; requests run again when both are there. Nothing
        happens to an engine that is awake."""
        await self._command(lambda core: core.wake(tags), after="scores")

    async def check_health(self) -> None:
        """Raises EngineFailure when the engine is dead."""
        await self._command(lambda core: core.check(), after="")

    def stats(self) -> EngineStats:
        """Counters at this moment."""
        unfinished, running, kv_usage, sampled = 0, 0, None, 0
        if self._core is not None:
            sampled = self._core.sampled - self._counts["scored"]
            unfinished, kv_usage = self._core.unfinished, self._core.kv_usage
            running = min(unfinished, self._core.running)
        queued = sum(r.sampling.n for r in list(self._requests))
        return EngineStats(
            generated_tokens=sampled,
            prompt_tokens=self._counts["prompt"],
            cached_prompt_tokens=self._counts["cached"],
            finished_requests=self._counts["finished"],
            sequences_running=running,
            sequences_waiting=unfinished - running + queued,
            max_num_seqs=self.options.max_num_seqs,
            kv_usage=kv_usage,
            weight_version=self._version,
            seconds=time.monotonic() - self._started,
            busy_seconds=self._busy,
        )

    def shutdown(self) -> None:
        """Stop the engine; open requests raise EngineFailure."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    # --- hand-over to the stepping thread -------------------------------------------------------

    def _enqueue(self, request: _Request) -> Future[Any]:
        length, limit = len(request.prompt_ids), self.options.max_model_len - 1
        if not 0 < length <= limit:
            raise UserError(
                f"a prompt of {length} tokens does not fit: with max_model_len="
                f"{self.options.max_model_len} it may have 1 to {limit}; shorten the prompt or "
                "raise max_model_len"
            )
        self._put(self._requests, request)
        return request.future

    async def _command(self, run: Callable[[VllmCore], Any], after: str) -> Any:
        command = _Command(run, Future(), after)
        self._put(self._commands, command)
        # Shielded: a command that has begun is finished whatever becomes of its caller.
        return await asyncio.shield(asyncio.wrap_future(command.future))

    def _put(self, queue: deque[Any], item: Any) -> None:
        with self._condition:
            if self._failure is not None or self._closing:
                raise self._failed()
            queue.append(item)
            self._condition.notify()

    def _failed(self) -> EngineFailure:
        cause = self._failure or "it was shut down"
        kind = f"{type(cause).__name__}: " if isinstance(cause, BaseException) else ""
        failure = EngineFailure(f"the engine for {self.options.model} is gone: {kind}{cause}")
        failure.__cause__ = self._failure
        return failure

    # --- the stepping thread --------------------------------------------------------------------

    def _run(self) -> None:
        core = None
        try:
            self._core = core = VllmCore(self.options)
            self._started = time.monotonic()
            self._ready.set_result(None)
            while self._wait(core):
                self._turn(core)
        except BaseException as error:  # every caller is handed it
            self._failure = error
            if not self._ready.done():
                refused = isinstance(error, UserError)
                self._ready.set_exception(error if refused else self._failed())
        finally:
            self._close()
            if core is not None:
                core.close()

    def _wait(self, core: VllmCore) -> bool:
        """Sleep until there is something to do; False when it is time to close."""
        with self._condition:
            while not (
                self._closing
                or self._commands
                or self._aborted
                or self._running
                or (self._requests and not core.asleep)
            ):
                self._condition.wait()
            return not self._closing

    def _turn(self, core: VllmCore) -> None:
        """Commands that may run, then new requests, then one step."""
        while self._aborted:
            request_id = self._aborted.popleft()
            if self._running.pop(request_id, None):
                core.abort(request_id)
        while self._commands and self._may_run(self._commands[0]):
            self._execute(core, self._commands.popleft())
        # A command that waits for running requests must not wait for new ones too.
        while self._requests and not self._commands and not core.asleep:
            self._admit(core, self._requests.popleft())
        if self._running:
            began = time.perf_counter()
            outputs = core.step()
            self._busy += time.perf_counter() - began
            for output in outputs:
                if output.finished:
                    self._finish(core, output)
                elif (request := self._running.get(output.request_id)) and request.on_text:
                    request.on_text(core.text_so_far(output))

    def _may_run(self, command: _Command) -> bool:
        if command.after == "requests":
            return not self._running
        # Recomputing half a score would write its first log-probs twice.
        scoring = any(r.score_from is not None for r in self._running.values())
        return command.after != "scores" or not scoring

    def _execute(self, core: VllmCore, command: _Command) -> None:
        try:
            result = command.run(core)
        except (UserError, TransferFailed) as error:
            command.future.set_exception(error)  # nothing was changed
        except BaseException as error:
            # Half-loaded weights must not answer anything: the engine ends here.
            self._failure = error
            command.future.set_exception(self._failed())
            raise
        else:
            command.future.set_result(result)

    def _admit(self, core: VllmCore, request: _Request) -> None:
        if request.future.cancelled():
            return
        request_id = str(next(self._ids))
        request.version = self._version
        # Noted first: an error that ends the engine must find the request among the running ones.
        self._running[request_id] = request
        try:
            if request.score_from is None:
                core.add(request_id, request.prompt_ids, request.sampling, bool(request.on_text))
            else:
                core.add_score(request_id, request.prompt_ids)
        except UserError as refusal:
            del self._running[request_id]
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(refusal)
            return
        request.future.add_done_callback(lambda future: self._forget(future, request_id))

    def _forget(self, future: Future[Any], request_id: str) -> None:
        if future.cancelled():
            with self._condition:
                self._aborted.append(request_id)
                self._condition.notify()

    def _finish(self, core: VllmCore, output: Any) -> None:
        request = self._running.pop(output.request_id, None)
        if request is None:
            return  # cancelled, and not yet taken out
        self._counts["finished"] += 1
        # With its cached tokens: between two looks one is then never more than the other.
        self._counts["prompt"] += len(request.prompt_ids)
        self._counts["cached"] += output.num_cached_tokens or 0
        if request.score_from is None:
            result: Any = core.samples(output, request.sampling, request.version)
        else:
            self._counts["scored"] += 1  # vLLM samples a token that nobody wants
            result = core.scores(output, request.score_from)
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(result)

    def _update(self, core: VllmCore, payload: Payload, version: int) -> None:
        core.update_weights(payload)
        self._version = version

    def _close(self) -> None:
        """Nobody is left waiting."""
        with self._condition:
            self._closing = True
        waiting = [*self._running.values(), *self._requests, *self._commands]
        self._running = {}
        for item in waiting:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(self._failed())
