"""What the client reads is what the service writes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

import serve.errors
import serve.judging.service
import serve.schema
from stepwiser.client import types
from stepwiser.client.errors import PASSING_STATUS, PASSING_TYPES


def _shape(model: type[BaseModel]) -> dict[str, Any]:
    """Names and types of all fields, without words about them."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            dropped = ("description", "title", "additionalProperties", "default")
            return {k: bare(v) for k, v in value.items() if k not in dropped}
        return [bare(one) for one in value] if isinstance(value, list) else value

    schema = bare(model.model_json_schema())
    for one in (schema, *schema.get("$defs", {}).values()):
        one["required"] = None  # an answer that leaves out what is null is read all the same
    return schema


@pytest.mark.parametrize(
    "name",
    ["StepVerdict", "ModelInfo", "Usage", "JudgeResponse", "ScoreResponse", "JudgeBatchItem",
     "JudgeBatchResponse", "JudgeCard", "Version", "ErrorBody"],
)  # fmt: skip
def test_answers_have_the_fields_of_the_schema(name: str) -> None:
    theirs = getattr(serve.schema, name, None) or getattr(serve.errors, name)
    assert _shape(getattr(types, name)) == _shape(theirs)


def test_requests_have_the_fields_of_the_schema() -> None:
    """All that a caller may say, the form of the answer aside."""
    solution = set(types.Solution._fields)
    judge, score = serve.schema.JudgeRequest, serve.schema.ScoreRequest
    assert {*solution, *types.JudgeOptions.__annotations__} == judge.model_fields.keys() - {
        "stream"
    }
    assert {*solution, *types.ScoreOptions.__annotations__} == score.model_fields.keys()


def test_what_passes_is_what_the_service_says_passes() -> None:
    passing = {kind for kind, status in serve.errors.STATUS.items() if status in PASSING_STATUS}
    assert passing == PASSING_TYPES - {"connection_failed"}
