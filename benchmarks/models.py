"""Does it work with any model, and does the memory plan tell what a run takes?

    python -m benchmarks.models --large DIR    a third model, of about half a billion parameters
    python -m benchmarks.models --quick        the packaged model and SmolLM2-135M alone

Prompting: the tests of tokenizer families and of chat templates, as they stand in tests/, are run;
a family or a template counts where every test of it passes. Memory: annotation and two steps of
training, as a user would start them, with one engine and one learner; once in a tenth of a second
the memory of every process that the kernel cannot take back is noted (anonymous pages: RSS less
what is shared), and the largest moment of each role is held against the plan.

The last line is one JSON object: `tokenizers_exact` and `templates_exact` are shares,
`memory_plan_error` is the largest |planned - measured| / measured of an engine or a learner over
the models; `memory` has every figure behind it, in GB.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
from rich.console import Console

from benchmarks.command import CONFIG, arguments
from benchmarks.process_monitor import role
from pipelines.monitoring.formatting import titled_table
from pipelines.session.memory_table import folder_here
from stepwiser.config import RunConfig, load_config
from stepwiser.data.records import JudgePrompt
from stepwiser.run.memory.kills import NAMES
from stepwiser.run.memory.plan import plan_memory
from stepwiser.run.periodic import repeating
from stepwiser.run.store import RunStore

ROOT = CONFIG.parents[1]
PROMPTING = ROOT / "tests" / "stepwiser" / "prompting"
SAMPLE_S = 0.1
ROLES = ("engine", "learner")

FULL_BATCH = (
    # Micro-batches are full with these, as they are planned.
    "learner.max_tokens_per_microbatch=4096",
    "label.max_prompt_tokens=80",
    "data.limit=32",
)
REAL = (
    "engine.dtype=bfloat16",
    "engine.kv_cache_mb=256",
    "engine.max_model_len=512",
    "engine.max_num_seqs=16",
    "learner.precision=bfloat16",
    "prompts.steps=paragraphs",
    "prompts.plain=Solve: {problem}",
    # Even a small model says one or the other of these.
    "prompts.judge={problem}\n{history}\nNow check this step: {chunk}\nAnswer "
    '"The step is right. \\boxed{{Positive}}" or "The step is wrong. \\boxed{{Negative}}".',
    "judge_max_tokens=32",
    "annotate.max_tokens=48",
    "annotate.responses=4",
    "annotate.rollouts=2",
    "annotate.temperature=1.2",
    "label.max_prompt_tokens=128",
    "train.prompts_per_step=2",
    "train.minibatch_prompts=2",
    "train.group_size=2",
    "train.max_response_tokens=32",
    "train.temperature=0.8",
    # In bfloat16 an engine and a learner round in different places.
    "train.logprob_tolerance=1.0",
    "train.publish_timeout_s=900",
    "train.max_sampling_rounds=20",
    "learner.max_tokens_per_microbatch=192",
    "data.limit=8",
)
ONE = (
    "engine.count=1",
    "learner.workers=1",
    "train.steps=2",
    "train.evaluate_every=null",
    "discriminative.enabled=false",
    "tracker=none",
)
"""One of each, so that a role is one process."""


def main() -> None:
    parser = arguments(__doc__, "two models, within ten minutes", None)
    parser.add_argument("--large", help="folder of a model of about half a billion parameters")
    parser.add_argument("--only", choices=("prompting", "memory"))
    args = parser.parse_args()
    console = Console()
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as exits:
        out = args.out or exits.enter_context(tempfile.TemporaryDirectory())
        if args.only != "memory":
            figures |= measure_prompting(Path(out).absolute())
        if args.only != "prompting":
            models = {"embedded": "embedded", "SmolLM2-135M": _smollm2(Path(out).absolute())}
            if args.large and not args.quick:
                models["large"] = args.large
            figures |= measure_memory(console, models, Path(out).absolute())
    print(json.dumps(figures))


# --- prompting ------------------------------------------------------------------------------------


def measure_prompting(out: Path) -> dict[str, float]:
    """Shares of the tokenizer families and of the chat templates that pass all of their tests."""
    out.mkdir(parents=True, exist_ok=True)
    return {
        "tokenizers_exact": passed_share(
            _tests(PROMPTING / "test_tokenizers.py", out),
            ("test_a_response_that_begins_with_a_word",),
        ),
        "templates_exact": passed_share(
            _tests(PROMPTING / "test_templates.py", out),
            (
                "test_the_problem_is_in_every_prompt",
                "test_a_template_that_cannot_ask_is_refused_by_name",
            ),
        ),
    }


def _tests(file: Path, out: Path) -> dict[str, bool]:
    """Whether each test of a file passes, by its name with its parameters."""
    report = out / f"{file.stem}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    # In an environment of its own, as tests set theirs.
    subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False, stdout=sys.stderr)
    return {
        case.attrib["name"]: all(
            case.find(kind) is None for kind in ("failure", "error", "skipped")
        )
        for case in ElementTree.parse(report).getroot().iter("testcase")
    }


def passed_share(tests: Mapping[str, bool], naming: Sequence[str]) -> float:
    """Share of the cases of which every test passes.

    ``naming``: tests whose only parameter is the name of a case. Another test is one of the case
    whose name is among its parameters; one that belongs to none counts for all of them.
    """
    cases = {
        test.partition("[")[2].removesuffix("]"): True
        for test in tests
        if test.partition("[")[0] in naming
    }
    if not cases:
        raise RuntimeError("no test was found: run this in a checkout, with the extra `dev`")
    for test, passed in tests.items():
        given = test.partition("[")[2].removesuffix("]")
        mine = [name for name in cases if f"-{name}-" in f"-{given}-"]
        # `Llama-3` is not meant where `Llama-3.1` is, nor is `Phi` by `Phi-3`.
        for name in [max(mine, key=len)] if mine else [*cases]:
            cases[name] &= passed
    return sum(cases.values()) / len(cases)


# --- memory ---------------------------------------------------------------------------------------


def measure_memory(console: Console, models: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Planned and measured gigabytes of each model's engines and learners, and the worst error."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, model in models.items():
        rows[name] = _measure_model(name, model, out / name)
        # A large model takes long: what is known stays where it is cut off.
        (out / "memory.json").write_text(json.dumps(rows, indent=1))
    table = titled_table(
        "Memory of a process, GB", "model", "process", "planned", "measured", "off"
    )
    errors = []
    for name, found in rows.items():
        for process, row in found.items():
            off = row["planned"] / row["measured"] - 1
            errors.append(abs(off))
            values = (f"{row['planned']:.2f}", f"{row['measured']:.2f}", f"{off:+.1%}")
            table.add_row(name, process, *values)
    console.print(table)
    return {"memory_plan_error": max(errors), "memory": rows}


def _measure_model(name: str, model: str, out: Path) -> dict[str, dict[str, float]]:
    from pipelines.stages.runner import run_stages

    small = FULL_BATCH if name == "embedded" else REAL
    config = load_config(
        CONFIG,
        [f"run_dir={out}", f"policy_model={model}", f"judge_model={model}", *small, *ONE],
    )
    shutil.rmtree(out, ignore_errors=True)
    store = RunStore(out)
    store.open(config)
    found = {}
    for stage in ("annotate", "train"):
        if stage == "annotate":
            _give_policy(config, store)
        else:
            _give_prompts(store, name)
        with peaks() as measured:
            run_stages(config, (stage,))
        for process in plan_memory(config, stage, folder_here).processes:
            if process.role in ROLES:
                found[f"{process.role}, {stage}"] = {
                    "planned": process.host_bytes / 1e9,
                    "measured": measured[process.role] / 1e9,
                }
    return found


def _give_policy(config: RunConfig, store: RunStore) -> None:
    """A model in place of the chunk-tuned one: what is measured is its size."""
    if config.prompts.steps == "paragraphs":
        return
    folder = folder_here(config.policy_model)
    assert folder is not None
    shutil.copytree(folder, store.model_dir("policy"))


def _give_prompts(store: RunStore, name: str) -> None:
    """Labelled prompts, as of the stage `label`: a model that is asked at random tells enough."""
    from benchmarks.training.trl import oracle_prompts

    prompts: Sequence[JudgePrompt] = oracle_prompts(256 if name == "embedded" else 64, seed=1)
    store.write_table("judge_prompts", "label", JudgePrompt.to_table(prompts))


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """The most that a process of each role has at one time while the block runs, in bytes."""
    most: dict[str, float] = defaultdict(float)
    me = psutil.Process(os.getpid())
    known: dict[int, psutil.Process] = {}
    looks = 0

    def look() -> None:
        nonlocal looks
        if looks % 10 == 0:
            known.update((child.pid, child) for child in me.children(recursive=True))
        looks += 1
        for pid, process in list(known.items()):
            try:
                memory = process.memory_info()
                name = role(process.cmdline())
            except psutil.Error:
                del known[pid]
                continue
            name = NAMES.get(name, name)
            most[name] = max(most[name], float(memory.rss - memory.shared))

    with repeating(look, SAMPLE_S):
        yield most


def _smollm2(out: Path) -> str:
    """Made once, by the code that makes it for the tests."""
    folder = out / "smollm2"
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "tests.support.smollm2", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return str(folder)


if __name__ == "__main__":
    main()
