"""Lines of metrics.jsonl for steps whose figures a killed process took with it."""

from pathlib import Path

from stepwiser.run.metrics_file import LOST, append_metrics, read_metrics, write_lost


def test_a_step_without_a_line_gets_one_that_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    for step in (0, 1, 3, 5):
        append_metrics(path, "train", "judge", {"step": step, "reward": 0.5})
    append_metrics(path, "train", "other", {"step": 2})
    # Step 5 was trained before a crash, and not again.
    assert write_lost(path, "train", "judge", 5) == [2, 4]
    rows = read_metrics(path, "train", "judge")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if LOST in row] == [2, 4]
    assert write_lost(path, "train", "judge", 5) == [], "said once"


def test_of_a_run_without_any_line_every_step_is_lost(tmp_path: Path) -> None:
    assert write_lost(str(tmp_path / "none.jsonl"), "train", "judge", 2) == [0, 1]
