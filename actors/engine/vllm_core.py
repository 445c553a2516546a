"""Every call into vLLM that it documents (`vllm_internals` has what reaches deeper).

Runs with vLLM 0.23 and 0.32, on a GPU and on a CPU. Not thread-safe: one thread owns a core.
"""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any

from actors.engine import vllm_internals
from actors.engine.adapter_versions import AdapterVersions, check_adapter, check_kind, slots
from actors.engine.engine_options import EngineOptions
from actors.engine.gpu_memory import MemoryNote
from actors.engine.log_handlers import log_targets_kept
from actors.engine.logprobs import read_logprobs
from actors.engine.text_decoder import TextDecoder
from actors.engine.worker_extension import Payload, adapter_config, loaded_shapes, tensor_shapes
from actors.weight_sync.transfer import TransferFailed, TransferSpec
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.hub.folders import model_folder

_CPU_BLOCK_SIZE = 32
"""Tokens of a KV block. vLLM's own 128 on CPU leaves short prompts, all of the embedded task's,
without any prefix caching: 3.2k instead of 5.7k tokens a CPU-second at 16 samples a prefix."""
_CPU_KV_CACHE_BYTES = 512 * 2**20
"""Without a figure vLLM's CPU backend claims a share of the whole machine's memory."""
MAX_TOP_LOGPROBS = 64
_MEMORY = ("weights", "kv_cache")
"""What sleeping frees on a GPU, by vLLM's names, in the order in which it is taken back."""


