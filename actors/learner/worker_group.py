"""The one shape of a Ray Train run here: options, start, progress, and errors a person can read."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from actors.learner.checkpoints import mend
from actors.learner.deepspeed_worker import EngineConfig
from actors.torch_errors import first_words, is_out_of_memory
from stepwiser.config.training import LoraConfig
from stepwiser.errors import UserError
from stepwiser.run.metrics_file import Metrics, MetricsTail
from stepwiser.run.periodic import repeating
from stepwiser.run.resource_plan import STAYING


@dataclass(frozen=True)
class WorkerGroup:
    """Where training runs and how it survives failures."""

    name: str
    storage_path: str
    """Shared by all nodes. A second run with the same name and path continues the first."""
    num_workers: int = 1
    min_workers: int | None = None
    """Go on with as few where there is no room for all, and grow again when there is; else fixed.
    A checkpoint of another number of workers is converted."""
    gpus_per_worker: float = 0.0
    """Below 1 the worker shares its GPU with engines; 0 trains on the CPU."""
    cpus_per_worker: float = 1.0
    threads: int = 1
    """Of one worker, on the CPU."""
    spot: bool = False
    """Also on nodes that can be taken back at any moment."""
    zero_stage: Literal[2, 3] = 2
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    max_tokens_per_microbatch: int = 16384
    """Padded tokens of one forward pass; no sequence may be longer."""
    max_failures: int = 3
    """Restarts from the last checkpoint before the run is given up."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    collective_timeout_s: int = 1800
    """A rank that waits longer than this for the others fails, and with it the worker group."""
    trust_remote_code: bool = False
    """Run code that a model brings."""
    allow_pickled_weights: bool = False
    """Load weights that are no safetensors."""

    @property
    def use_gpu(self) -> bool:
        return self.gpus_per_worker > 0

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise UserError(f"num_workers is {self.num_workers}; at least 1 is needed")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise UserError(
                f"learner.min_workers is {self.min_workers}; choose 1 to "
                f"learner.workers={self.num_workers}"
            )
        if self.zero_stage not in (2, 3):
            raise UserError(f"zero_stage is {self.zero_stage}; 2 or 3 is supported")
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision is {self.precision!r}; choose float32 or bfloat16")


def engine_config(
    group: WorkerGroup,
    model_dir: str,
    gradient_clipping: float,
    weight_decay: float,
    adapter: str | None = None,
) -> EngineConfig:
    """What one rank of this group needs to know to load a model."""
    return EngineConfig(
        model_dir=model_dir,
        zero_stage=group.zero_stage,
        precision=group.precision,
        gradient_checkpointing=group.gradient_checkpointing,
        gradient_clipping=gradient_clipping,
        weight_decay=weight_decay,
        use_gpu=group.use_gpu,
        threads=group.threads,
        trust_remote_code=group.trust_remote_code,
        allow_pickled_weights=group.allow_pickled_weights,
        lora=group.lora,
        adapter=adapter,
    )


class TrainingError(RuntimeError):
    """A worker failed more often than allowed; the message carries its own error."""


def run_worker_group(
    train_fn: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    group: WorkerGroup,
    metrics_path: str,
    kinds: Sequence[str],
    on_metrics: Callable[[Metrics], None] | None,
) -> None:
    """Run ``train_fn(config)`` on every worker of the group; blocks until all are done.

    Lines of these ``kinds`` that appear in the metrics file meanwhile go to ``on_metrics``.

    Raises UserError where a worker raised one, TrainingError otherwise.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_LOOK_S))
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    storage = group.storage_path
    if "://" in storage:
        storage = quote(storage, safe=":/")  # PyArrow reads it as a URI
    else:
        storage = str(Path(storage).absolute())
        config = {**config, _UNLISTED: mend(Path(storage) / group.name)}
    fewest = group.min_workers or group.num_workers

    class WithoutDatasets(TorchTrainer):
        """Starts no process that deals out Ray Data, of which workers here read nothing: a second
        and more of each start, and of its CPU time. Of another Ray the plain trainer."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [one for one in callbacks if type(one).__name__ != "DatasetsCallback"]

    trainer = WithoutDatasets(
        functools.partial(_settling, train_fn),
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=(fewest, group.num_workers)
            if fewest < group.num_workers
            else group.num_workers,
            use_gpu=group.use_gpu,
            resources_per_worker={
                "CPU": group.cpus_per_worker,
                **({"GPU": group.gpus_per_worker} if group.use_gpu else {}),
            },
            label_selector=None if group.spot else STAYING,
        ),
        run_config=RunConfig(
            name=group.name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=group.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": _worker_environment(group)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        torch_config=TorchConfig(
            backend="nccl" if group.use_gpu else "gloo", timeout_s=group.collective_timeout_s
        ),
    )
    with _followed(metrics_path, kinds, on_metrics):
        try:
            _fit(trainer)
        except TrainingFailedError as error:
            raise _readable(group, error) from error


