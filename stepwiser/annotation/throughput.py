"""What annotation is doing right now: counts and engine counters in, figures out.

Two sources of different grain. Engines count tokens as they sample them, so two looks at their
counters a few seconds apart give a rate. Problems, chunks, rollouts and labels are known when their
unit is finished, which may take minutes: their rates are over as long as `RECENT_S`. The time to go
is what is left to generate (`outlook`) at the engines' rate.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from stepwiser.annotation.outlook import WorkSeen, tokens_left
from stepwiser.annotation.stopping import StoppingPlan, StoppingRule

WINDOW_S = 30.0
"""Seconds that engines' rates are taken over: many steps of a slow engine, and still news."""

RECENT_S = 600.0
"""Seconds that rates of finished work are taken over: several units of a slow run."""


@dataclass(frozen=True)
class EngineCounters:
    """What one engine has counted since it was first up, in its own clock's seconds."""

    seconds: float
    generated_tokens: int
    prompt_tokens: int
    """Of the prompts answered."""
    cached_tokens: int
    """Of those, tokens that the prefix cache held."""

    def __sub__(self, earlier: EngineCounters) -> EngineCounters:
        return EngineCounters(
            self.seconds - earlier.seconds,
            self.generated_tokens - earlier.generated_tokens,
            self.prompt_tokens - earlier.prompt_tokens,
            self.cached_tokens - earlier.cached_tokens,
        )


CounterSnapshot = Mapping[int, EngineCounters]
"""Counters of every engine there has been, by index."""

_NOTHING = EngineCounters(0.0, 0, 0, 0)


@dataclass(frozen=True)
class EngineFigures:
    """One engine between two looks."""

    tokens_per_s: float
    """Generated."""
    cache_hits: float | None
    """Share of the prompt tokens that the prefix cache held; None where no prompt was answered."""


def engine_figures(earlier: CounterSnapshot, later: CounterSnapshot) -> dict[int, EngineFigures]:
    """Of the engines that were up between the two looks; one that came since counts from 0."""
    figures = {}
    for index, now in sorted(later.items()):
        made = now - earlier.get(index, _NOTHING)
        # By the engine's own clock, which stands still when it has gone.
        if made.seconds > 0:
            figures[index] = EngineFigures(made.generated_tokens / made.seconds, _hits([made]))
    return figures


def cache_hits(earlier: CounterSnapshot, later: CounterSnapshot) -> float | None:
    """Share of the prompt tokens that prefix caches held, all engines together."""
    return _hits([now - earlier.get(index, _NOTHING) for index, now in later.items()])


def sampled_tokens(earlier: CounterSnapshot, later: CounterSnapshot) -> int:
    """Generated between the two looks, all engines together."""
    return sum((now - earlier.get(i, _NOTHING)).generated_tokens for i, now in later.items())


def _hits(made: list[EngineCounters]) -> float | None:
    asked = sum(one.prompt_tokens for one in made)
    return sum(one.cached_tokens for one in made) / asked if asked > 0 else None


def saved_rollouts(plan: StoppingPlan, counts: Mapping[str, int]) -> int | None:
    """Of those planned, M a prefix, how many were not made; None where none can be saved."""
    if plan.rule is StoppingRule.FIXED:
        return None
    return counts.get("prefixes", 0) * plan.planned - counts.get("rollouts", 0)


def saved_share(plan: StoppingPlan, counts: Mapping[str, int]) -> float | None:
    """`saved_rollouts` as a share of all planned ones; None also before the first prefix."""
    saved, planned = saved_rollouts(plan, counts), counts.get("prefixes", 0) * plan.planned
    return None if saved is None or not planned else saved / planned


