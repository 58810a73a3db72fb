"""The document and the program say the same."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from api import about, batch_view, batches, job_view, jobs, overview, problems, retries, retry_view
from api.app import create_app
from api.auth import Scope
from api.door import Access, Call, Door
from api.problems import PROBLEMS, Problem
from shared.models import Outcome, RetryBlock, RetryState
from shared.settings import ApiSettings, read
from tests.openapi import DOCUMENT, OPERATIONS, Operation, check, followed
from tests.tokens import SECRET

OPEN = ("GET", "/api/openapi.json")
"""What is answered without a token."""
GUARDED = {name: operation for name, operation in OPERATIONS.items() if (operation.method, operation.path) != OPEN}
SCHEMAS = DOCUMENT["components"]["schemas"]
STREAMED = "text/event-stream"


class Route:
    """What the program has under one method of one path."""

    def __init__(self, access: Access, name: str) -> None:
        self.access = access
        self.name = name


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Route]:
    """The application's routes, by method and path."""
    behind: dict[Handler, Route] = {}
    guarded = Door.guarded

    def noted(self: Door, access: Access, handler: Callable[[Call], Awaitable[web.StreamResponse]]) -> Handler:
        made = guarded(self, access, handler)
        behind[made] = Route(access, handler.__name__)
        return made

    monkeypatch.setattr(Door, "guarded", noted)
    settings = read(ApiSettings, database_url="postgresql://nowhere/db", jwt_secret=SECRET)
    return {
        (route.method, route.resource.canonical): behind[route.handler]
        for route in create_app(settings, CollectorRegistry()).app.router.routes()
        if route.resource is not None and (route.method, route.resource.canonical) != OPEN
    }


def test_the_document_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_every_route_is_in_the_document_and_the_other_way_round(routes: dict[tuple[str, str], Route]) -> None:
    documented = {(operation.method, operation.path): operation.id for operation in OPERATIONS.values()}

    assert documented == {place: route.name for place, route in routes.items()} | {OPEN: "get_openapi"}


@pytest.mark.parametrize("operation", GUARDED.values(), ids=GUARDED)
def test_a_route_takes_the_parameters_that_are_documented(
    routes: dict[tuple[str, str], Route], operation: Operation
) -> None:
    access = routes[operation.method, operation.path].access

    assert operation.query == access.parameters | {"project_id"}


@pytest.mark.parametrize("operation", GUARDED.values(), ids=GUARDED)
def test_a_route_asks_for_the_scope_that_is_documented(
    routes: dict[tuple[str, str], Route], operation: Operation
) -> None:
    access = routes[operation.method, operation.path].access

    assert operation.node["security"] == [{"token": [] if access.scope is None else [access.scope.value]}]
    assert ("read-only" in operation.documented[403].codes) == access.writes


def test_every_scope_is_explained() -> None:
    words = DOCUMENT["components"]["securitySchemes"]["token"]["description"]

    assert [scope for scope in Scope if f"- `{scope}`: " not in words] == []


# -- problems


def every_problem() -> dict[str, list[Problem]]:
    """Problems by their codes; two resources share `not-found`."""
    found: dict[str, list[Problem]] = {}
    for kind, problem in PROBLEMS.items():
        found.setdefault(kind.code, []).append(problem)
    return found


def test_every_code_is_in_the_document_and_the_other_way_round() -> None:
    examples = DOCUMENT["components"]["examples"]

    shown = {example["value"]["code"] for example in examples.values()}
    assert set(SCHEMAS["ProblemCode"]["enum"]) == shown == set(every_problem())


def test_every_code_is_answered_somewhere_under_its_status() -> None:
    responses = DOCUMENT["components"]["responses"]
    documented = {
        (code, int(status))
        for operation in OPERATIONS.values()
        for status, answer in operation.documented.items()
        for code in answer.codes
    }
    for name, status in (("NotFound", 404), ("MethodNotAllowed", 405)):  # where there is no operation
        schema = responses[name]["content"]["application/problem+json"]["schema"]
        documented |= {(code, status) for code in schema["properties"]["code"]["enum"]}

    assert documented == {(code, int(each.status)) for code, known in every_problem().items() for each in known}


