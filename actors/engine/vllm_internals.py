"""Everything inside vLLM that no documented call of it gives, and a list of it: `INTERNALS`.

vLLM promises nothing of these: a release may move any of them. With a new vLLM run
tests/actors/engine/test_vllm_internals.py, which names what has moved and the function to adapt.
Nothing here imports vLLM before it is called, as an engine sets vLLM's environment first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_BOTH = ("0.23", "0.32")


@dataclass(frozen=True)
class Internal:
    """One thing inside vLLM that this module uses."""

    where: str
    """``module:name`` or ``module:Class.attribute``, the attribute often one of instances only."""
    used_in: str
    """What in this module uses it: the place to adapt when it has moved."""
    why: str
    """Why a documented call does not serve."""
    read_in: tuple[str, ...] = _BOTH
    """vLLM versions in whose source it was read; one before the first of them lacks it."""
    keyword: str = ""
    """A parameter that is given by name, when it is called."""


def _several(module: str, names: Iterable[str], used_in: str, why: str) -> list[Internal]:
    return [Internal(f"{module}:{name}", used_in, why) for name in names]


INTERNALS = (
    # --- in the process that holds the engine ---------------------------------------------------
    Internal(
        "vllm.exceptions:VLLMClientError",
        "refusals",
        "LLMEngine.add_request does not say what it raises; 0.23 raises a ValueError instead",
        read_in=("0.32",),
    ),
    Internal(
        "vllm.sampling_params:SamplingParams.skip_clone",
        "never_copied",
        "vLLM calls the field internal; without it every request copies its parameters deeply",
    ),
    Internal(
        "vllm.config:ModelConfig.hf_text_config",
        "tied_embeddings",
        "no call tells whether the output layer shares the embeddings' weights",
    ),
    Internal(
        "vllm.v1.engine.llm_engine:LLMEngine.engine_core",
        "_client",
        "LLMEngine hides its core: get_metrics needs the statistics that cost most (see log_stats)",
    ),
    Internal(
        "vllm.v1.engine.core_client:InprocClient.engine_core",
        "SchedulerFigures._scheduler",
        "get_metrics needs log_stats; the core of this process can be asked at any time",
    ),
    Internal(
        "vllm.v1.engine.core:EngineCore.scheduler",
        "SchedulerFigures._scheduler",
        "get_metrics needs log_stats",
    ),
    Internal(
        "vllm.v1.core.sched.scheduler:Scheduler.running",
        "SchedulerFigures.running",
        "get_num_unfinished_requests counts those that wait as well",
    ),
    Internal(
        "vllm.v1.core.sched.scheduler:Scheduler.kv_cache_manager",
        "SchedulerFigures.kv_usage",
        "only get_metrics tells the cache's usage, and it needs log_stats",
    ),
    Internal(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.usage",
        "SchedulerFigures.kv_usage",
        "only get_metrics tells the cache's usage, and it needs log_stats",
    ),
    Internal(
        "vllm.v1.engine.llm_engine:LLMEngine.log_stats",
        "SchedulerFigures.unlog",
        "EngineArgs.disable_log_stats would silence the core in the other process as well",
    ),
    Internal(
        "vllm.v1.engine.llm_engine:LLMEngine.output_processor",
        "SchedulerFigures.unlog",
        "it has a log_stats of its own, taken when it was made",
    ),
    Internal(
        "vllm.v1.engine.output_processor:OutputProcessor.log_stats",
        "SchedulerFigures.unlog",
        "EngineArgs.disable_log_stats would silence the core in the other process as well",
    ),
    Internal(
        "vllm.v1.engine.llm_engine:LLMEngine.logger_manager",
        "SchedulerFigures.unlog",
        "EngineArgs.disable_log_stats would silence the core in the other process as well",
    ),
    Internal(
        "vllm.v1.engine.core_client:SyncMPClient.get_output",
        "SchedulerFigures._listen",
        "LLMEngine.step drops the scheduler's figures that come with the outputs",
    ),
    Internal(
        "vllm.v1.engine.core_client:InprocClient.get_output",
        "SchedulerFigures._listen",
        "LLMEngine.step tells of finished requests alone",
    ),
    *_several(
        "vllm.v1.engine",
        ("EngineCoreOutputs.outputs", "EngineCoreOutput.new_token_ids"),
        "SchedulerFigures._listen",
        "LLMEngine.step tells of finished requests alone",
    ),
    Internal(
        "vllm.v1.engine:EngineCoreOutputs.scheduler_stats",
        "SchedulerFigures._listen",
        "LLMEngine.step drops the scheduler's figures that come with the outputs",
    ),
    Internal(
        "vllm.v1.metrics.stats:SchedulerStats.num_running_reqs",
        "SchedulerFigures.running",
        "get_num_unfinished_requests counts those that wait as well",
    ),
    Internal(
        "vllm.v1.metrics.stats:SchedulerStats.kv_cache_usage",
        "SchedulerFigures.kv_usage",
        "only get_metrics tells the cache's usage, and it needs log_stats",
    ),
    Internal(
        "vllm.v1.engine.core_client:SyncMPClient.resources",
        "_unblock_when_dead",
        "LLMEngine tells of a dead core only when it is asked for something, not while it waits",
    ),
    Internal(
        "vllm.v1.engine.core_client:BackgroundResources.engine_dead",
        "_unblock_when_dead",
        "LLMEngine tells of a dead core only when it is asked for something, not while it waits",
    ),
    Internal(
        "vllm.v1.engine.core_client:SyncMPClient.outputs_queue",
        "_unblock_when_dead",
        "LLMEngine.step has no time limit: only an item in its queue ends its wait",
    ),
    Internal(
        "vllm.v1.engine.core_client:SyncMPClient.utility_results",
        "_unblock_when_dead",
        "calls such as sleep have no time limit: only their futures end the wait",
    ),
    *_several(
        "vllm.v1.engine.core_client",
        ("InprocClient.shutdown", "SyncMPClient.shutdown"),
        "shut_down",
        "LLMEngine has no call that ends it before it is collected as garbage",
    ),
    # --- inside vLLM's workers ------------------------------------------------------------------
    Internal(
        "vllm.v1.worker.worker_base:WorkerBase.rank",
        "rank_and_device",
        "collective_rpc does not tell a worker which one it is",
    ),
    Internal(
        "vllm.v1.worker.worker_base:WorkerBase.device",
        "rank_and_device",
        "collective_rpc does not tell a worker where its model lies",
    ),
    Internal(
        "vllm.utils.nccl:unpinned_nccl_env",
        "foreign_nccl",
        "vLLM uses it in its own weight transfer alone; 0.23 sets nothing that matters",
        read_in=("0.32",),
    ),
    Internal(
        "vllm.v1.worker.gpu_worker:Worker.reload_weights",
        "load_weights",
        "LLMEngine has no call for new weights, and LLM's takes only vLLM's own transfers",
    ),
    Internal(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights",
        "load_weights",
        "Worker.reload_weights hands its arguments on to it",
        keyword="weights_iterator",
    ),
    Internal(
        "vllm.config:set_current_vllm_config",
        "load_weights",
        "a worker's methods set it around their own use of the model, not around ours",
    ),
    Internal(
        "vllm.v1.worker.worker_base:WorkerBase.vllm_config",
        "load_weights",
        "collective_rpc does not tell a worker its engine's configuration",
    ),
    Internal(
        "vllm.v1.worker.worker_base:WorkerBase.get_model",
        "load_weights",
        "LLMEngine.apply_model sends functions to another process only with insecure pickling",
    ),
    # Attributes of any model that has them; a Llama's stand for all.
    Internal(
        "vllm.model_executor.models.llama:LlamaForCausalLM.load_weights",
        "load_weights",
        "LLMEngine has no call for new weights, and LLM's takes only vLLM's own transfers",
    ),
    *_several(
        "vllm.model_executor.models.llama",
        ("LlamaForCausalLM.model", "LlamaForCausalLM.lm_head", "LlamaModel.embed_tokens"),
        "_retie",
        "reload_weights leaves a tied output layer with the old weights",
    ),
    *_several(
        "vllm.lora.ops.torch_ops.lora_ops",
        ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"),
        "take_adapter_kernels",
        "a CPU has no other kernels, and these copy an adapter for every token",
    ),
    Internal(
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        "_retie",
        "only a reload packs a layer's weights again, and it passes a tied output layer over",
        keyword="remove_weight",
    ),
)


# --- in the process that holds the engine -------------------------------------------------------


def refusals() -> tuple[type[Exception], ...]:
    """What ``LLMEngine.add_request`` raises for a request that it cannot serve."""
    from vllm import exceptions

    return (ValueError, getattr(exceptions, "VLLMClientError", ValueError))


def never_copied(params: Any) -> Any:
    """The same sampling parameters, of which vLLM makes no deep copy for every request."""
    params.skip_clone = True
    return params


def tied_embeddings(model_config: Any) -> bool:
    """Whether a model's output layer has the embeddings' weights, none of its own."""
    return bool(getattr(model_config.hf_text_config, "tie_word_embeddings", False))


def _client(llm: Any) -> Any:
    """An engine's connection to its core, in this process or in another."""
    return llm.engine_core


