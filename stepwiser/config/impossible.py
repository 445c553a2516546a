"""Settings that can never work together: refused before anything is started or sampled.

Only what fails whatever the models and the data are like is refused here. A configuration that a
run directory keeps is not held against this: what has run stays readable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from stepwiser.config.addresses import address_problem, object_address
from stepwiser.config.annotation import RuleConfig
from stepwiser.config.models import RunConfig
from stepwiser.config.training import MAX_ADAPTER_RANK
from stepwiser.errors import UserError


def refuse_impossible(config: RunConfig, where: str, stages: Sequence[str] = ()) -> None:
    """Raise UserError with every reason why this cannot work: keys, values and the fix.

    ``stages``: those that are about to run, where that is known.
    """
    found = [words for check in CHECKS for words in check(config)]
    found += [words for stage in stages for words in STAGE_CHECKS.get(stage, _nothing)(config)]
    if found:
        raise UserError(f"{where}: " + "; ".join(dict.fromkeys(found)))


def _nothing(config: RunConfig) -> Iterator[str]:
    return iter(())


def _addresses(config: RunConfig) -> Iterator[str]:
    places = {
        "run_dir": config.run_dir,
        "policy_model": config.policy_model,
        "judge_model": config.judge_model,
        "train.adapter": config.train.adapter,
        "segment.segmenter_model": config.segment.segmenter_model,
        "data.source": config.data.source,
        "evaluation_data.source": config.evaluation_data.source,
        "annotate.source": config.annotate.source,
        "evaluate.source": config.evaluate.source,
        **{f"evaluate.more.{i}.source": one.source for i, one in enumerate(config.evaluate.more)},
    }
    for key, value in places.items():
        if key == "run_dir" and object_address(config.run_dir):
            continue
        if value is not None and (problem := address_problem(key, value)):
            yield problem
        if value is not None and not value.strip():
            yield f"{key} is empty: name a folder, a file or a known name"


def _groups(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.method != "grpo":
        return
    if train.group_size == 1:
        yield (
            "train.group_size=1 with train.method=grpo: an answer is held against the others of "
            "its group, and one alone teaches nothing: set train.group_size to 2 or more"
        )
    if train.importance_cap is not None and train.importance_cap <= 0:
        yield (
            f"train.importance_cap={train.importance_cap:g} cuts every weight of a sample to 0 or "
            "below: set it above 0 (2), or to null for no cap"
        )
    if (
        (train.keep == "best" or train.early_stop_patience is not None)
        and config.label.heldout_share == 0
        and train.evaluate_processbench is None
    ):
        yield (
            "train.keep=best and train.early_stop_patience go by scores, and with "
            "label.heldout_share=0 and no train.evaluate_processbench nothing is scored: raise "
            "label.heldout_share (0.05), or set train.evaluate_processbench"
        )


def _lengths(config: RunConfig) -> Iterator[str]:
    engine, learner, train = config.engine, config.learner, config.train
    if engine.max_model_len < 2:
        yield (
            f"engine.max_model_len={engine.max_model_len} leaves no token for an answer: raise it "
            "to the tokens of a prompt and its response together"
        )
    if train.method != "grpo":
        return
    # The collector asks only what leaves room for the longest response.
    longest = min(train.max_response_tokens, config.judge_max_tokens)
    for key, context in (
        ("engine.max_model_len", engine.max_model_len),
        ("learner.max_tokens_per_microbatch", learner.max_tokens_per_microbatch),
    ):
        if longest >= context:
            yield (
                f"responses of up to {longest} tokens (train.max_response_tokens="
                f"{train.max_response_tokens}, judge_max_tokens={config.judge_max_tokens}) leave "
                f"no room for a prompt in {key}={context}: raise {key}, or lower the longer of "
                "the two"
            )


def _one_greedy_answer(config: RunConfig) -> Iterator[str]:
    """vLLM refuses several samples at temperature 0: they would all be the same."""
    for temperature, samples in (
        ("evaluate.temperature", "evaluate.votes"),
        ("select.judge_temperature", "select.votes"),
        ("finetune.evaluation_temperature", "finetune.evaluation_samples"),
    ):
        values = []
        for key in (temperature, samples):
            section, _, name = key.partition(".")
            values.append(getattr(getattr(config, section), name))
        if values[0] == 0 and values[1] > 1:
            yield (
                f"{samples}={values[1]} at {temperature}=0 are {values[1]} times the same answer: "
                f"set {samples}=1, or raise {temperature}"
            )
    if config.solve.temperature == 0:
        yield (
            "solve.temperature=0 gives every sample of a problem, and every new try of a chunk, "
            "the same text: raise solve.temperature (1.0)"
        )


def _difficulty(config: RunConfig) -> Iterator[str]:
    annotate = config.annotate
    if annotate.responses == 1 and annotate.source is None:
        yield (
            "annotate.responses=1 makes every problem all right or all wrong, and the difficulty "
            "filter drops both: set annotate.responses to 2 or more (16)"
        )


def _live_labels(config: RunConfig) -> Iterator[str]:
    annotate, label = config.annotate, config.label
    if not config.train.live or annotate.stopping == "fixed" or not annotate.rules:
        return
    asked = RuleConfig.model_validate(
        {name: getattr(label, name) for name in RuleConfig.model_fields}
    )
    if asked not in annotate.rules:
        yield (
            f"train.live=true trains on label.rule={label.rule}, and annotate.stopping="
            f"{annotate.stopping} ends rollouts for annotate.rules, which lack it with its "
            "parameters: add it there, or set annotate.stopping=fixed"
        )


def _segmenter(config: RunConfig) -> Iterator[str]:
    segment = config.segment
    if config.prompts.steps == "paragraphs" or segment.segmenter != "openai":
        return
    for key, value in (
        ("segment.segmenter_url", segment.segmenter_url),
        ("segment.segmenter_model", segment.segmenter_model),
    ):
        if not value:
            yield f"segment.segmenter=openai has nobody to ask without {key}: set it"


def _rejection(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.warm_start and train.method != "grpo":
        yield (
            f"train.warm_start=true comes before GRPO, and train.method={train.method} has none: "
            "leave it out, or set train.method=grpo"
        )
    if train.warm_start and train.live:
        yield (
            "train.warm_start=true reads the labels that stage label has made, and train.live=true "
            "makes them while GRPO trains: leave one of the two out"
        )
    if config.label.critic.model is not None and train.live:
        yield (
            f"label.critic.model={config.label.critic.model} reads labels that are there, and "
            "train.live=true makes them while GRPO trains: leave one of the two out"
        )
    if train.warm_start and train.adapter is not None:
        yield (
            f"train.adapter={train.adapter} was trained beside the judge's start, and "
            "train.warm_start=true makes another: leave one of the two out"
        )
    if (train.method == "rs_ft" or train.warm_start) and config.rejection.prompts == 1:
        yield (
            "rejection.prompts=1 is half a prompt of each class, which is none: set "
            "rejection.prompts to 2 or more, or to null for all"
        )


def _gpus(config: RunConfig) -> Iterator[str]:
    engine, learner, train = config.engine, config.learner, config.train
    for key, gpus in (("engine.gpus", engine.gpus), ("learner.gpus", learner.gpus)):
        if gpus > 1 and gpus != int(gpus):
            yield f"{key}={gpus:g}: Ray gives fractions of one GPU or whole ones: round it"
    if 0 < engine.gpus < engine.tensor_parallel_size > 1:
        yield (
            f"engine.tensor_parallel_size={engine.tensor_parallel_size} needs as many GPUs, and "
            f"engine.gpus={engine.gpus:g} are all that the engine sees: set engine.gpus="
            f"{engine.tensor_parallel_size}"
        )
    share = engine.gpu_memory_utilization or 0.0
    most = max(engine.count, config.annotate.min_engines or 0, config.annotate.max_engines or 0)
    together = min(most, int(1 / engine.gpus + 1e-9)) if 0 < engine.gpus < 1 else 1
    if together * share > 1 + 1e-9:
        yield (
            f"{together} engines of engine.gpus={engine.gpus:g} share a GPU, and with "
            f"engine.gpu_memory_utilization={share:g} each they want {together * share:g} of its "
            f"memory: lower it to {int(90 / together) / 100:g}, or leave it out"
        )
    if engine.gpu_memory_utilization == 0:
        yield "engine.gpu_memory_utilization=0 leaves an engine no memory: set it above 0 (0.9)"
    if config.cluster.cpus is not None and config.cluster.cpus < 0:
        yield f"cluster.cpus={config.cluster.cpus:g} is below 0: leave it out for the machine's own"
    if train.method != "grpo":
        return
    fractions = 0 < engine.gpus < 1 and 0 < learner.gpus < 1
    placed = f"engine.gpus={engine.gpus:g} and learner.gpus={learner.gpus:g}"
    if train.weight_transfer == "nccl" and not (engine.gpus and learner.gpus):
        yield (
            f"train.weight_transfer=nccl broadcasts between GPUs, and there are none with {placed}:"
            " set train.weight_transfer=auto, or whole GPUs for both"
        )
    if train.weight_transfer == "cuda_ipc" and not fractions:
        yield (
            f"train.weight_transfer=cuda_ipc opens memory of a GPU that both share, and with "
            f"{placed} they share none: set train.weight_transfer=auto, or fractions for both"
        )
    shared = train.weight_transfer in ("auto", "cuda_ipc") and fractions
    if shared and engine.gpus + learner.gpus > 1 + 1e-9:
        yield (
            f"{placed} add up to more than one GPU, so that engine and learner never share one and "
            "weights cannot go through its memory: lower them to 1 together, or set "
            "train.weight_transfer=object_store"
        )


def _lora(config: RunConfig) -> Iterator[str]:
    lora, train = config.learner.lora, config.train
    if not lora.rank:
        if train.adapter is not None:
            yield (
                f"train.adapter={train.adapter} is an adapter to go on with, and learner.lora.rank="
                "0 trains none: set learner.lora.rank to the adapter's own"
            )
        return
    if lora.rank > MAX_ADAPTER_RANK:
        yield (
            f"learner.lora.rank={lora.rank}: engines take adapters of rank {MAX_ADAPTER_RANK} at "
            "most: lower it (16)"
        )
    named = lora.target_modules if isinstance(lora.target_modules, tuple) else ()
    if tied := [name for name in named if name.split(".")[-1] in _NO_ADAPTER]:
        yield (
            f"learner.lora.target_modules has {', '.join(tied)}, and embeddings and output layer "
            "have no adapters here: leave them out"
        )
    if train.method == "grpo" and train.weight_transfer in ("cuda_ipc", "nccl"):
        yield (
            f"train.weight_transfer={train.weight_transfer} sends whole weights, and with "
            f"learner.lora.rank={lora.rank} only adapters go to the engines, through Ray's object "
            "store: set train.weight_transfer=auto"
        )


_NO_ADAPTER = ("lm_head", "embed_tokens")

CHECKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _addresses,
    _groups,
    _lengths,
    _one_greedy_answer,
    _difficulty,
    _live_labels,
    _segmenter,
    _rejection,
    _gpus,
    _lora,
)


def _has_training_labels(config: RunConfig) -> Iterator[str]:
    if config.label.heldout_share == 1:
        yield (
            "label.heldout_share=1 keeps every problem for validation and none to train on: lower "
            "it (0.05)"
        )
    if config.train.method == "grpo" and config.train.evaluate_processbench is not None:
        yield from _has_an_oracle(config)


def _has_an_oracle(config: RunConfig) -> Iterator[str]:
    if config.evaluate.source == "embedded" and config.evaluation_data.source != "embedded":
        yield (
            "evaluate.source=embedded makes solutions to the embedded task, and "
            f"evaluation_data.source={config.evaluation_data.source} holds other problems, whose "
            "first wrong step nobody knows: set evaluate.source to a file with labelled steps"
        )


STAGE_CHECKS: dict[str, Callable[[RunConfig], Iterator[str]]] = {
    "train": _has_training_labels,
    "evaluate": _has_an_oracle,
}
"""What one stage can never do, and others can."""
