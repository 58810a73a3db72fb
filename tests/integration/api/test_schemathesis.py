"""Requests that `api/openapi.yaml` allows, and such as it forbids, made up by schemathesis: every answer is documented.

    REDRIVE_SCHEMATHESIS_EXAMPLES=1000 .venv/bin/pytest tests/integration/api/test_schemathesis.py

for more of each than the few of `make test`. The same requests every time, but for ids and tokens.
"""

import asyncio
import os
from copy import deepcopy
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api_server import Api, Serve
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker
from tests.openapi import DOCUMENT, OPERATIONS, Operation, check_problem
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES: Final = int(os.environ.get("REDRIVE_SCHEMATHESIS_EXAMPLES", "8"))
SCOPES: Final = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend jobs:admin"
SCHEMA: Final = schemathesis.openapi.from_dict(deepcopy(DOCUMENT), config=schemathesis.Config(seed=1))
CHECKS: Final = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip


@module_fixture
async def impatient(database_url: str, serve: Serve) -> Api:
    """An api without waiting: `Prefer: wait=60` is a request like any other."""
    return await serve(database_url, max_waiters=0)


async def id_of(operation: Operation, api: Api, jobs: JobMaker, project_id: str, bearer: str) -> str:
    """Something that is there, of the kind that the operation is about."""
    job = await jobs.failed(project_id=project_id)
    match operation.id:
        case "get_retry" | "delete_retry":
            answer = await api.post(f"/api/jobs/{job.id}/retry", token=bearer)
            return str(answer.data["id"])
        case "get_batch":
            answer = await api.post("/api/jobs/retry", {"ids": [str(job.id)]}, token=bearer)
            return str(answer.data["batch_id"])
        case _:
            return str(job.id)


def can_be_wrong(operation: Operation) -> bool:
    """Whether a request can break what the operation describes: any text is a good X-Request-Id."""
    return "requestBody" in operation.node or any(each["name"] != "X-Request-Id" for each in operation.parameters)


@pytest.mark.timeout(120 + EXAMPLES)
@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{name}-{mode.value}")
        for name, operation in OPERATIONS.items()
        for mode in GenerationMode
        if mode is not GenerationMode.NEGATIVE or can_be_wrong(operation)
    ],
)
async def test_every_answer_is_documented(
    impatient: Api, jobs: JobMaker, operation: Operation, mode: GenerationMode
) -> None:
    project_id = f"{operation.id}-{mode.value}"
    bearer = token(project_id=project_id, scope=SCOPES, exp=4_000_000_000)
    known = await id_of(operation, impatient, jobs, project_id, bearer)

    # In a thread: schemathesis' client blocks, and the server is in this loop.
    await asyncio.to_thread(examine, operation, mode, f"http://127.0.0.1:{impatient.port}", bearer, known)


def examine(operation: Operation, mode: GenerationMode, base_url: str, bearer: str, known: str) -> None:
    """Send examples of the operation, half of them about the id that is known. Raises FailureGroup."""
    described = SCHEMA[operation.path][operation.method]
    strategy = described.as_strategy(mode)
    if "{id}" in operation.path:
        strategy |= described.as_strategy(mode, path_parameters={"id": known})

    # It wants each event to be of the stream's schema, which OpenAPI 3.1 cannot say; test_openapi.py looks at events.
    streams = any("text/event-stream" in each.response.get("content", {}) for each in operation.documented.values())
    checks = [check for check in CHECKS if not streams or check is not response_schema_conformance]
    with requests.Session() as session:

        @given(case=strategy)
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        def send(case: Case[Any]) -> None:
            headers = {"Authorization": f"Bearer {bearer}"}
            answer = case.call(base_url, session, headers, timeout=10)
            for _ in range(5):  # a machine that is busy with other tests may be too slow, and says so
                if answer.status_code == 503:
                    answer = case.call(base_url, session, headers, timeout=10)
            case.validate_response(answer, checks, headers=headers)
            if codes := operation.documented[answer.status_code].codes:
                check_problem(answer.json(), codes)

        run: Any = send
        run()