class SchedulerFigures:
    """What an engine has sampled, how many sequences it decodes and how full its cache is."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.sampled = 0
        """Tokens so far, those of requests that are not finished included."""
        self._listen()
        self._last: Any = None
        """The figures that a core in another process sent last."""

    @property
    def running(self) -> int:
        """Sequences that were decoded in the last step."""
        scheduler = self._scheduler()
        if scheduler is not None:
            return len(scheduler.running)
        return self._last.num_running_reqs if self._last and self._unfinished else 0

    @property
    def kv_usage(self) -> float | None:
        """Share of the KV cache in use; from another process, as of the last step."""
        scheduler = self._scheduler()
        if scheduler is not None:
            return scheduler.kv_cache_manager.usage
        if self._last is None:
            return None
        return self._last.kv_cache_usage if self._unfinished else 0.0

    @property
    def _unfinished(self) -> int:
        return self._llm.get_num_unfinished_requests()

    def _scheduler(self) -> Any:
        """That of a core in this process, None for a core in another."""
        core = getattr(_client(self._llm), "engine_core", None)
        return core.scheduler if core else None

    def _listen(self) -> None:
        """Note what the core sends after every step."""
        client = _client(self._llm)
        get_output = client.get_output

        def listening() -> Any:
            outputs = get_output()
            self.sampled += sum(len(output.new_token_ids) for output in outputs.outputs)
            if outputs.scheduler_stats is not None:
                self._last = outputs.scheduler_stats
            return outputs

        client.get_output = listening

    def unlog(self) -> None:
        """Turn vLLM's own use of a core's figures off again, which it sends for ours.

        Nobody reads it (timings of every request, Prometheus), and the process that collects
        outputs is the one that limits a GPU engine.
        """
        self._llm.log_stats = self._llm.output_processor.log_stats = False
        self._llm.logger_manager = None


def unblock_when_dead(llm: Any) -> None:
    """Watch a core in another process: once it has died, whoever waits for it gets an error."""
    threading.Thread(target=_unblock_when_dead, args=(_client(llm),), daemon=True).start()


def _unblock_when_dead(client: Any) -> None:
    """vLLM's synchronous client waits for ever for outputs of a core process that has died."""
    while not client.resources.engine_dead:
        time.sleep(0.5)
    error = RuntimeError("vLLM's core process died")
    client.outputs_queue.put_nowait(error)
    for future in list(client.utility_results.values()):
        if not future.done():
            future.set_exception(error)


