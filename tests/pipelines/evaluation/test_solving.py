"""All methods of solving over functions in place of engines: what is asked, counted and said."""

from __future__ import annotations

import io
from collections.abc import Sequence
from random import Random

import pytest
from rich.console import Console

from pipelines.evaluation.solving import METHODS, PlainSamples, Solver
from pipelines.session.session import Session
from pipelines.stages.solve import metrics_of, print_metrics
from stepwiser.config import load_config
from stepwiser.data.records import Problem
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.search.policy import ChunkSampler, SearchJudge
from stepwiser.tasks import load_base_model_dir
from tests.support.paths import ROOT

PROBLEMS = [Problem(f"p{i}", f"ana has {i + 10} coins. buys 1. how many?", "2") for i in range(40)]
SETTINGS = (
    "solve.methods=[chunk_reset, best_of_n, weighted_vote, beam_search, early_stop]",
    "solve.searches=4",
    "solve.beams=[1, 2]",
    "solve.plain_samples=6",
    "solve.samples_per_chunk=2",
    "solve.concurrent_problems=8",
    "solve.max_chunks=6",
    "solve.reduction=min",
)


class Function:
    """Counts what it generates, and remembers what it was asked."""

    def __init__(self, prompts: PromptFormat) -> None:
        self.prompts = prompts
        self.rng = Random(0)
        self.tokens = 0
        self.asked: list[str] = []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        prompt = self.prompts.tokenizer.decode(prompt_ids)
        self.asked.append(prompt)
        samples = []
        for _ in range(sampling.n):
            text = self.answer(prompt)
            if sampling.stop:
                text = text[: text.find(sampling.stop[0]) % (len(text) + 1) + len(sampling.stop[0])]
            ids = self.prompts.encode(text)
            self.tokens += len(ids)
            samples.append(Sample(tuple(ids), text, finish_reason="stop"))
        return samples

    def answer(self, prompt: str) -> str:
        raise NotImplementedError


class Policy(Function):
    """Three chunks, each right 17 times in 20; the answer is 2 where all of them are."""

    def answer(self, prompt: str) -> str:
        text = ""
        while (prompt + text).count("</chunk>") < 3:
            result = 2 if self.rng.random() < 0.85 else 3
            text += f"<chunk>buys 1+1={result}\n</chunk>"
        return text + f"\\boxed{{{3 if '=3' in prompt + text else 2}}}"


class Honest(Function):
    def answer(self, prompt: str) -> str:
        chunk = prompt[prompt.rindex("judge ") :]
        return f"so \\boxed{{{'Negative' if '=3' in chunk else 'Positive'}}}"