def label_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Positive share of the chunks labelled while they were annotated, by rule."""
    return {
        name.removeprefix("labelled: "): counts.get(name.replace("labelled", "positive"), 0) / total
        for name, total in counts.items()
        if name.startswith("labelled: ") and total
    }


@dataclass(frozen=True)
class Figures:
    """Annotation at one moment: of one shard, earlier starts included; rates are of now."""

    seconds: float
    """Since this start."""
    problems: int
    planned_problems: int
    units: int
    planned_units: int
    chunks: int
    rollouts: int
    tokens: int
    """Of responses and rollouts."""
    rollouts_per_s: float | None
    """None before the first unit of this start."""
    tokens_per_s: float | None
    """Generated, all engines together; None before two looks, as `cache_hits`."""
    cache_hits: float | None
    engines: Mapping[int, EngineFigures]
    labels: Mapping[str, float]
    """Positive share, by rule."""
    saved_rollouts: int | None
    """Planned and not made; None with `stopping=fixed`, as the two below."""
    saved_share: float | None
    saved_tokens: int | None
    """Those rollouts at the mean length of the ones that were made."""
    gpu_hours: float
    eta_s: float | None
    """None before the first responses."""

    @property
    def units_left(self) -> int:
        """Units of this shard that are not finished."""
        return self.planned_units - self.units

    def row(self) -> dict[str, float]:
        """All that is known, flat, by name."""
        row = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not name.startswith("planned")
        }
        row |= {f"positive_share/{rule}": share for rule, share in self.labels.items()}
        row["engines"] = len(self.engines)
        for index, engine in self.engines.items():
            row[f"engine_{index}/tokens_per_s"] = engine.tokens_per_s
            if engine.cache_hits is not None:
                row[f"engine_{index}/cache_hits"] = engine.cache_hits
        return row


@dataclass(frozen=True)
class EarlierWork:
    """What earlier starts of the same shard did."""

    units: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    gpu_hours: float = 0.0


class ThroughputMonitor:
    """Takes in what happens, and says how it stands.

    Times are seconds of one monotonic clock, and never decrease.
    """

    def __init__(
        self, now: float, units: int, problems: int, plan: StoppingPlan, before: EarlierWork
    ) -> None:
        """Work on so many units, with so many problems in them, begins."""
        self._started = now
        self._plan = plan
        self._before = before
        self._counts = Counter(before.counts)
        self._units = before.units
        self._planned_units = before.units + units
        self._planned_problems = problems + _problems(self._counts)
        self._recent: deque[tuple[float, int]] = deque()
        self._looks: deque[tuple[float, CounterSnapshot]] = deque()
        self._first: CounterSnapshot | None = None
        self._sampled: deque[tuple[float, int]] = deque([(now, 0)])
        """Tokens of this start, by the time of the look."""
        self._problems = problems
        self._share = 1.0

    def finished(self, now: float, counts: Mapping[str, int]) -> None:
        """A unit is done."""
        self._counts.update(counts)
        self._units += 1
        self._recent.append((now, counts.get("rollouts", 0)))

    def elsewhere(self, units: int, problems: int, share: float) -> None:
        """So many are left no more, done by others; of all speed, a share is that of this start."""
        self._planned_units -= units
        self._planned_problems -= problems
        self._problems -= problems
        self._share = share

    def look(
        self, now: float, engines: CounterSnapshot, gpu_seconds: float, seen: WorkSeen
    ) -> Figures:
        """How it stands.

        Args:
            now: seconds.
            engines: what they have counted, from whatever beginning.
            gpu_seconds: what engines have held since this start.
            seen: what this start's problems have come to.
        """
        while self._recent and self._recent[0][0] <= now - RECENT_S:
            self._recent.popleft()
        self._looks.append((now, engines))
        self._first = engines if self._first is None else self._first
        self._sampled.append((now, sampled_tokens(self._first, engines)))
        while self._sampled[1][0] <= now - RECENT_S:
            self._sampled.popleft()
        # One look that is as old as the window, or older, stays.
        while len(self._looks) > 1 and self._looks[1][0] <= now - WINDOW_S:
            self._looks.popleft()
        earlier = self._looks[0][1]
        figures = engine_figures(earlier, engines)
        seconds = now - self._started
        span = min(RECENT_S, seconds)
        counts, worked = self._counts, bool(self._recent) and span > 0
        saved, rollouts = saved_rollouts(self._plan, counts), counts["rollouts"]
        length = counts["rollout_tokens"] / max(1, rollouts)
        return Figures(
            seconds=seconds,
            problems=_problems(counts),
            planned_problems=self._planned_problems,
            units=self._units,
            planned_units=self._planned_units,
            chunks=counts["chunks"],
            rollouts=rollouts,
            tokens=_tokens(counts),
            rollouts_per_s=sum(n for _, n in self._recent) / span if worked else None,
            tokens_per_s=sum(e.tokens_per_s for e in figures.values()) if figures else None,
            cache_hits=cache_hits(earlier, engines),
            engines=figures,
            labels=label_shares(counts),
            saved_rollouts=saved,
            saved_share=saved_share(self._plan, counts),
            saved_tokens=None if saved is None else round(saved * length),
            gpu_hours=self._before.gpu_hours + gpu_seconds / 3600,
            eta_s=self._left_s(now, seen),
        )

    def _left_s(self, now: float, seen: WorkSeen) -> float | None:
        """Seconds to go: the tokens that are left, at the mean rate of the last minutes."""
        (began, earlier), (_, sampled) = self._sampled[0], self._sampled[-1]
        left = tokens_left(seen, self._problems, self._plan)
        if left is None or sampled <= earlier or now <= began:
            return None
        return left * (now - began) / (sampled - earlier) * self._share


def _tokens(counts: Mapping[str, int]) -> int:
    return counts.get("response_tokens", 0) + counts.get("rollout_tokens", 0)


def _problems(counts: Mapping[str, int]) -> int:
    """Problems that are dealt with, also those that could not be annotated."""
    return counts.get("problems", 0) + counts.get("rejected", 0)
