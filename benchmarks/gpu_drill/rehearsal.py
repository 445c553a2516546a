"""What a rehearsal has in place of public data: labelled steps of the packaged task."""

from __future__ import annotations

import json
import random
from pathlib import Path

from stepwiser.tasks.transcripts import sample_judge_case


def write_step_items(file: Path, count: int, seed: int) -> None:
    """Write solutions in ProcessBench's format, of which about half end with their first error."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        case = sample_judge_case(rng)
        rows.append(
            {
                "id": f"packaged-{number}",
                "generator": "oracle",
                "problem": case.problem.question,
                "steps": [*case.history, case.chunk],
                "final_answer_correct": case.right,
                "label": -1 if case.right else len(case.history),
            }
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
