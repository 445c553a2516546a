"""Clients of a served judge, for programs that have neither Ray nor vLLM nor torch.

In: the address of a server (`stepwiser serve`), a key, problems and their steps. Out: the service's
answers as typed values, and each error as a `JudgeError` that names field and fix. What a passing
fault has cost is asked for again within a deadline. Nothing is judged here and no score is
computed: that is the server's.
"""

from stepwiser.client.asynchronous import AsyncJudgeClient
from stepwiser.client.errors import JudgeError
from stepwiser.client.synchronous import JudgeClient
from stepwiser.client.types import (
    AnalysisEvent,
    JudgeResponse,
    ScoreResponse,
    Solution,
    StepVerdict,
    Version,
)

__all__ = [
    "AnalysisEvent",
    "AsyncJudgeClient",
    "JudgeClient",
    "JudgeError",
    "JudgeResponse",
    "ScoreResponse",
    "Solution",
    "StepVerdict",
    "Version",
]
