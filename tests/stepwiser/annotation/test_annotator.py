"""Annotation's bookkeeping, on a policy that is a table of what it says.

The real engine annotates in tests/pipelines; here every count can be worked out by hand.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from stepwiser.annotation.annotator import Annotator, ProblemAnnotation
from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import Question, stopping_plan, trajectory_labels
from stepwiser.config import load_config
from stepwiser.config.annotation import AnnotateConfig, LabelConfig
from stepwiser.data.records import Q0, Problem, group_by
from stepwiser.data.verifiers import ExactChecker
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.tasks.tokenizer import build_tokenizer
from tests.support.paths import ROOT

PROMPTS = PromptFormat(build_tokenizer(), load_config(ROOT / "configs" / "embedded.yaml").prompts)
QUESTION = "ana has 64 coins. buys 21. doubles them. how many?"
PROBLEM = Problem("p", QUESTION, "170")
RIGHT = "<chunk>buys 64+21=85\n</chunk><chunk>doubles 85*2=170\n\\boxed{170}</chunk>"
WRONG = "<chunk>buys 64+21=86\n</chunk><chunk>doubles 86*2=172\n\\boxed{172}</chunk>"
NESTED = "<chunk>buys 64+21=85\n<chunk>doubles 85*2=170\n</chunk>\\boxed{170}</chunk>"
UNCLOSED = "<chunk>buys 64+21=85\n</chunk><chunk>doubles 85*2=170\n\\boxed{170}"


@dataclass
class Table:
    """Continues a prompt with the given texts in turn; remembers what it was asked, and for how
    many samples each time.
    """

    answers: dict[str, list[str]]
    asked: list[str] = field(default_factory=list)
    sizes: dict[str, list[int]] = field(default_factory=dict)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        prompt = PROMPTS.decode(prompt_ids).removeprefix(QUESTION + "\n")
        self.asked.append(prompt)
        sizes = self.sizes.setdefault(prompt, [])
        start = sum(sizes)
        sizes.append(sampling.n)
        texts = self.answers[prompt]
        return [_sample(texts[i % len(texts)]) for i in range(start, start + sampling.n)]


def _sample(text: str) -> Sample:
    return Sample((*PROMPTS.encode(text), PROMPTS.eos_token_id), text, "stop")


def _annotate(
    table: Table, checker: ExactChecker | None = None, **settings: object
) -> ProblemAnnotation:
    config = AnnotateConfig(
        responses=4,
        trajectories_per_problem=4,
        max_tokens=100,
        **({"rollouts": 4} | settings),  # type: ignore[arg-type]
    )
    plan = stopping_plan(config, LabelConfig())
    annotator = Annotator(table, PROMPTS, checker or ExactChecker(), config, plan, seed=0)
    return asyncio.run(annotator.annotate(PROBLEM))


def test_values_of_a_mixed_problem() -> None:
    first_right, first_wrong = "<chunk>buys 64+21=85\n</chunk>", "<chunk>buys 64+21=86\n</chunk>"
    rest_right = RIGHT.removeprefix(first_right)
    rest_wrong = WRONG.removeprefix(first_wrong)
    table = Table(
        {
            "": [RIGHT, WRONG, RIGHT, WRONG],
            first_right: [rest_right, rest_right, rest_right, rest_wrong],
            first_wrong: [rest_wrong],
        }
    )
    result = _annotate(table)
    assert result.counts["mixed_problems"] == 1
    assert [t.correct for t in result.trajectories] == [False, True], "duplicates go, wrong first"
    values = {(v.trajectory_id, v.chunk_index): v for v in result.values}
    wrong, right = result.trajectories
    assert (right.problem_successes, right.problem_trials) == (2, 4)
    assert values[right.trajectory_id, 0].successes == 3
    assert values[wrong.trajectory_id, 0].successes == 0
    last = values[right.trajectory_id, 1]
    assert (last.successes, last.trials, last.is_outcome) == (1, 1, True)
    assert last.generated_tokens == 0, "a prefix that holds the answer needs no rollouts"
    for trajectory in result.trajectories:
        cut = trajectory.response_ids[: trajectory.chunk_ends[0]]
        assert PROMPTS.decode(cut) in (first_right, first_wrong)


def test_problems_outside_the_difficulty_band_are_dropped() -> None:
    for text, reason in ((RIGHT, "all_right"), (WRONG, "all_wrong")):
        table = Table({"": [text]})
        result = _annotate(table)
        assert result.counts[reason] == 1
        assert not result.trajectories and not result.values
        assert table.asked == [""], "no rollout is spent on them"


def test_malformed_responses_are_counted_by_reason() -> None:
    table = Table(
        {"": [NESTED, UNCLOSED, "no chunks \\boxed{170}".replace("no chunks ", ""), WRONG]}
        | {"<chunk>buys 64+21=86\n</chunk>": [WRONG.partition("</chunk>")[2]]}
    )
    result = _annotate(table)
    assert len(result.trajectories) == 1
    reasons = [key for key in result.counts if key.startswith("malformed: ")]
    assert sum(result.counts[key] for key in reasons) == 3
    assert len(reasons) >= 2


class Doubtful(ExactChecker):
    """Cannot say what 0 is."""

    def check(self, answer: str | None, reference: str, problem: str = "") -> bool | None:
        return None if answer == "0" else super().check(answer, reference)


DOUBTFUL = "doubles 86*2=0\n\\boxed{0}</chunk>"


def test_what_cannot_be_checked_is_no_failure() -> None:
    first_right, first_wrong = "<chunk>buys 64+21=85\n</chunk>", "<chunk>buys 64+21=86\n</chunk>"
    rest_right, rest_wrong = RIGHT.removeprefix(first_right), WRONG.removeprefix(first_wrong)
    table = Table(
        {
            "": [RIGHT, WRONG, first_wrong + f"<chunk>{DOUBTFUL}", RIGHT],
            first_right: [f"<chunk>{DOUBTFUL}", rest_right, rest_wrong, rest_right],
            first_wrong: [f"<chunk>{DOUBTFUL}"],
        }
    )
    result = _annotate(table, checker=Doubtful())
    # Nothing is known of the wrong one's first chunk: neither it nor a label of it is made up.
    (trajectory,) = result.trajectories
    assert trajectory.correct
    assert (trajectory.problem_successes, trajectory.problem_trials) == (2, 3)
    first, last = result.values
    assert (first.successes, first.trials, first.unverifiable, first.planned) == (2, 3, 1, 3)
    assert last.is_outcome
    assert result.counts["malformed: no rollout of a chunk could be verified"] == 1
    assert (result.counts["unverifiable_responses"], result.counts["rollouts"]) == (1, 8)


def test_a_problem_of_which_nothing_can_be_checked_is_not_all_wrong() -> None:
    table = Table({"": [f"<chunk>{DOUBTFUL}"]})
    result = _annotate(table, checker=Doubtful())
    assert result.counts["unverifiable_problems"] == 1
    assert not result.counts["all_wrong"] and not result.trajectories


def test_a_first_wave_of_which_nothing_is_known_is_not_the_first() -> None:
    first = "<chunk>buys 64+21=85\n</chunk>"
    rest = RIGHT.removeprefix(first)
    doubts = [f"<chunk>{DOUBTFUL}"] * 3
    table = Table({"": [RIGHT, "\\boxed{1}"], first: [*doubts, rest, rest, rest, rest, rest]})
    result = _annotate(table, checker=Doubtful(), rollouts=8, stopping="exact")
    value = result.values[0]
    assert table.sizes[first][0] == 3, "the first wave"
    assert value.unverifiable == 3 and value.planned == 5
    assert value.first_trials > 0 and value.unbiased_mean == 1.0


def test_a_shared_prefix_is_rolled_out_once() -> None:
    other = RIGHT.replace("85*2=170\n\\boxed{170}", "85*2=171\n\\boxed{171}")
    first = "<chunk>buys 64+21=85\n</chunk>"
    table = Table({"": [RIGHT, other], first: [RIGHT.removeprefix(first)]})
    result = _annotate(table)
    assert table.asked.count(first) == 1
    assert result.counts["shared_prefixes"] == 1
    firsts = [v for v in result.values if v.chunk_index == 0]
    assert [v.successes for v in firsts] == [4, 4]
    assert sorted(v.generated_tokens > 0 for v in firsts) == [False, True]


def test_following_stops_below_the_threshold() -> None:
    three = (
        "<chunk>buys 64+21=86\n</chunk><chunk>doubles 86*2=172\n</chunk>"
        "<chunk>doubles 172*2=9\n\\boxed{9}</chunk>"
    )
    first = "<chunk>buys 64+21=86\n</chunk>"
    table = Table(
        {
            "": [three, RIGHT],
            first: [three.removeprefix(first)],
            "<chunk>buys 64+21=85\n</chunk>": [RIGHT.partition("</chunk>")[2]],
        }
    )
    result = _annotate(table, stop_below=0.2)
    wrong = next(t for t in result.trajectories if not t.correct)
    assert [v.chunk_index for v in result.values if v.trajectory_id == wrong.trajectory_id] == [0]


CHUNKS = ("<chunk>buys 64+21=85\n</chunk>", "<chunk>buys 64+21=86\n</chunk>")
RESTS = tuple(r.removeprefix(c) for r, c in zip((RIGHT, WRONG), CHUNKS, strict=True))


def _mixed(first: list[str], second: list[str]) -> Table:
    return Table({"": [RIGHT, WRONG, RIGHT, WRONG], CHUNKS[0]: first, CHUNKS[1]: second})


def test_fixed_asks_for_all_completions_at_once_and_stores_what_was_planned() -> None:
    table = _mixed([RESTS[0], RESTS[1]], [RESTS[1]])
    result = _annotate(table, rollouts=16)
    assert table.sizes == {"": [4], CHUNKS[0]: [16], CHUNKS[1]: [16]}
    for value in result.values:
        assert (value.trials, value.error_bound) == (value.planned, 0.0)
        assert value.unbiased_mean == value.mean
        assert value.q_low <= value.mean <= value.q_high
    half = next(v for v in result.values if v.successes == 8)
    assert (half.q_low, half.q_high) == pytest.approx((0.28, 0.72), abs=1e-3), "Wilson, 95 %"
    ends = [(v.mean, v.q_low, v.q_high) for v in result.values if v.is_outcome]
    assert sorted(ends) == [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]


def test_exact_stops_as_soon_as_no_label_can_change() -> None:
    """Rel-Effective after Q_0 = 2/4 is Positive from 4 of 16 on, Negative up to 3."""
    table = _mixed([RESTS[0]], [RESTS[1]])
    result = _annotate(table, rollouts=16, stopping="exact")
    assert table.sizes[CHUNKS[0]] == [4], "4 successes of 4 are enough"
    assert table.sizes[CHUNKS[1]] == [4, 4, 4, 1], "13 failures are"
    assert result.counts["rollouts"] == 4 + 13
    values = {(v.chunk_index, v.planned): v for v in result.values if v.successes == v.trials}
    good = values[0, 16]
    assert (good.trials, good.first_trials) == (4, 4)
    question = Question(LabelRule.REL_EFFECTIVE)
    for trajectory in result.trajectories:
        own = [v for v in result.values if v.trajectory_id == trajectory.trajectory_id]
        assert trajectory_labels(question, trajectory, own) == [trajectory.correct] * 2


def test_the_first_wave_is_kept_apart() -> None:
    table = _mixed([*[RESTS[0]] * 3, *[RESTS[1]] * 9], [RESTS[1]])
    result = _annotate(table, rollouts=16, stopping="exact")
    value = next(v for v in result.values if v.successes and not v.is_outcome)
    assert (value.first_successes, value.first_trials) == (3, 4)
    assert value.trials > 4 and value.unbiased_mean == 0.75 != value.mean


def test_a_shared_prefix_gets_what_the_most_demanding_trajectory_asks_for() -> None:
    """Both start with the same chunk; they ask for its waves together, not each on its own."""
    other = RIGHT.replace("85*2=170\n\\boxed{170}", "85*2=171\n\\boxed{171}")
    table = Table({"": [RIGHT, other], CHUNKS[0]: [RESTS[0], RESTS[1]]})
    rules = ({"rule": "abs_q"}, {"rule": "rel_ratio"})
    result = _annotate(table, rollouts=16, stopping="exact", rules=rules)
    made = sum(table.sizes[CHUNKS[0]])
    assert all(size <= 4 for size in table.sizes[CHUNKS[0]]) and made <= 16
    firsts = [v for v in result.values if v.chunk_index == 0]
    assert [v.trials for v in firsts] == [made, made]
    assert [v.generated_tokens > 0 for v in firsts] == [True, False]
    assert result.counts["rollouts"] == made and result.counts["shared_prefixes"] == 1


def test_sequential_may_spend_more_on_what_is_open() -> None:
    table = _mixed([RESTS[0]], [*[RESTS[1]] * 3, RESTS[0]])
    settings = {"stopping": "sequential", "max_rollouts": 64, "error_bound": 0.01}
    result = _annotate(table, rollouts=16, **settings)
    # 1 of 4 is where Rel-Effective turns after Q_0 = 2/4.
    assert sum(table.sizes[CHUNKS[1]]) > 16 > sum(table.sizes[CHUNKS[0]])
    assert {v.planned for v in result.values if not v.is_outcome} == {64}
    assert {v.error_bound for v in result.values} == {0.01}


def test_a_wave_that_fails_fails_the_problem() -> None:
    """Scored as nothing: the labeler tries again, and lists what keeps failing."""
    table = _mixed([RESTS[0]], [RESTS[1]])
    del table.answers[CHUNKS[1]]
    with pytest.raises(KeyError):
        _annotate(table, rollouts=16, stopping="exact")


@dataclass
class Scattered(Table):
    """Answers after a random while; what a prompt has no answers for succeeds at a rate of its
    own, completion by completion, however they are asked for.
    """

    seed: int = 0

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        prompt = PROMPTS.decode(prompt_ids).removeprefix(QUESTION + "\n")
        if prompt not in self.answers:
            rng = Random(f"{self.seed}/{prompt}")
            rate = rng.choice([0.0, 0.1, 0.4, 0.9, 1.0])
            texts = ["\\boxed{170}" if rng.random() < rate else "\\boxed{1}" for _ in range(16)]
            self.answers[prompt] = texts
        await asyncio.sleep(0.003 * Random(f"{self.seed}/{self.asked}").random())
        return await super().generate(prompt_ids, sampling, affinity)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", LabelRule)
def test_exact_labels_a_problem_as_fixed_does(rule: LabelRule, seed: int) -> None:
    """On the same completions, with shared prefixes and waves that come back in any order."""
    rng = Random(seed)
    responses = [
        f"<chunk>buys 64+21={rng.choice([85, 86])}\n</chunk>"
        f"<chunk>doubles 85*2={rng.choice([170, 171])}\n</chunk>"
        f"<chunk>wins 1+1={rng.choice([2, 3])}\n\\boxed{{{answer}}}</chunk>"
        for answer in (170, 1, 170, 1)
    ]
    settings = {"rollouts": 16, "stop_below": rng.choice([0.0, 0.2])}
    question = Question(rule, minimum_previous_value=rng.choice([0.0, 0.2]))
    rules = ({"rule": rule, "minimum_previous_value": question.minimum_previous_value},)
    results = [
        _annotate(Scattered({"": responses}, seed=seed), **(settings | more))
        for more in ({"stopping": "fixed"}, {"stopping": "exact", "rules": rules})
    ]
    labels = []
    for result in results:
        by_id = group_by(result.values, "trajectory_id")
        labels.append(
            [trajectory_labels(question, t, by_id[t.trajectory_id]) for t in result.trajectories]
        )
        assert result.counts["rollouts"] == sum(
            {(PROMPTS.decode(t.response_ids[: t.chunk_ends[v.chunk_index]])): v.trials
             for t in result.trajectories for v in by_id[t.trajectory_id] if not v.is_outcome
             }.values()
        )  # fmt: skip
    fixed, exact = results
    assert labels[0] == labels[1]
    keys = [[(v.trajectory_id, v.chunk_index) for v in r.values] for r in results]
    assert keys[0] == keys[1], "trajectories end at the same chunks"
    assert exact.counts["rollouts"] <= fixed.counts["rollouts"]
    assert exact.counts["shared_prefixes"] == fixed.counts["shared_prefixes"]


def test_repeats_are_values_of_the_same_chunks_from_rollouts_of_their_own() -> None:
    first_right, first_wrong = "<chunk>buys 64+21=85\n</chunk>", "<chunk>buys 64+21=86\n</chunk>"
    right, wrong = RIGHT.removeprefix(first_right), WRONG.removeprefix(first_wrong)
    table = Table(
        {
            "": [RIGHT, WRONG, RIGHT, WRONG, RIGHT, RIGHT, RIGHT, WRONG],
            first_right: [right, right, right, wrong, right, wrong, wrong, wrong],
            first_wrong: [wrong] * 4 + [wrong, wrong, right, right],
        }
    )
    once, twice = (
        _annotate(replace(table)),
        _annotate(replace(table, asked=[], sizes={}), repeat_share=1.0),
    )
    assert not once.repeats and twice.values == once.values
    assert twice.trajectories == once.trajectories
    costs = {"repeat_tokens", "repeated_chunks"}
    assert {k: n for k, n in twice.counts.items() if k not in costs} == once.counts
    assert twice.counts["repeated_chunks"] == len(twice.values) == 4
    texts = {t.trajectory_id: "".join(t.chunks) for t in twice.trajectories}
    found = {
        ("85" in texts[v.trajectory_id], v.chunk_index): (v.successes, v.trials)
        for v in twice.repeats
    }
    assert found == {
        (True, Q0): (3, 4), (True, 0): (1, 4), (True, 1): (1, 1),
        (False, Q0): (3, 4), (False, 0): (2, 4), (False, 1): (0, 1),
    }  # fmt: skip
    assert twice.counts["repeat_tokens"] > 0


def test_no_repeats_of_what_cannot_be_checked_again() -> None:
    class Moody(ExactChecker):
        """Answers four times, and never again."""

        asked = 0

        def check(
            self, answer: str | None, reference: str, problem: str | None = None
        ) -> bool | None:
            self.asked += 1
            return super().check(answer, reference) if self.asked <= 4 else None

    only_step = RIGHT.replace("</chunk><chunk>", "")
    table = Table({"": [only_step, only_step.replace("170", "171")]})
    result = _annotate(table, Moody(), repeat_share=1.0)
    assert len(result.values) == 2 and not result.repeats
    assert result.counts["repeat_tokens"] > 0 and not result.counts["repeated_chunks"]
