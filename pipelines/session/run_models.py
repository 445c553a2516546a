"""The models of a run: each name stands for one commit, and each machine has what it will load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from actors.engine.architectures import listed_architectures, refuse_unknown
from stepwiser.config import RunConfig, parse_config
from stepwiser.config.loading import set_key
from stepwiser.errors import UserError
from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.files import (
    check_files,
    check_trainable,
    missing_files,
    names_in,
    read_settings,
)
from stepwiser.prompting.hub.folders import (
    files_on_hub,
    find_commit,
    model_folder,
    resolve_model,
)
from stepwiser.prompting.hub.reference import EMBEDDED, HubModel, hub_model
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.models_used import JUDGES, ModelUse, judge_key, models_used
from stepwiser.run.resource_plan import has_engines
from stepwiser.run.store import RunStore


class RunModels:
    """What the names of one configuration stand for."""

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        console: Console,
        commits: Mapping[str, str] | None = None,
    ) -> None:
        """``commits``: of names that another run of this start has looked up."""
        self._config = config
        self._store = store
        self._console = console
        recorded = store.models().values()
        # What the run began with goes before what the Hub says today.
        self.commits = dict(commits or {})
        self.commits |= {f"{m['name']}@{m['revision']}": m["commit"] for m in recorded}
        self._prompts: dict[str, PromptFormat] = {}
        self._used: list[ModelUse] = []

    def resolve(self, model: str) -> str:
        """What processes call a model: a path, or `org/name@commit`; raises as `resolve_model`."""
        hub = hub_model(model)
        if hub is None:
            return resolve_model(model)
        name = str(hub)
        if name not in self.commits:
            found = find_commit(hub)
            if found.notice:
                words = f"{hub.title}: {found.notice}"
                self._console.print(words, style="yellow", markup=False, soft_wrap=True)
            self.commits[name] = found.commit
        return resolve_model(model, self.commits[name])

    def prompts(self, model: str) -> PromptFormat:
        """The prompts of this run for a model; raises UserError as `PromptFormat` does."""
        model = self.resolve(model)
        if model not in self._prompts:
            config = self._config
            self._prompts[model] = PromptFormat.from_model_dir(
                model, config.judge_prompts, config.trust_remote_code
            )
        return self._prompts[model]

    # --- before any work ------------------------------------------------------------------------

    def check(self, stages: Sequence[str]) -> None:
        """Look at every model that these stages will load; weights are not read, nor fetched.

        Raises UserError, naming the model, for one that cannot be had, trained or asked.
        """
        self._used = models_used(self._config, stages)
        for use in self._used:
            model = self.resolve(use.model)
            if hub := hub_model(model):
                self._console.print(
                    f"{use.key}: {hub.name} at {hub.revision}", highlight=False, soft_wrap=True
                )
            if any(has_engines(self._config, stage) for stage in stages):
                self._check(use, model)

    def _check(self, use: ModelUse, model: str) -> None:
        folder = model_folder(model, weights=False)
        config = self._config
        check_files(
            use.model,
            folder,
            self._names(model, folder, use.weights),
            weights=use.weights,
            pickled=config.allow_pickled_weights,
        )
        if not use.writes:
            return
        if use.weights and use.model != EMBEDDED:
            check_trainable(use.model, folder, config.trust_remote_code)
        prompts = self.prompts(use.model)
        if use.discriminates:
            _ = prompts.mark_ids  # raises where a verdict is more than one token

    @staticmethod
    def _names(model: str, folder: Path, weights: bool) -> set[str]:
        """All files of a model, whether this machine has them or not."""
        names, hub = names_in(folder), hub_model(model)
        if hub is None or not weights or cache.is_offline() or not missing_files(folder, True):
            return names
        return names | files_on_hub(hub)

    def record(self) -> None:
        """Write into the run directory what each name stands for."""
        known = self._store.models()
        found = {use.key: _entry(hub, self.resolve(use.model)) for use, hub in self._on_hub()}
        if known | found != known:
            self._store.record_models(known | found)

    def pinned(self) -> RunConfig:
        """The configuration with the commit in the name of each model that was checked."""
        raw = self._config.model_dump(mode="json")
        for use, _ in self._on_hub():
            if not use.key.startswith(JUDGES):
                set_key(raw, use.key, self.resolve(use.model), "the commit of a model")
        keys = {use.key for use, _ in self._on_hub()}
        for judge in raw["evaluate"]["judges"]:
            if judge_key(judge["name"]) in keys:
                judge["model"] = self.resolve(judge["model"])
        return parse_config(raw)

    def _on_hub(self) -> list[tuple[ModelUse, HubModel]]:
        pairs = ((use, hub_model(use.model)) for use in self._used)
        return [(use, hub) for use, hub in pairs if hub is not None]

    # --- on the cluster -------------------------------------------------------------------------

    def provide(self) -> None:
        """Have every machine that may load a model fetch it, and vLLM look at what is new to it.

        Raises UserError with what each of them lacks.
        """
        wanted = [(self.resolve(use.model), use.weights) for use, _ in self._on_hub()]
        here, loading, all_nodes = ray.get_runtime_context().get_node_id(), *self._nodes()
        if wanted:
            if len(all_nodes) > 1:
                self._console.print(f"models on {len(all_nodes)} nodes …", highlight=False)
            # Tokenizers are read by actors that may be anywhere.
            small = [(model, False) for model, _ in wanted]
            others = {
                address: _fetch.options(**_on(node)).remote(wanted if node in loading else small)
                for node, address in all_nodes.items()
                if node != here
            }
            _fetch_here(wanted if here in loading else small)
            _collect(others)
        node, address = next(iter(loading.items()))
        for model in {self.resolve(use.model) for use in self._used if use.weights and use.writes}:
            settings = read_settings(model_folder(model, weights=False) / "config.json")
            if not listed_architectures().intersection(settings.get("architectures") or ()):
                trust = self._config.trust_remote_code
                _collect({address: _ask_vllm.options(**_on(node)).remote(model, trust)})

    def _nodes(self) -> tuple[dict[str, str], dict[str, str]]:
        """Addresses by id of the nodes that engines and learners may be placed on, and of all."""
        config = self._config
        kind = "GPU" if config.engine.gpus or config.learner.gpus else "CPU"
        alive = [node for node in ray.nodes() if node["Alive"]]
        chosen = [node for node in alive if node["Resources"].get(kind)] or alive
        loading, others = (
            {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
            for nodes in (chosen, alive)
        )
        return loading, others


def _entry(model: HubModel, resolved: str) -> dict[str, str]:
    commit = resolved.rpartition("@")[2]
    return {"name": model.name, "revision": model.revision, "commit": commit}


def _on(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _fetch_here(models: Sequence[tuple[str, bool]]) -> None:
    for model, weights in models:
        model_folder(model, weights=weights)


_fetch = ray.remote(num_cpus=0, max_retries=0)(_fetch_here)
_ask_vllm = ray.remote(num_cpus=0, max_retries=0)(refuse_unknown)


def _collect(tasks: Mapping[str, Any]) -> None:
    """Wait for tasks by the address of their node; raises UserError with what they refuse."""
    problems = []
    for address, task in tasks.items():
        try:
            ray.get(task)
        except RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise
            problems.append(f"node {address}: {error.cause}")
    if problems:
        raise UserError("; ".join(problems))
