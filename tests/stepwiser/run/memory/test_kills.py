"""What is said of processes that were ended for want of memory, and when it ends a run."""

from stepwiser.run.memory.kills import (
    KERNEL,
    MAX_KILLS,
    RAY,
    WINDOW_S,
    KillCount,
    MemoryKill,
    kill_notices,
    ordinal,
)

ENGINE = MemoryKill("engine", 4711, 5_800_000_000, RAY, "10.0.0.2")
LEARNER = MemoryKill("learner", 12, None, KERNEL, "10.0.0.3")


def test_a_kill_is_told_with_size_number_and_remedy() -> None:
    count = KillCount()
    assert count.account is count.enough is None
    words = count.add(ENGINE, 0.0)
    assert words == (
        "the engine (process 4711 on 10.0.0.2, 5.8 GB) was killed by Ray's memory monitor, as the "
        "machine ran out of memory, for the 1st time: lower engine.kv_cache_mb, "
        "engine.max_num_seqs or engine.count"
    )
    assert "for the 2nd time" in count.add(ENGINE, 1.0)
    words = count.add(LEARNER, 2.0)
    assert "unknown size" in words and "by the kernel" in words
    assert "lower learner.max_tokens_per_microbatch" in words
    assert "engine 2 ×, learner 1 ×" in (count.account or "")
    assert ENGINE.row("train")["size"] == 5_800_000_000


def test_one_thing_that_is_killed_again_and_again_is_enough() -> None:
    count = KillCount()
    for number in range(MAX_KILLS):
        count.add(LEARNER, float(number))
        count.add(MemoryKill(f"other {number}", 1, 1, RAY, "here"), float(number))
        assert (count.enough is None) == (number + 1 < MAX_KILLS)
    assert count.enough == f"the learner was killed {MAX_KILLS} times for want of memory"


def test_kills_that_are_far_apart_end_nothing() -> None:
    count = KillCount()
    for number in range(3 * MAX_KILLS):
        count.add(ENGINE, number * WINDOW_S / (MAX_KILLS - 1))
        assert count.enough is None


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th",
    ]  # fmt: skip


def test_the_report_has_one_sentence_for_each_thing() -> None:
    rows = [ENGINE.row("annotate"), ENGINE.row("train"), LEARNER.row("train")]
    first, second = kill_notices(rows)
    assert first == (
        "engine: killed 2 × for want of memory by Ray's memory monitor in annotate, train, at "
        "5.8 GB at most. To do: lower engine.kv_cache_mb, engine.max_num_seqs or engine.count"
    )
    assert second.startswith("learner: killed 1 × for want of memory by the kernel in train. To do")
    assert kill_notices([]) == []