def shut_down(llm: Any) -> None:
    """End an engine's core and its workers."""
    _client(llm).shutdown()


# --- inside vLLM's workers ----------------------------------------------------------------------


def rank_and_device(worker: Any) -> tuple[int, Any]:
    """A worker's number among those of its engine, and the torch device of its model."""
    return worker.rank, worker.device


def foreign_nccl() -> contextlib.AbstractContextManager[None]:
    """For a group with processes that are not vLLM's and lack the NCCL settings it made for itself.

    0.23 makes none that matter.
    """
    try:
        from vllm.utils.nccl import unpinned_nccl_env
    except ImportError:
        return contextlib.nullcontext()
    return unpinned_nccl_env()


def take_adapter_kernels() -> None:
    """Have this process multiply with adapters on a CPU as `adapter_kernels` does."""
    from vllm.lora.ops.torch_ops import lora_ops

    from actors.engine import adapter_kernels

    for kernel in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
        setattr(lora_ops, kernel, getattr(adapter_kernels, kernel))


def load_weights(worker: Any, tensors: Iterable[tuple[str, Any]]) -> None:
    """Overwrite the weights of a worker's model in place, by its checkpoint's names."""
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # CPU layers keep packed copies of their weights; only a reload packs them again.
        worker.reload_weights(weights_iterator=tensors)
        _retie(worker.get_model(), worker.vllm_config.model_config)
    else:
        with set_current_vllm_config(worker.vllm_config):
            worker.get_model().load_weights(tensors)


def _retie(model: Any, model_config: Any) -> None:
    """Point a tied output layer at the new embeddings.

    The reload replaces the embedding's parameter, but a tied ``lm_head`` gets no tensor of its
    own, is not reloaded, and would go on multiplying with the packed old embeddings.
    """
    if not tied_embeddings(model_config) or not hasattr(model, "lm_head"):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    model.lm_head.weight = model.model.embed_tokens.weight
    dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