def test_every_problem_is_shown_as_it_is_answered() -> None:
    shown = [example["value"] for example in DOCUMENT["components"]["examples"].values()]
    answered = [(kind.code, *problem) for kind, problem in PROBLEMS.items()]

    words = [(each["code"], each["status"], each["title"], each["detail"], each["retryable"]) for each in shown]
    assert set(words) == set(answered)
    assert [each["type"] for each in shown] == [f"/problems/{each['code']}" for each in shown]


def test_each_problem_that_is_shown_is_the_one_that_is_meant() -> None:
    for name, answer in DOCUMENT["components"]["responses"].items():
        if name.endswith("NotFound") and name != "NotFound":
            (example,) = answer["content"]["application/problem+json"]["examples"].values()
            assert followed(example)["value"]["detail"] != PROBLEMS[problems.NotFound].detail


# -- shapes


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("Job", job_view._JobBody), ("Retry", retry_view._RetryBody), ("Batch", batch_view._BatchBody),
        ("JobPage", jobs._Page), ("JobsFound", jobs._Found), ("UnreadableJob", job_view._Unreadable),
        ("JobStats", overview._Stats), ("Count", overview._Count), ("SeriesBucket", overview._Bucket),
        ("JobSeries", overview._SeriesBody), ("JobTypes", overview._TypesBody), ("FailureGroup", overview._Group),
        ("FailureGroups", overview._FailuresBody), ("RetryStats", overview._RetryStatsBody), ("Me", about._MeBody),
        ("RetryPage", retries._Page), ("AcceptedRetry", retries._Accepted), ("RetryOrder", retries._RetryRequestBody),
        ("BatchOrder", batches._BatchRequestBody), ("FailedFilter", batches._Filter), ("Problem", problems._Body),
    ],
)  # fmt: skip
def test_a_schema_has_the_fields_that_are_written_and_read(schema: str, struct: type[msgspec.Struct]) -> None:
    described = SCHEMAS[schema]
    required = {
        field.encode_name for field in msgspec.structs.fields(struct) if field.required or field.default is True
    }

    assert tuple(described["properties"]) == struct.__struct_fields__
    assert set(described.get("required", ())) == required


@pytest.mark.parametrize(
    ("schema", "words"),
    [("RetryBlock", RetryBlock), ("RetryState", RetryState), ("Outcome", Outcome)],
)
def test_a_closed_set_is_the_same_set(schema: str, words: list[str]) -> None:
    assert [word for word in SCHEMAS[schema]["enum"] if word is not None] == list(words)


BOUNDS = {
    "minimum": "ge", "maximum": "le", "minLength": "min_length", "maxLength": "max_length", "minItems": "min_length",
    "maxItems": "max_length",
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("RetryOrder", retries._RetryRequestBody),
        ("BatchOrder", batches._BatchRequestBody),
        ("FailedFilter", batches._Filter),
    ],
)
def test_a_field_is_bounded_as_it_is_read(schema: str, struct: type[msgspec.Struct]) -> None:
    read_as = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"]

    for name, described in SCHEMAS[schema]["properties"].items():
        assert bounds_of(described) == bounds_of(read_as[name]), name


def bounds_of(schema: dict[str, Any]) -> dict[str, int]:
    """All bounds in a schema, wherever they stand, but for those of an array's items."""
    node = dict(followed(schema)) if schema.get("$ref", "").startswith("#/components/") else schema
    found = {bound: node[bound] for bound in BOUNDS if bound in node}
    for part in (*node.get("oneOf", ()), *node.get("anyOf", ())):
        found |= bounds_of(part)
    return found


# -- examples


def examples(node: object) -> Iterator[tuple[object, dict[str, Any]]]:
    """Every example in the document, with the schema that it stands beside."""
    if isinstance(node, list):
        for each in node:
            yield from examples(each)
    elif isinstance(node, dict):
        own = node.get("schema", node)
        if isinstance(node.get("examples"), list):
            yield from ((example, own) for example in node["examples"])
        if "example" in node and isinstance(own, dict):
            yield node["example"], own
        if isinstance(node.get("examples"), dict) and "schema" in node:
            yield from ((followed(example)["value"], own) for example in node["examples"].values())
        for each in node.values():
            yield from examples(each)


@pytest.mark.parametrize(("example", "schema"), list(examples(DOCUMENT)))
def test_an_example_is_of_its_schema(example: object, schema: dict[str, Any]) -> None:
    check(example, schema)