class Liar(Function):
    def answer(self, prompt: str) -> str:
        chunk = prompt[prompt.rindex("judge ") :]
        return f"so \\boxed{{{'Positive' if '=3' in chunk else 'Negative'}}}"


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Metrics, what was printed, and tokens that the functions generated."""
    place = tmp_path_factory.mktemp("run")
    config = load_config(ROOT / "configs/embedded.yaml", [*SETTINGS, f"run_dir={place}"])
    printed = io.StringIO()
    session = Session(config, Console(file=printed, width=110))
    prompts = PromptFormat.from_model_dir(str(load_base_model_dir()), config.prompts)
    policy_function = Policy(prompts)
    policy = ChunkSampler(policy_function, prompts, config.solve.max_tokens, 1.0)
    plain = PlainSamples(session, policy, PROBLEMS)
    plain.more(1)
    plain.more(5)
    runs, tokens = [], {}
    for name, kind in (("judge", Honest), ("start", Liar)):
        function = kind(prompts)
        judge = SearchJudge(GenerativeJudge(function, prompts, Sampling(90)))
        solver = Solver(session, PROBLEMS, name, policy, judge, plain, engines=2)
        for method in config.solve.methods:
            before = policy_function.tokens, function.tokens
            runs += METHODS[method](solver)
            tokens[name, method] = (policy_function.tokens - before[0], function.tokens - before[1])
    plain.more(60)
    metrics = metrics_of(session, runs, plain, 1)
    print_metrics(session, metrics)
    return {"metrics": metrics, "printed": printed.getvalue(), "tokens": tokens}


def rows(solved: dict, judge: str) -> dict[tuple[str, int], dict]:
    found = [*solved["metrics"]["search"].values(), *solved["metrics"]["methods"]]
    return {(row["method"], row["size"]): row for row in found if row["judge"] == judge}


def test_every_method_has_every_size(solved: dict) -> None:
    for judge in ("judge", "start"):
        found = rows(solved, judge)
        assert found.keys() == {
            ("chunk_reset", 1),
            *((f"chunk_reset_{kind}", k) for kind in ("majority", "weighted") for k in (2, 4)),
            *((name, k) for name in ("best_of_n", "weighted_vote") for k in (2, 4, 6)),
            ("beam_search", 1),
            ("beam_search", 2),
            *(("early_stop", k) for k in (2, 4, 6)),
        }
        timed = {key for key, row in found.items() if row["seconds"] is not None}
        assert timed == {
            ("chunk_reset_majority", 4), ("chunk_reset_weighted", 4), ("best_of_n", 6),
            ("weighted_vote", 6), ("beam_search", 1), ("beam_search", 2), ("early_stop", 6),
        }  # fmt: skip
        for row in found.values():
            assert (row["problems_at_once"], row["engines"]) == (8, 2)
            assert row["majority_at_cost"]["total_tokens"] >= row["total_tokens"] - 1e-6
    majority = {row["votes"]: row["seconds"] for row in solved["metrics"]["majority"]}
    assert {k for k, seconds in majority.items() if seconds is not None} == {1, 5, 6, 60}
    assert solved["metrics"]["plain"]["samples"] == 66
    assert solved["metrics"]["settings"]["beams"] == [1, 2]


def test_tokens_are_those_that_were_generated(solved: dict) -> None:
    """Of the full size of each method; a smaller one is a part of it."""
    tokens, problems = solved["tokens"], len(PROBLEMS)
    for judge in ("judge", "start"):
        found = rows(solved, judge)
        searches, generated = found["chunk_reset_majority", 4], tokens[judge, "chunk_reset"]
        assert searches["policy_tokens"] * problems == pytest.approx(generated[0])
        assert searches["judge_tokens"] * problems == pytest.approx(generated[1])
        assert found["chunk_reset", 1]["total_tokens"] == pytest.approx(
            searches["total_tokens"] / 4
        )
        best, generated = found["best_of_n", 6], tokens[judge, "best_of_n"]
        assert generated[0] == 0, "plain samples are there already"
        assert best["judge_tokens"] * problems == pytest.approx(generated[1])
        assert best["judge_tokens"] == found["weighted_vote", 6]["judge_tokens"]
        assert tokens[judge, "weighted_vote"] == (0, 0), "each is judged once"
        beams = [found["beam_search", k] for k in (1, 2)]
        for i, part in enumerate(("policy_tokens", "judge_tokens")):
            asked = problems * sum(row[part] for row in beams)
            assert asked == pytest.approx(tokens[judge, "beam_search"][i])
        assert found["early_stop", 6]["judge_tokens"] * problems == pytest.approx(
            tokens[judge, "early_stop"][1]
        )


def test_a_judge_is_worth_what_it_knows(solved: dict) -> None:
    honest, liar = rows(solved, "judge"), rows(solved, "start")
    plain = solved["metrics"]["plain"]["accuracy"]
    assert plain == pytest.approx(0.85**3, abs=0.05)
    for key in (("best_of_n", 6), ("early_stop", 6), ("beam_search", 2)):
        assert honest[key]["accuracy"] > 0.9 > plain > liar[key]["accuracy"] + 0.1
        gain = honest[key]["over_plain"]
        assert gain["mean"] == pytest.approx(honest[key]["accuracy"] - plain)
        assert gain["mean"] > 2 * gain["se"] > 0
    # Its wrong solutions have no weight, those of the liar neither: a majority vote is left.
    assert honest["weighted_vote", 6]["accuracy"] > 0.9
    assert liar["weighted_vote", 6]["accuracy"] > liar["best_of_n", 6]["accuracy"]
    assert honest["early_stop", 6]["votes"] < 6
    assert honest["early_stop", 6]["policy_tokens"] < honest["best_of_n", 6]["policy_tokens"]


def test_a_vote_that_does_better_is_named(solved: dict) -> None:
    printed = " ".join(solved["printed"].split())
    worse = printed.partition("start. Majority vote is better at the same total tokens than: ")[2]
    assert "; best of 6 (-" in worse and "; beam search of 2 (-" in worse.partition("). ")[0]
    better = printed.partition("judge. Better than majority vote at the same total tokens: ")[2]
    assert "; best of 6 (+" in better.partition("). ")[0]
    assert "judge. Majority vote is better" not in printed