def engine_environment(options: EngineOptions) -> dict[str, str]:
    """Variables that vLLM reads when it is imported, for the process that will hold an engine."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(options.multiprocess)),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        # Ray prints what its workers write; none of this would be news to anyone.
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # vLLM would pin the threads of every engine of a node to the same first cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TOKENIZERS_PARALLELISM": "false",
    }


class VllmCore:
    """A loaded model that continues and scores token ids."""

    def __init__(self, options: EngineOptions) -> None:
        # Raises UserError where this node has no such directory, or cannot fetch the model.
        folder = str(model_folder(options.model))
        for name, value in engine_environment(options).items():
            os.environ.setdefault(name, value)
        # Not a default: vLLM reads it whenever an engine is made.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(options.multiprocess))
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        import torch

        if not torch.cuda.is_available():
            # Asked for log-probs, vLLM compiles a helper even in eager mode: a minute, and a C++
            # compiler that a laptop may not have.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        with log_targets_kept():  # 0.23 configures logs here, 0.32 where it makes the engine
            from vllm.engine.arg_utils import EngineArgs
            from vllm.inputs.engine import tokens_input
            from vllm.platforms import current_platform
            from vllm.sampling_params import RequestOutputKind, SamplingParams
            from vllm.v1.engine.llm_engine import LLMEngine

        self.options = options
        self.asleep: tuple[str, ...] = ()
        """Memory that is freed: while there is any, nothing may be run."""
        self.on_cpu = bool(current_platform.is_cpu())
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._so_far = RequestOutputKind.CUMULATIVE
        self._sampling_params = SamplingParams
        self._tokens_input = tokens_input
        self._refusals = vllm_internals.refusals()
        sizes: dict[str, Any] = {
            "max_num_batched_tokens": options.max_num_batched_tokens,
            "kv_cache_memory_bytes": options.kv_cache_bytes,
            "gpu_memory_utilization": options.gpu_memory_utilization,
        }
        if self.on_cpu:
            sizes["block_size"] = _CPU_BLOCK_SIZE
            if options.kv_cache_bytes is None:
                sizes["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
        if options.adapter_rank:
            sizes |= slots(options.adapter_rank, options.adapter_versions)
        arguments = EngineArgs(
            model=folder,
            trust_remote_code=options.trust_remote_code,
            load_format="auto" if options.allow_pickled_weights else "safetensors",
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            tensor_parallel_size=options.tensor_parallel_size,
            # Left to itself vLLM sees Ray's placement group and asks it for the GPUs that this
            # process holds already; on a CPU it ends.
            distributed_executor_backend="mp" if options.tensor_parallel_size > 1 else None,
            enforce_eager=options.enforce_eager,
            seed=options.seed,
            enable_sleep_mode=options.enable_sleep and not self.on_cpu,
            enable_prefix_caching=True,
            # Log-probs of the distribution that was sampled from, so at its temperature.
            logprobs_mode="processed_logprobs",
            max_logprobs=MAX_TOP_LOGPROBS,
            # Nothing but the request decides how it is sampled.
            generation_config="vllm",
            # A core in another process tells how full its cache is only with these.
            disable_log_stats=not options.multiprocess,
            use_tqdm_on_load=False,
            worker_extension_cls="actors.engine.worker_extension.WeightUpdater",
            **{name: value for name, value in sizes.items() if value is not None},
        )
        with log_targets_kept():
            self._llm = LLMEngine.from_engine_args(arguments)
        self._memory = MemoryNote()
        self._llm.collective_rpc("stepwiser_note_memory", args=(self._memory.file,))
        self._figures = vllm_internals.SchedulerFigures(self._llm)
        if options.multiprocess:
            self._figures.unlog()
            vllm_internals.unblock_when_dead(self._llm)
        config = self._llm.model_config
        self._text = TextDecoder(self._llm.get_tokenizer(), config.get_vocab_size())
        self._tied = vllm_internals.tied_embeddings(config)
        self._shapes = loaded_shapes(folder)
        self._params: dict[tuple[Sampling, bool], Any] = {}
        self._adapters = AdapterVersions(self._llm) if options.adapter_rank else None
        if self._adapters is not None:
            self._llm.collective_rpc("stepwiser_prepare")

    # --- requests -------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Sequences that are queued or running."""
        return self._llm.get_num_unfinished_requests()

    @property
    def running(self) -> int:
        """Sequences that were decoded in the last step; those that wait are not among them."""
        return self._figures.running

    @property
    def kv_usage(self) -> float | None:
        """Share of the KV cache in use; from another process, as of the last step."""
        return self._figures.kv_usage

    @property
    def sampled(self) -> int:
        """Tokens so far, as they come; one for each score."""
        return self._figures.sampled

    def add(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, stream: bool = False
    ) -> None:
        """Queue a prompt, one whose sample is looked at while it grows where it is to `stream`.

        Raises UserError for a prompt or a sampling that vLLM refuses.
        """
        params = self._params.get((sampling, stream))
        if params is None:
            if len(self._params) > 1000:  # seeds make every request's parameters its own
                self._params.clear()
            try:
                params = self._params[sampling, stream] = self._make_params(sampling, stream)
            except self._refusals as error:  # must not end the engine for all others
                raise UserError(f"vLLM refuses {sampling}: {error}") from error
        self._queue(request_id, prompt_ids, params)

    def add_score(self, request_id: str, token_ids: list[int]) -> None:
        """Queue token ids whose log-probs are wanted."""
        params = self._sampling_params(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._final_only,
        )
        self._queue(request_id, token_ids, params)

    def _queue(self, request_id: str, token_ids: list[int], params: Any) -> None:
        adapter = self._adapters.begin(request_id) if self._adapters else None
        try:
            self._llm.add_request(
                request_id, self._tokens_input(token_ids), params, lora_request=adapter
            )
        except self._refusals as error:
            self._ended(request_id)
            raise UserError(f"vLLM refuses a prompt of {len(token_ids)} tokens: {error}") from error

    def _make_params(self, sampling: Sampling, stream: bool) -> Any:
        tokens = [self._text.stop_tokens(stop) for stop in sampling.stop]
        watch = None in tokens
        wanted = sampling.logprobs or sampling.top_logprobs > 0
        params = self._sampling_params(
            n=sampling.n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=0,
            seed=sampling.seed,
            logprobs=sampling.top_logprobs if wanted else None,
            flat_logprobs=True,
            stop=list(sampling.stop) if watch else None,
            stop_token_ids=None if watch else [t for group in tokens for t in group or ()],
            include_stop_str_in_output=True,
            # The text is decoded here, once; vLLM decodes only to find stop strings.
            detokenize=watch,
            output_kind=self._so_far if stream else self._final_only,
        )
        # These parameters are ours alone.
        return vllm_internals.never_copied(params)

    def abort(self, request_id: str) -> None:
        self._llm.abort_request([request_id])
        self._ended(request_id)

    def step(self) -> list[Any]:
        """One step of every running sequence; requests that are finished with it or stream."""
        try:
            outputs = list(self._llm.step())
        except Exception as error:
            explained = self._memory.explained(error)
            if explained is error:
                raise
            raise explained from error
        for output in outputs:
            if output.finished:
                self._ended(output.request_id)
        return outputs

    def _ended(self, request_id: str) -> None:
        if self._adapters:
            self._adapters.end(request_id)

    def text_so_far(self, output: Any) -> str:
        """Of the one sample of a request that streams, without the beginning of a character."""
        (text,) = self._text.decode([output.outputs[0].token_ids])
        return text.rstrip("\ufffd")

    def samples(self, output: Any, sampling: Sampling, version: int) -> list[Sample]:
        """What a finished generation gave, in the order of its seeds."""
        ids = [tuple(completion.token_ids) for completion in output.outputs]
        texts = self._text.decode(ids)
        samples = []
        for completion, token_ids, text in zip(output.outputs, ids, texts, strict=True):
            reason = completion.finish_reason
            if reason not in ("stop", "length") or not token_ids:
                raise RuntimeError(
                    f"vLLM ended request {output.request_id} with {reason!r} after "
                    f"{len(token_ids)} tokens"
                )
            logprobs = top = None
            if completion.logprobs is not None:
                logprobs, top = read_logprobs(completion.logprobs, sampling.top_logprobs)
            samples.append(
                Sample(
                    token_ids=token_ids,
                    text=text,
                    finish_reason=reason,
                    logprobs=logprobs,
                    top_logprobs=top,
                    weight_version=version,
                )
            )
        return samples

    def scores(self, output: Any, start: int) -> list[float]:
        """Log-probs of a finished score, from token ``start`` on."""
        # The first token has no log-prob; each other one has exactly its own.
        return list(output.prompt_logprobs.logprobs[start - 1 :])

    # --- between steps --------------------------------------------------------------------------

    def update_weights(self, payload: Payload) -> None:
        """Replace the weights; what runs is recomputed with the new ones, and what sleeps wakes up.

        An adapter replaces the one before, with which the requests that run go on.

        Raises UserError, before anything is touched, for names or shapes that are not the model's,
        and TransferFailed, just as untouched, when a learner's weights do not arrive.
        """
        shapes = tensor_shapes(payload)
        adapter = adapter_config(payload)
        check_kind(self.options.model, self._adapters is not None, adapter is not None)
        if self._adapters and adapter:
            check_adapter(adapter, shapes, self._shapes, self.options.adapter_rank)
            self.wake(("weights",))
            self._adapters.load(adapter, payload)
            self.wake()
            return
        skip = self._check(shapes)
        sent = None if isinstance(payload, TransferSpec) else payload
        if isinstance(payload, TransferSpec):
            self._receive(payload)
        self.wake(("weights",))
        # A core in its own process would step on between the two calls.
        pause = self.options.multiprocess and self.unfinished > 0
        if pause:
            self._llm.sleep(0, "keep")
        try:
            self._llm.collective_rpc("stepwiser_update_weights", args=(sent, skip))
            # Keys and values of the old weights must serve nobody, running requests included.
            self._llm.reset_prefix_cache(reset_running_requests=True)
        finally:
            if pause:
                self._llm.wake_up(["scheduling"])
        self.wake()

    def _receive(self, transfer: TransferSpec) -> None:
        """Have every worker take the weights; all of them do, or none keeps any."""
        answers = self._llm.collective_rpc("stepwiser_receive", args=(pickle.dumps(transfer),))
        failures = [answer for answer in answers if answer is not None]
        if failures:
            self._llm.collective_rpc("stepwiser_drop")
            raise TransferFailed(failures[0])

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Compare names and shapes with the model's; returns the names to leave out."""
        skip = ("lm_head.weight",) if self._tied else ()
        if self._shapes is None:
            return skip
        known = {name: shape for name, shape in self._shapes.items() if name not in skip}
        shapes = {name: shape for name, shape in shapes.items() if name not in skip}
        problems = []
        for what, names in (
            ("unknown", sorted(shapes.keys() - known.keys())),
            ("missing", sorted(known.keys() - shapes.keys())),
            ("of another shape", sorted(n for n in shapes if known.get(n, shapes[n]) != shapes[n])),
        ):
            if names:
                rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
                problems.append(f"{what}: {', '.join(names[:5])}{rest}")
        if problems:
            raise UserError(
                f"these weights are not those of {self.options.model} ({'; '.join(problems)}): "
                "publish the state of the same architecture, under its checkpoint's names"
            )
        return skip

    def sleep(self, level: int) -> None:
        """Free what GPU memory is not free yet; nothing may be running. A CPU has none to free."""
        if level == 2 and self._adapters:
            raise UserError("sleep(level=2) drops weights, and only adapters follow: use level 1")
        if self.asleep == _MEMORY:
            return
        self.wake()  # vLLM 0.23 does nothing where half sleeps
        if self.options.enable_sleep and not self.on_cpu:
            self._llm.reset_prefix_cache()
            self._llm.sleep(level)
        self.asleep = _MEMORY

    def wake(self, tags: tuple[str, ...] = _MEMORY) -> None:
        """Take back what is freed of these."""
        due = [tag for tag in self.asleep if tag in tags]  # vLLM wakes none if one is awake
        if due and self.options.enable_sleep and not self.on_cpu:
            self._llm.wake_up(due)
        self.asleep = tuple(tag for tag in self.asleep if tag not in due)

    def check(self) -> None:
        """Raises when the core no longer answers."""
        self._llm.is_sleeping()

    def close(self) -> None:
        vllm_internals.shut_down(self._llm)
