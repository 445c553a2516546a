"""The one shape of errors."""

from __future__ import annotations

import json

from serve.errors import Failure, error_response


def test_half_a_character_that_a_request_had_is_told_and_not_sent() -> None:
    failure = Failure("invalid_request", "role: is '\ud800'; no such role", "messages.\udfff")
    response = error_response(failure, "id")
    assert response.status_code == 422
    error = json.loads(bytes(response.body))["error"]
    assert error["message"] == "role: is '\\ud800'; no such role"
    assert error["param"] == "messages.\\udfff"
