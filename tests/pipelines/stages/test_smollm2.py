"""A real tokenizer and model on real text: stages of `configs/real-0.5b-cpu.yaml`, SmolLM2-135M.

Model and data have the names that the config ships with and come from a Hub cache, without a
network. It shows that the parts fit together, not that anything is learned: a model of this size
solves one easy problem in four.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stepwiser.data.records import ChunkValue, Judgement, JudgePrompt, Trajectory
from stepwiser.data.verifiers import MathVerifyChecker, boxed_answer
from stepwiser.run.store import RunStore
from tests.support.commands import command_environment
from tests.support.hub_cache import SHIPPED, add_to_cache
from tests.support.paths import ROOT
from tests.support.smollm2 import make_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROBLEMS = (
    ("Tom has 2 apples. He buys 3 more. How many apples does he have now?", "2+3=5\n#### 5"),
    ("Sara has 10 cookies. She eats 4. How many cookies are left?", "10-4=6\n#### 6"),
    ("There are 5 birds in a tree. 2 fly away. How many birds are left?", "5-2=3\n#### 3"),
    ("A pack has 4 pencils. Lily buys 2 packs. How many pencils does she have?", "4*2=8\n#### 8"),
    ("Omar has 7 stamps. He finds 2 more. How many stamps does he have now?", "7+2=9\n#### 9"),
    ("Mia has 6 balloons. 1 of them bursts. How many balloons are left?", "6-1=5\n#### 5"),
)

# A 135M model neither writes \boxed{} nor ends with a verdict when it is only told to.
PLAIN = """Solve each problem in a few short paragraphs and end with the answer in \\boxed{{}}.

Problem: Ann has 3 pens. She buys 4 more and gives 2 away. How many pens has she?
Solution: Ann has 3 + 4 = 7 pens after buying.

She gives 2 away, so she has 7 - 2 = 5 pens.

The answer is \\boxed{{5}}.

Problem: A box holds 6 eggs. Ben buys 3 boxes. How many eggs has he?
Solution: Each box holds 6 eggs and there are 3 boxes.

So Ben has 3 * 6 = 18 eggs.

The answer is \\boxed{{18}}.

Problem: {problem}
Solution:"""
JUDGE = """{problem}

{history}

Now check this step: {chunk}

Answer "The step is right. \\boxed{{Positive}}" or "The step is wrong. \\boxed{{Negative}}"."""

STEP_ITEMS = [
    {
        "id": "own-0",
        "generator": "hand",
        "problem": "Tom has 2 apples. He buys 3 more. How many apples does he have now?",
        "steps": ["Tom has 2 apples and buys 3 more.", "So he has 2 + 3 = 5 apples."],
        "final_answer_correct": True,
        "label": -1,
    },
    {
        "id": "own-1",
        "generator": "hand",
        "problem": "Sara has 10 cookies. She eats 4. How many cookies are left?",
        "steps": ["Sara eats 4 of 10 cookies.", "So 10 + 4 = 14 cookies are left."],
        "final_answer_correct": False,
        "label": 1,
    },
]

OVERRIDES = (
    "engine.dtype=float32",
    "engine.max_model_len=512",
    "engine.max_num_seqs=64",
    "engine.kv_cache_mb=256",
    "learner.precision=float32",
    "learner.max_tokens_per_microbatch=512",
    "judge_max_tokens=40",
    "annotate.responses=8",
    "annotate.trajectories_per_problem=2",
    "annotate.rollouts=4",
    "annotate.repeat_share=0",
    "annotate.stopping=fixed",
    "annotate.stop_below=0",
    "annotate.max_tokens=80",
    "annotate.problems_per_unit=3",
    "label.heldout_share=0",
    "label.minimum_previous_value=0",
    "label.max_prompt_tokens=400",
    "train.warm_start=false",
    "train.steps=2",
    "train.prompts_per_step=8",
    "train.minibatch_prompts=8",
    "train.group_size=4",
    "train.max_response_tokens=40",
    "train.temperature=0.5",
    "discriminative.enabled=false",
    "evaluate.votes=2",
    "evaluate.temperature=0.5",
    "evaluate.calibration_trajectories=0",
)
STAGES = ("annotate", "label", "train", "evaluate", "report")


@pytest.fixture(scope="module")
def model(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept in pytest's cache between runs, where there is one: making it takes ten seconds."""
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("smollm2") if cache else tmp_path_factory.mktemp("model")
    return make_smollm2(folder)


@pytest.fixture(scope="module")
def home(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A Hub cache with model and data under the names of the config; the model's commit."""
    made = Path(os.environ["HF_HOME"])  # of all tests: with another no worker could be a fork
    data = tmp_path_factory.mktemp("data")
    rows = [json.dumps({"question": q, "answer": a}) for q, a in PROBLEMS]
    for split, part in (("train", rows), ("test", rows[:2])):
        (data / "main").mkdir(exist_ok=True)
        (data / "main" / f"{split}.jsonl").write_text("\n".join(part))
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n"
        "    path: main/train.jsonl\n  - split: test\n    path: main/test.jsonl\n---\n"
    )
    add_to_cache(made, "openai/gsm8k", data, kind="dataset")
    return made, add_to_cache(made, SHIPPED[0], model)


