"""What a start of the drill is asked for, and how much each part does on a card and on a CPU."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import CONFIG
from stepwiser.config import RunConfig, load_config

ALWAYS = ("tracker=none", "discriminative.enabled=false")
FEW_SCORES = (
    "evaluate.votes=1",
    "evaluate.calibration_trajectories=0",
    "evaluate.faithfulness=0",
    "evaluate.beyond=0",
    "evaluate.forced_prefix=''",
)
DRY = (
    # No policy that writes chunks: to tune one would take longer than all else.
    "prompts.steps=paragraphs",
    "engine.kv_cache_mb=64",
    "engine.max_num_seqs=64",
)
CONTEXT_BYTES = 3 * 2**30
"""Of an engine on a GPU beside its weights and its cache: CUDA, graphs, one step's activations."""


@dataclass(frozen=True)
class Size:
    """How much the parts do."""

    engines: int
    """That share the card with one for comparison and a raw one."""
    problems: int
    """Annotated in one repeat."""
    sequential_requests: int
    transfers: int
    """Of the weights, by each way."""
    micro_batches: tuple[int, ...]
    """Groups of 4,096 tokens in one forward pass of the learner."""
    group: tuple[int, int, int]
    """Responses of a group, tokens of its prompt and of each response."""
    steps: int
    """Of reinforcement learning."""
    prompts_per_step: int
    clients: tuple[int, ...]
    window_s: float
    """Of serving, for each number of clients."""
    items: int
    """Solutions that a judge is scored on before and after training."""


CARD = Size(6, 96, 24, 5, (1, 4, 8), (8, 512, 448), 10, 64, (1, 8, 64, 512), 6.0, 60)
CPU = Size(1, 8, 4, 2, (1, 2), (4, 40, 30), 2, 8, (1, 8), 2.0, 8)


@dataclass(frozen=True)
class Drill:
    """One start; every part reads it from a file."""

    out: str
    """Folder that everything is written into."""
    model: str
    """Folder of the model, or ``embedded``."""
    data: str | None
    """Folder with ``gsm8k/`` and ``processbench/``; none for the packaged task."""
    dry: bool
    seed: int
    card_bytes: float
    """Memory of the GPU; 0 on a CPU."""
    seconds: float = 0.0
    """That the part has which reads this."""

    @property
    def size(self) -> Size:
        return CPU if self.dry else CARD

    @property
    def precision(self) -> str:
        return "float32" if self.dry else "bfloat16"

    @property
    def step_items(self) -> str:
        """File of solutions with labelled steps."""
        if self.dry:
            return str(Path(self.out) / "data" / "steps.json")
        return str(Path(self.data or "") / "processbench" / "gsm8k.json")

    def with_seconds(self, seconds: float) -> Drill:
        return replace(self, seconds=seconds)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: str) -> Drill:
        raw: dict[str, Any] = json.loads(Path(path).read_text())
        return cls(**raw)

    def run_dir(self, part: str) -> Path:
        return Path(self.out) / "runs" / part

    def config(self, part: str, *overrides: str) -> RunConfig:
        """The run of one part: the scenario of the packaged task, or that of GSM8K."""
        own = [f"run_dir={self.run_dir(part)}", f"seed={self.seed}", *ALWAYS]
        own += [f"policy_model={self.model}", f"judge_model={self.model}"]
        own += [f"evaluate.source={self.step_items}", *FEW_SCORES]
        if self.dry:
            return load_config(CONFIG, [*own, *DRY, *overrides])
        data = Path(self.data or "")
        own += [
            "prompts.steps=paragraphs",
            "data.subset=null",
            "evaluation_data.subset=null",
            f"data.source={data / 'gsm8k' / 'train.jsonl'}",
            f"evaluation_data.source={data / 'gsm8k' / 'test.jsonl'}",
        ]
        return load_config(CONFIG.with_name("gsm8k.yaml"), [*own, *overrides])

    def shares(self, engines: int, beside: float = 0.0) -> list[str]:
        """Overrides for so many engines on the card, ``beside`` of whose memory others have.

        Each has an equal share: the cache takes what its weights and CUDA leave of it.
        """
        if self.dry:
            return []
        share = (0.94 - beside) / engines
        # The model's own files say how large it is.
        weights = sum(file.stat().st_size for file in Path(self.model).glob("*.safetensors"))
        cache = share * self.card_bytes - weights - CONTEXT_BYTES
        return [
            f"engine.gpus={int(1000 * (1 - beside) / engines) / 1000:g}",
            f"engine.gpu_memory_utilization={share:.3f}",
            f"engine.kv_cache_mb={max(512, int(cache / 2**20))}",
        ]
