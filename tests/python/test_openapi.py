"""Requests that the description of API v2 allows, and some that it does not: answers are what it says."""

from pathlib import Path
from typing import Any

import schemathesis
from conftest import Planner
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs" / "openapi.json")
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

# What is refused beyond the description, and what is taken for none, other tests say.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schema.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_what_the_description_says(case: Any, planner: Planner) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("wait_ms"), int):
        # Nobody comes whom it would be worth to wait for.
        case.body["wait_ms"] = min(case.body["wait_ms"], 20)
    case.call_and_validate(base_url=planner.url, checks=CHECKS)
