"""One rank of a DeepSpeed engine around a Hugging Face causal language model.

Everything that knows DeepSpeed lives here. The worker expects the process group that Ray Train has
set up and works on CPU (gloo) and GPU (nccl) alike.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actors.learner import adapters, checkpoints, packed_attention, shared_prompt
from actors.learner.batches import ChosenLogprobs, FlatTokens
from actors.learner.model_files import write_model
from actors.weight_sync import buckets
from stepwiser.config.training import LoraConfig
from stepwiser.errors import UserError
from stepwiser.prompting.hub.folders import model_folder

Precision = Literal["float32", "bfloat16"]

_TAG = "state"
_BUCKET_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineConfig:
    """How a model is loaded and optimized."""

    model_dir: str
    """A directory that every rank can read, or a name on the Hub (`org/name@commit`)."""
    zero_stage: Literal[2, 3]
    precision: Precision
    gradient_checkpointing: bool
    gradient_clipping: float
    weight_decay: float
    use_gpu: bool
    threads: int
    """Of this rank, on the CPU."""
    trust_remote_code: bool = False
    """Run code that the model brings."""
    allow_pickled_weights: bool = False
    """Load weights that are no safetensors."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    adapter: str | None = None
    """Folder of an adapter to go on with."""


def import_deepspeed(use_gpu: bool) -> Any:
    """DeepSpeed with nothing compiled at first use.

    On CPU its ``initialize`` would build a shared-memory communication kernel: 43 s with a C++
    compiler, a failure without one or with a blank in the path of the environment. The kernel only
    serves tensor-parallel inference; declared incompatible, it is left out and gloo does the work.
    """
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    # Setting the table also spares the probe of every operator, which starts a compiler.
    if "__compatible_ops__" not in vars(deepspeed.ops):
        deepspeed.ops.__compatible_ops__ = {"deepspeed_not_implemented": False}
    return deepspeed


