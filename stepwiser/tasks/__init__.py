"""The embedded task: small arithmetic problems with an exact oracle, and a tiny base model.

Everything the method claims can be checked against the truth here, on a laptop. In: seeds. Out:
problems, worked solutions, the index of the first wrong step, and the packaged model's folder.
`pretrain` made that model and is never run by a stage. What judges are asked about edited steps of
this task is in `evaluation/embedded_edits`. Other data sets do not belong here but in `data/`.
"""

from __future__ import annotations

import pathlib

from stepwiser.tasks.arithmetic import (
    ArithmeticProblem,
    Operation,
    first_error,
    make_problem,
    make_problems,
    parse_problem,
    segment_plain,
    solution,
    step_is_right,
)

__all__ = [
    "ArithmeticProblem",
    "Operation",
    "first_error",
    "load_base_model_dir",
    "make_problem",
    "make_problems",
    "parse_problem",
    "segment_plain",
    "solution",
    "step_is_right",
]


def load_base_model_dir() -> pathlib.Path:
    """Folder of the packaged base model (config, weights, tokenizer, ``training.json``).

    Raises FileNotFoundError when the installation has no weights.
    """
    folder = pathlib.Path(__file__).resolve().parent / "base_model"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no base model weights in {folder}")
    return folder
