import random
from collections.abc import Sequence

import pytest

from stepwiser.errors import UserError
from stepwiser.training.experience import Experience, ExperienceBatch, TokenExamples
from stepwiser.training.packing import (
    pack_micro_batches,
    prompt_units,
    shared_prefix,
    split_groups,
)


@pytest.mark.parametrize("seed", range(60))
def test_every_rank_runs_equally_many_micro_batches_and_each_sequence_once(seed):
    rng = random.Random(seed)
    world_size = rng.choice([1, 2, 3, 8])
    lengths = [rng.randint(1, 200) for _ in range(rng.choice([1, 2, 5, 40, 301]))]
    budget = rng.choice([200, 512, 4096])
    plans = pack_micro_batches(lengths, world_size, budget)
    assert len(plans) == world_size
    assert len({len(plan) for plan in plans}) == 1
    seen = [index for plan in plans for micro_batch in plan for index in micro_batch]
    assert sorted(seen) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in m) <= budget for plan in plans for m in plan)


def test_ranks_and_micro_batches_carry_like_loads():
    rng = random.Random(0)
    lengths = [rng.randint(60, 160) for _ in range(300)]
    plans = pack_micro_batches(lengths, 2, 2048)
    loads = [[sum(lengths[i] for i in m) for m in plan] for plan in plans]
    assert max(map(sum, loads)) / min(map(sum, loads)) < 1.01
    assert all(min(plan) > 0.8 * max(plan) for plan in loads)


def test_a_rank_without_sequences_gets_empty_micro_batches():
    assert pack_micro_batches([5], 3, 10) == [[(0,)], [()], [()]]


def test_a_rank_with_fewer_micro_batches_splits_its_own_before_it_idles():
    # One rank needs two micro-batches for its long units, the other could do with one.
    plans = pack_micro_batches([9, 4, 4, 8], 2, 12)
    assert all(len(plan) == 2 for plan in plans)
    assert all(micro_batch for plan in plans for micro_batch in plan)


def test_what_is_shared_takes_room_once():
    lengths = [50, 45, 60, 41, 42, 43]
    assert len(pack_micro_batches(lengths, 1, 100)[0]) >= 3
    ((only,),) = pack_micro_batches(lengths, 1, 100, shared=40)
    assert sorted(only) == list(range(6)) and 40 + sum(n - 40 for n in lengths) <= 100
    with pytest.raises(UserError, match="a sequence of 101 tokens"):
        pack_micro_batches([101, 50], 1, 100, shared=40)


def _examples(*rows: tuple[Sequence[int], int]) -> TokenExamples:
    """Token ids, and from which one on they are learned."""
    return TokenExamples.from_pairs(
        [(ids, [int(i >= first) for i in range(len(ids))]) for ids, first in rows]
    )


def test_a_prefix_is_shared_as_far_as_nobody_learns_it():
    same = list(range(10, 30))
    two = _examples(([*same, 1, 2], 21), ([*same, 3], 20))
    assert shared_prefix(two, [0, 1]) == 20
    assert shared_prefix(_examples(([*same, 1, 2], 21), ([*same, 3], 15)), [0, 1]) == 15
    assert shared_prefix(_examples((same, 19), (same, 19)), [0, 1]) == 19, "its last is learned"
    assert shared_prefix(two, [0]) == shared_prefix(two, []) == 0
    # Three tokens of 42 are too few, and so is nothing.
    few = _examples(([1, 2, 3, *same], 20), ([1, 2, 3, *same[::-1]], 20))
    assert shared_prefix(few, [0, 1]) == 0
    assert shared_prefix(_examples(([1, *same], 20), ([2, *same], 20)), [0, 1]) == 0


def test_no_sequences_at_all():
    assert pack_micro_batches([], 2, 10) == [[], []]


def test_a_sequence_above_the_budget_names_both_numbers():
    with pytest.raises(UserError, match=r"11 tokens.*10 tokens.*max_tokens_per_microbatch"):
        pack_micro_batches([3, 11], 2, 10)


def test_groups_stay_whole_and_sorted_batches_are_mixed():
    groups = [g for g in range(6) for _ in range(4)]
    parts = split_groups(groups, 2)
    assert sorted(i for part in parts for i in part) == list(range(24))
    assert [{groups[i] for i in part} for part in parts] == [{0, 2, 4}, {1, 3, 5}]


def test_fewer_groups_than_minibatches():
    assert split_groups([7, 7, 3], 4) == [[0, 1], [2]]
    assert split_groups([], 4) == []


def _batch(rows):
    return ExperienceBatch.from_experiences(
        [
            Experience(
                prompt_ids=prompt,
                response_ids=[1] * length,
                advantage=0.0,
                reward=0.0,
                group=group,
                weight_version=0,
            )
            for prompt, length, group in rows
        ]
    )


def test_sequences_of_a_group_share_their_prompt():
    batch = _batch([([5, 6], 3, 0), ([7], 2, 1), ([5, 6], 4, 0), ([5, 6], 1, 2)])
    units = prompt_units(batch, [0, 1, 2, 3], max_tokens=100)
    assert [(unit.sequences, unit.tokens) for unit in units] == [((0, 2), 9), ((1,), 3), ((3,), 3)]
    assert [unit.sequences for unit in prompt_units(batch, [2, 3], 100)] == [(2,), (3,)]


def test_a_group_above_the_budget_is_cut_and_repeats_its_prompt():
    batch = _batch([([5, 6], 3, 0)] * 5)
    units = prompt_units(batch, range(5), max_tokens=8)
    assert [unit.sequences for unit in units] == [(0, 1), (2, 3), (4,)]
    assert [unit.tokens for unit in units] == [8, 8, 5]


def test_a_group_whose_prompts_differ_is_kept_apart():
    batch = _batch([([5], 3, 0), ([6], 3, 0)])
    assert len(prompt_units(batch, [0, 1], 100)) == 2