class DeepSpeedWorker:
    """One rank's share of the model, its optimizer and its exports. All ranks call in lockstep."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        torch.set_num_threads(config.threads)
        self._deepspeed = import_deepspeed(config.use_gpu)
        self.device = torch.device(
            f"cuda:{torch.cuda.current_device()}" if config.use_gpu else "cpu"
        )
        model = _load_model(config)
        self._hf_model = model
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=0.0,
            # The usual 0.999 remembers the first, large gradients for a thousand updates; runs
            # of a hundred would hardly move.
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.engine, *_ = self._deepspeed.initialize(
            model=ChosenLogprobs(model),
            optimizer=optimizer,
            config=_deepspeed_config(config),
            dist_init_required=False,
        )
        if config.gradient_checkpointing:
            self.engine.train()
        else:
            # Dropout off: old and new log-probs must come from the same function.
            self.engine.eval()
        self._reference: nn.Module | None = None
        self.rank: int = torch.distributed.get_rank()
        self.world_size: int = torch.distributed.get_world_size()

    @property
    def attention(self) -> str:
        """Name of what computes attention (`packed_attention`)."""
        parameter = next(self._hf_model.parameters())
        return packed_attention.choose(self.device.type, parameter.dtype)[0]

    def logprobs(self, tokens: FlatTokens, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs [M] of the targets, and without gradient the entropies [M] of their places."""
        return self.engine(tokens, temperature)

    def reference_logprobs(self, tokens: FlatTokens, temperature: float) -> Tensor:
        """Log-probs under the weights that training started from, without gradient.

        They are kept whole on every rank, from the first call on; new adapters started from what
        the model is without them.
        """
        if self.config.lora and self.config.adapter is None:
            with torch.no_grad(), adapters.switched_off(self._hf_model):
                return self.logprobs(tokens, temperature)[0]
        if self._reference is None:
            reference = ChosenLogprobs(_load_model(self.config)).to(self.device).eval()
            self._reference = reference.requires_grad_(False)
        with torch.no_grad():
            return self._reference(tokens, temperature)[0]

    def train_step(
        self,
        micro_batches: Sequence[Any],
        loss_fn: Callable[[Any], Tensor],
        learning_rate: float,
    ) -> float:
        """One optimizer update; returns the gradient norm before clipping.

        ``loss_fn`` gives a micro-batch's share of the loss *times the number of ranks*, since
        DeepSpeed averages gradients over ranks. Every rank passes equally many micro-batches.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.config.precision == "float32":
            self._backward_at_once(micro_batches, loss_fn)
        else:
            self._backward_each(micro_batches, loss_fn)
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not norm < float("inf"):
            raise RuntimeError(
                f"the gradient norm is {norm} at learning rate {learning_rate}: lower the rate, or "
                "look for broken weights or log-probs in the batch"
            )
        return norm

    def _backward_at_once(
        self, micro_batches: Sequence[Any], loss_fn: Callable[[Any], Tensor]
    ) -> None:
        """Gradients add up on each rank and meet once an update."""
        with self.engine.coalesce_grad_reduction():
            for micro_batch in micro_batches:
                self.engine.backward(loss_fn(micro_batch))
        self.engine.set_gradient_accumulation_boundary(True)

    def _backward_each(
        self, micro_batches: Sequence[Any], loss_fn: Callable[[Any], Tensor]
    ) -> None:
        """Gradients meet after every micro-batch, in shares of float32.

        Sums kept in bfloat16 would lose the small gradients, and whole ones would need the memory
        that ZeRO saves.
        """
        for position, micro_batch in enumerate(micro_batches, start=1):
            self.engine.set_gradient_accumulation_boundary(position == len(micro_batches))
            self.engine.backward(loss_fn(micro_batch))

    def all_reduce(self, values: Sequence[float], maximum: bool = False) -> list[float]:
        """Sum (or maximum) of each value over ranks."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        operation = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(tensor, op=operation)
        return tensor.tolist()

    def weight_buckets(self, bucket_bytes: int) -> list[list[tuple[str, nn.Parameter]]]:
        """What engines need, in buckets, wider types first in each: the parameters under their
        Hugging Face names, or the adapters under peft's.

        Tied weights appear once, under the name of the input embedding. Under ZeRO-3 these are
        shares: `buckets.weight_shape` tells the whole shape, `gathered_buckets` gives the whole
        weights.
        """
        parameters = list(self._hf_model.named_parameters())
        if self.config.lora:
            parameters = adapters.adapter_parameters(self._hf_model)
        parts = buckets.split(parameters, bucket_bytes)
        return [sorted(part, key=lambda item: -item[1].element_size()) for part in parts]

    def gathered_buckets(self, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """The same with full weights, on the device of every rank.

        All ranks must run the iterator to its end (ZeRO-3 gathers). Tensors may share memory with
        the model: use a bucket before asking for the next.
        """
        for bucket in self.weight_buckets(bucket_bytes):
            with self._gathered([parameter for _, parameter in bucket]):
                yield [(name, parameter.detach()) for name, parameter in bucket]

    def state_buckets(self, bucket_bytes: int = _BUCKET_BYTES) -> Iterator[dict[str, Tensor]]:
        """`gathered_buckets` on the CPU of rank 0; other ranks get empty buckets."""
        for bucket in self.gathered_buckets(bucket_bytes):
            if self.rank == 0:
                yield {name: tensor.to("cpu").contiguous() for name, tensor in bucket}
            else:
                yield {}

    def state_bytes(self, bucket_bytes: int = _BUCKET_BYTES) -> Iterator[bytes]:
        """``state_buckets`` as safetensors; nothing is yielded on ranks other than 0."""
        from safetensors.torch import save

        said = adapters.metadata(self._adapter_config) if self.config.lora else None
        for bucket in self.state_buckets(bucket_bytes):
            if self.rank == 0:
                yield save(bucket, said)

    def export(self, directory: str | Path) -> None:
        """Write a plain Hugging Face directory: weights, config, tokenizer. Appears whole or not.

        Adapters are merged, and lie beside it too (`adapters.merged`). Needs room for the whole
        model in the memory of rank 0.
        """
        state: dict[str, Tensor] = {}
        for bucket in self.state_buckets():
            state.update({name: tensor.clone() for name, tensor in bucket.items()})
        adapter: dict[str, Tensor] = {}
        if self.config.lora:
            adapter, state = state, {}
            for name, tensor in self._base_weights():
                state |= adapters.merged(adapter, self.config.lora, name, tensor)
        if self.rank == 0:
            source = model_folder(self.config.model_dir)

            def add_adapter(made: Path) -> None:
                if adapter:
                    adapters.add_to_model(made, adapter, self._adapter_config)

            write_model(self._hf_model, state, source, Path(directory), add_adapter)
        torch.distributed.barrier()

    def _base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What adapters are merged with, on rank 0 alone; all ranks run it to its end."""
        named = [(n, p) for n, p in self._hf_model.named_parameters() if not p.requires_grad]
        for part in buckets.split(named, _BUCKET_BYTES):
            with self._gathered([parameter for _, parameter in part]):
                if self.rank == 0:
                    yield from ((name, p.detach().to("cpu").clone()) for name, p in part)

    @property
    def _adapter_config(self) -> dict[str, Any]:
        assert self.config.lora
        # Of a folder only its name: where it lay is nobody's business.
        named = self.config.model_dir
        base = Path(named).name if Path(named).is_dir() else named
        return adapters.adapter_config(self._hf_model, self.config.lora, base)

    def save_checkpoint(self, directory: str | Path, state: dict[str, Any]) -> None:
        """Write this rank's share (and on rank 0 ``state``) below a folder of this rank's own."""
        folder = Path(directory)
        (folder / _TAG).mkdir(parents=True, exist_ok=True)
        # Frozen weights are those of the model directory.
        self.engine.save_checkpoint(
            str(folder), tag=_TAG, exclude_frozen_parameters=self.config.lora is not None
        )
        checkpoints.save_random_state(folder, self.rank)
        if self.rank == 0:
            (folder / checkpoints.STATE_FILE).write_text(
                json.dumps({**state, "world_size": self.world_size, **self._unchangeable})
            )
        checkpoints.seal(folder, self.rank)

    @property
    def _unchangeable(self) -> dict[str, Any]:
        config = self.config
        lora = config.lora.model_dump(mode="json") if config.lora else None
        return {"zero_stage": config.zero_stage, "precision": config.precision, "lora": lora}

    def load_checkpoint(self, directory: str | Path) -> dict[str, Any]:
        """Restore weights, optimizer and random states; returns the ``state`` saved with them.

        One that another number of ranks has written is converted first. Raises UserError for one
        that is not whole, or of another ZeRO stage or number type.
        """
        state = checkpoints.read_state(Path(directory))
        for name, value in self._unchangeable.items():
            if (stored := state.get(name)) != value:
                raise UserError(
                    f"the checkpoint was written with {name}={stored}, this run has {value}; "
                    f"set {name} back, or start a new run from the exported model"
                )
        if state["world_size"] == self.world_size:
            self._load(Path(directory))
        else:
            with self._universal(Path(directory)) as converted:
                self._load(converted)
        checkpoints.load_random_state(Path(directory), self.rank)
        return state

    def _load(self, directory: Path) -> None:
        loaded, _ = self.engine.load_checkpoint(
            str(directory), tag=_TAG, load_module_strict=self.config.lora is None
        )
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {directory}")

    @contextmanager
    def _universal(self, directory: Path) -> Iterator[Path]:
        """The checkpoint in the layout for any number of ranks, which one of each machine makes."""
        here: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(here, (socket.gethostname(), os.getpid()))
        firsts = checkpoints.first_of_each(host for host, _ in here)
        folder = Path(tempfile.gettempdir()) / f"stepwiser-universal-{here[0][0]}-{here[0][1]}"
        try:
            if self.rank in firsts:
                checkpoints.to_universal(directory / _TAG, folder / _TAG)
            torch.distributed.barrier()
            # DeepSpeed would have this known before the engine is made, but reads it only here.
            self.engine._config.load_universal_checkpoint = True
            yield folder
            torch.distributed.barrier()
        finally:
            self.engine._config.load_universal_checkpoint = False
            if self.rank in firsts:
                shutil.rmtree(folder, ignore_errors=True)

    def free_unused(self) -> None:
        """Give back GPU memory that torch only keeps for its next allocations."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the engine, so that the next job of this process starts from nothing."""
        import gc

        self.engine.destroy()
        del self.engine, self._hf_model, self._reference
        gc.collect()
        self.free_unused()

    @contextmanager
    def _gathered(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        if self.config.zero_stage == 3:
            with self._deepspeed.zero.GatheredParameters(parameters):
                yield
        else:
            yield


def _load_model(config: EngineConfig) -> Any:
    from transformers import AutoModelForCausalLM

    folder = model_folder(config.model_dir)
    if not (folder / "config.json").exists():
        raise UserError(f"{config.model_dir} is no model directory: it has no config.json")
    shared_prompt.register()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=None if config.allow_pickled_weights else True,
        dtype=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        attn_implementation=shared_prompt.NAME,
    )
    if config.lora:
        adapters.add_adapters(model, config.lora, config.adapter)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    return {
        # One loss is one micro-batch here; the boundary is set by hand.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 1 << 40,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": config.use_gpu},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": config.gradient_clipping,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "checkpoint": {"use_node_local_storage": True},
    }