_UNLISTED = "unlisted_checkpoint"
_LOOK_S = 0.25
"""The controller looks at its workers this often, and takes one report a look: at the default of
2 s frequent checkpoints would wait for it."""
_SETTLE_S = 60.0
"""As long an error waits for a checkpoint."""


@contextlib.contextmanager
def last_checkpoint(config: Mapping[str, Any]) -> Iterator[str | None]:
    """Folder of the checkpoint that a worker goes on from; None in a run that begins.

    ``config``: what Ray Train gave the worker.
    """
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        unlisted = config.get(_UNLISTED)
        yield None if unlisted is None else str(unlisted)
        return
    with checkpoint.as_directory() as directory:
        yield directory


def keep_checkpoint(metrics: Metrics, write: Callable[[str], None]) -> None:
    """Save what ``write`` puts into a folder, every rank its own share.

    Returns when it is written on this machine; its way to the storage goes on beside the training,
    and it counts from the moment that the shares of all ranks have arrived there. Waits for the
    one before, so that they never pile up.
    """
    from ray.train import Checkpoint, CheckpointUploadMode, get_context, report

    context = get_context()
    run = f"{context.get_storage().experiment_fs_path}/{context.get_world_rank()}"
    # Always the same folder: what a killed process has left there is overwritten by the next.
    folder = Path(tempfile.gettempdir()) / f"stepwiser-{hashlib.sha256(run.encode()).hexdigest()}"
    while folder in _UNDER_WAY and folder.exists():
        time.sleep(0.01)  # Ray Train takes the folder away when it has arrived
    shutil.rmtree(folder, ignore_errors=True)
    write(str(folder))
    _UNDER_WAY.add(folder)
    report(
        metrics,
        checkpoint=Checkpoint.from_directory(str(folder)),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )


_UNDER_WAY: set[Path] = set()
"""Folders that this process has given to Ray Train."""


def _settling(train_fn: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """``train_fn(config)``, of which an error is not heard before the last checkpoint has arrived.

    Ray Train ends a worker at its error, and with it a checkpoint that is on its way.
    """
    try:
        train_fn(config)
    except Exception:  # raised again below, only later
        deadline = time.monotonic() + _SETTLE_S
        while any(folder.exists() for folder in _UNDER_WAY) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _UNDER_WAY:
            time.sleep(4 * _LOOK_S)  # for the controller to take the report
        raise


def _fit(trainer: Any) -> None:
    """``trainer.fit()`` off the main thread.

    On the main thread Ray Train takes Ctrl-C over for good: the fit then ends as if it had
    succeeded, and a Ctrl-C in a later stage exits with code 0.
    """
    outcome: concurrent.futures.Future[None] = concurrent.futures.Future()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised again where the outcome is waited for
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    # A daemon: an interrupted driver does not wait for the training that it gives up.
    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    outcome.result()


def _worker_environment(group: WorkerGroup) -> dict[str, str]:
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    if not group.use_gpu:
        environment |= {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(group.threads),
        }
    return environment


def _readable(group: WorkerGroup, error: Exception) -> Exception:
    """The first worker's own exception instead of Ray's account of it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items(), key=lambda item: _is_echo(item[1])):
        cause: BaseException = failure
        while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
            cause = inner
        if isinstance(cause, UserError):
            return UserError(str(cause))
        if is_out_of_memory(cause):
            return out_of_gpu_memory(group, cause)
        return TrainingError(
            f"training {group.name!r} failed on rank {rank} after {group.max_failures} restarts: "
            f"{type(cause).__name__}: {cause}"
        )
    return TrainingError(f"training {group.name!r} failed: {error}")


def out_of_gpu_memory(group: WorkerGroup, error: BaseException) -> UserError:
    """What to set where a pass did not fit on a GPU."""
    budget = group.max_tokens_per_microbatch
    remedies = [f"lower learner.max_tokens_per_microbatch={budget} (to {budget // 2})"]
    if not group.gradient_checkpointing:
        remedies.append("set learner.gradient_checkpointing=true")
    if group.gpus_per_worker < 1:
        remedies.append("leave more to the learner (engine.gpu_memory_utilization)")
    return UserError(
        f"training {group.name!r} ran out of GPU memory ({first_words(error)}): "
        f"{', or '.join(remedies)}; the same command goes on from the last checkpoint"
    )


def _is_echo(failure: Exception) -> bool:
    """Whether a rank only reports that it lost another one."""
    text = str(failure)
    return any(hint in text for hint in ("Connection closed by peer", "Connection reset", "gloo"))


@contextlib.contextmanager
def _followed(
    path: str, kinds: Sequence[str], callback: Callable[[Metrics], None] | None
) -> Iterator[None]:
    """Hand new lines to a callback of the driver while the body runs."""
    if callback is None:
        yield
        return
    tail = MetricsTail(path, kinds, from_end=True)

    def follow() -> None:
        for line in tail.read():
            callback(line)

    with repeating(follow, 0.5):
        yield
    follow()