@pytest.fixture(scope="module")
def run(
    home: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunStore, dict[str, Any]]:
    """The command of docs/gsm8k.md, with sizes for a CPU."""
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "steps.json").write_text(json.dumps(STEP_ITEMS))
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pipelines.cli",
                "quickstart",
                "-c",
                "configs/real-0.5b-cpu.yaml",
            ),
            *("--stages", ",".join(STAGES)),
            f"run_dir={folder}/run",
            f"evaluate.source={folder}/steps.json",
            f"prompts.plain={PLAIN}",
            f"prompts.judge={JUDGE}",
            *OVERRIDES,
        ],
        cwd=ROOT,
        env=command_environment(forked=True),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    store = RunStore(str(folder / "run"))
    results = {stage: store.read_metrics(stage) for stage in STAGES}
    return store, results | {"output": done.stdout}


def test_names_of_the_hub_carry_a_run_from_annotation_to_report(
    home: tuple[Path, str], run: tuple[RunStore, dict[str, Any]]
) -> None:
    store, results = run
    recorded = json.loads((store.root / "environment.json").read_text())["models"]
    entry = {"name": SHIPPED[0], "revision": "main", "commit": home[1]}
    assert recorded == {"policy_model": entry}
    assert f"policy_model: {SHIPPED[0]} at {home[1]}" in results["output"]
    assert str(home[0]) not in results["output"], "the name, not the folder of one machine"
    assert f"({home[1][:8]})" in (store.root / "reports" / "report.html").read_text()
    card = (store.model_dir("judge") / "README.md").read_text()
    assert f"base_model: {SHIPPED[0]}\n" in card and f"{SHIPPED[0]} at {home[1]}" in card
    assert (store.model_dir("judge") / "tokenizer.json").is_file()


def test_annotated_rows_agree_with_math_verify(run: tuple[RunStore, dict[str, Any]]) -> None:
    store, results = run
    counts = results["annotate"]["counts"]
    assert counts["problems"] == len(PROBLEMS) and not results["annotate"]["rejects"]
    assert counts["mixed_problems"] >= 1, "some problem is solved in some of its responses"
    trajectories = Trajectory.from_table(store.read_table("trajectories", "annotate"))
    assert len(trajectories) == counts["trajectories"] >= 2
    checker = MathVerifyChecker()
    try:
        for row in trajectories:
            assert 1 <= len(row.chunks) == len(row.chunk_ends)
            assert row.chunk_ends == sorted(row.chunk_ends)
            assert row.chunk_ends[-1] <= len(row.response_ids)
            assert row.final_answer == boxed_answer("".join(row.chunks))
            assert row.correct is (checker.check(row.final_answer, row.answer) is True)
    finally:
        checker.close()
    known = {row.trajectory_id: row for row in trajectories}
    for value in ChunkValue.from_table(store.read_table("values", "annotate")):
        last = value.chunk_index == len(known[value.trajectory_id].chunks) - 1
        assert value.is_outcome is last
        assert 0 <= value.successes <= value.trials == (1 if last else 4)


def test_labels_are_balanced(run: tuple[RunStore, dict[str, Any]]) -> None:
    prompts = JudgePrompt.from_table(run[0].read_table("judge_prompts", "label"))
    counts = Counter(row.label for row in prompts if row.split == "train")
    assert counts[True] == counts[False] >= 1


def test_the_learner_steps_on_what_the_engine_sampled(
    run: tuple[RunStore, dict[str, Any]],
) -> None:
    store, results = run
    rows = [row for row in store.read_curve("judge") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        assert row["updates"] >= 1 and row["gradient_norm"] > 0
        assert row["staleness_max"] == 0
        assert row["logprob_gap"] < 1e-3, "engine and learner hold the same weights"
    assert results["train"]["steps"] == 2
    assert (store.model_dir("judge") / "model.safetensors").is_file()


def test_the_trained_judge_is_scored_in_processbench_format(
    run: tuple[RunStore, dict[str, Any]],
) -> None:
    store, results = run
    assert results["evaluate"]["items"] == {"wrong": 1, "right": 1}
    assert set(results["evaluate"]["judges"]) == {"start", "judge"}
    contamination = results["evaluate"]["contamination"]
    assert contamination["sets"][results["evaluate"]["set"]]["problems"] == 2
    assert not contamination.get("not_compared"), "the problems of `solve` are in the cache too"
    for row in results["evaluate"]["judges"].values():
        official = row["single"]["official"]
        assert official["n_error"] == official["n_correct"] == 1
        assert 0.0 <= official["f1"] <= 1.0
        assert 0.0 <= row["missing_share"] <= 1.0
    judged = Judgement.from_table(store.read_table("judgements", "evaluate"))
    for name in ("start", "judge"):
        steps = {(row.item_id, row.step_index) for row in judged if row.judge == name}
        assert steps == {(i["id"], s) for i in STEP_ITEMS for s in range(len(i["steps"]))}
    assert all(len(row.votes) == 2 for row in judged)
