"""The document and the program say the same."""

import ast
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from api import about, batch_view, batches, job_view, jobs, overview, pages, problems, retries, retry_view
from api.app import create_app
from api.auth import Scope
from api.door import Access, Call, Door
from api.problems import PROBLEMS, Problem
from shared.errors import InvalidJobNumber
from shared.models import Outcome, RetryBlock, RetryState
from shared.settings import ApiSettings, read
from tests.openapi import (
    DOCUMENT,
    ELSEWHERE,
    OPERATIONS,
    PROBLEM,
    Documented,
    Node,
    Operation,
    check,
    check_problem,
    followed,
)
from tests.tokens import SECRET

OPEN = ("GET", "/api/openapi.json")
"""What is answered without a token."""
GUARDED = {name: operation for name, operation in OPERATIONS.items() if (operation.method, operation.path) != OPEN}
SCHEMAS = DOCUMENT["components"]["schemas"]
EXAMPLES: dict[str, Any] = DOCUMENT["components"]["examples"] | {
    name: example for answer in ELSEWHERE.values() for name, example in answer["content"][PROBLEM]["examples"].items()
}
STREAMED = "text/event-stream"
_TOP: Final = Path(__file__).parents[2]


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
    shown = {example["value"]["code"] for example in EXAMPLES.values()}
    assert set(SCHEMAS["ProblemCode"]["enum"]) == shown == set(every_problem())


def test_every_code_is_answered_somewhere_under_its_status() -> None:
    documented = {
        (code, int(status))
        for operation in OPERATIONS.values()
        for status, answer in operation.documented.items()
        for code in answer.codes
    }
    for name, status in (("NotFound", 404), ("MethodNotAllowed", 405)):
        documented |= {(code, status) for code in Documented(status, ELSEWHERE[name]).codes}

    assert documented == {(code, int(each.status)) for code, known in every_problem().items() for each in known}


def test_every_problem_is_shown_as_it_is_answered() -> None:
    shown = [example["value"] for example in EXAMPLES.values()]
    # Where the ids are numbers, the document that is served has the other words (test_bigint_ids.py).
    answered = [(kind.code, *problem) for kind, problem in PROBLEMS.items() if kind is not InvalidJobNumber]

    words = [(each["code"], each["status"], each["title"], each["detail"], each["retryable"]) for each in shown]
    assert set(words) == set(answered)
    assert [each["type"] for each in shown] == [f"/problems/{each['code']}" for each in shown]


def test_each_problem_that_is_shown_is_the_one_that_is_meant() -> None:
    for name, answer in DOCUMENT["components"]["responses"].items():
        if name.endswith("NotFound"):
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
        ("RetryPage", pages.PageBody), ("AcceptedRetry", retries._Accepted),
        ("RetryRequestBody", retries._RetryRequestBody), ("FailedFilter", batches._Filter), ("Problem", problems._Body),
    ],
)  # fmt: skip
def test_a_schema_has_the_fields_that_are_written_and_read(schema: str, struct: type[msgspec.Struct]) -> None:
    described = SCHEMAS[schema]
    required = {
        field.encode_name for field in msgspec.structs.fields(struct) if field.required or field.default is True
    }

    assert tuple(described["properties"]) == struct.__struct_fields__
    assert set(described.get("required", ())) == required


def test_the_two_forms_of_a_bulk_retry_have_the_fields_that_are_read_between_them() -> None:
    by_ids, by_filter = SCHEMAS["BatchRequestByIds"], SCHEMAS["BatchRequestByFilter"]

    assert by_ids["properties"].keys() | by_filter["properties"].keys() == set(
        batches._BatchRequestBody.__struct_fields__
    )
    assert by_ids["required"] == ["ids"]
    assert by_filter["required"] == ["filter", "max", "reason"]
    assert not {"filter", "max"} & by_ids["properties"].keys()
    assert "ids" not in by_filter["properties"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [("RetryBlock", RetryBlock), ("RetryState", RetryState), ("Outcome", Outcome)],
)
def test_a_closed_set_is_the_same_set(schema: str, words: list[str]) -> None:
    assert SCHEMAS[schema]["enum"] == list(words)


BOUNDS = {
    "minimum": "ge", "maximum": "le", "minLength": "min_length", "maxLength": "max_length", "minItems": "min_length",
    "maxItems": "max_length",
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("RetryRequestBody", retries._RetryRequestBody), ("BatchRequestByIds", batches._BatchRequestBody),
        ("BatchRequestByFilter", batches._BatchRequestBody), ("FailedFilter", batches._Filter),
    ],
)  # fmt: skip
def test_a_field_is_bounded_as_it_is_read(schema: str, struct: type[msgspec.Struct]) -> None:
    read_as = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"]

    for name, described in SCHEMAS[schema]["properties"].items():
        expected = bounds_of(read_as[name])
        if (schema, name) == ("BatchRequestByFilter", "reason"):
            expected |= {"minLength": 1}  # the one field that a filter makes required
        assert bounds_of(described) == expected, name


def bounds_of(schema: dict[str, Any]) -> dict[str, int | str]:
    """All bounds in a schema, wherever they stand, but for those of an array's items.

    A pattern is as the document has it, where `$` is the end alone, as `\\Z` is in Python.
    """
    node = dict(followed(schema)) if schema.get("$ref", "").startswith("#/components/") else schema
    found: dict[str, int | str] = {bound: node[bound] for bound in BOUNDS if bound in node}
    if "pattern" in node:
        found["pattern"] = node["pattern"].replace(r"\Z", "$").replace(r"\x00", r"\u0000")
    for part in (*node.get("oneOf", ()), *node.get("anyOf", ())):
        found |= bounds_of(part)
    return found


def test_no_pattern_ends_before_a_last_line_feed() -> None:
    """In Python `$` does."""
    found = [
        f"{path.relative_to(_TOP)}:{pattern.lineno}"
        for folder in ("api", "cli", "redrive_client", "shared", "worker")
        for path in (_TOP / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        for pattern in [*(each.value for each in node.keywords if each.arg == "pattern"), *_compiled_by(node)]
        if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str) and pattern.value.endswith("$")
    ]

    assert found == []


def _compiled_by(call: ast.Call) -> list[ast.expr]:
    """The pattern that a function of `re` is called with."""
    return call.args[:1] if ast.unparse(call.func).startswith("re.") else []


# -- what tools make of it: generators of clients, linters, renderers

KEYWORDS: Final = frozenset({
    "$ref", "additionalProperties", "anyOf", "const", "contentMediaType", "default", "description", "enum", "examples",
    "format", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength", "minimum", "oneOf", "pattern",
    "properties", "required", "type", "uniqueItems",
})  # fmt: skip
"""What generators of clients understand of JSON Schema, and nothing that is a slip of the pen."""


def schemas() -> Iterator[tuple[str, Any]]:
    """Every schema in the document, with where it stands."""
    yield from _schemas_in("", DOCUMENT)


def _schemas_in(place: str, node: object) -> Iterator[tuple[str, Any]]:
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from _schemas_in(f"{place}/{number}", each)
    elif isinstance(node, dict):
        for key, each in node.items():
            if key in {"example", "examples", "value"}:
                continue
            if key == "schema":
                yield from _parts_of(f"{place}/schema", each)
            elif key == "schemas":
                for name, schema in each.items():
                    yield from _parts_of(f"{place}/schemas/{name}", schema)
            else:
                yield from _schemas_in(f"{place}/{key}", each)


def _parts_of(place: str, schema: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - a schema may be a boolean, too
    yield place, schema
    if not isinstance(schema, dict):
        return
    for name, each in schema.get("properties", {}).items():
        yield from _parts_of(f"{place}/properties/{name}", each)
    for keyword in ("oneOf", "anyOf", "allOf"):
        for number, each in enumerate(schema.get(keyword, ())):
            yield from _parts_of(f"{place}/{keyword}/{number}", each)
    for keyword in ("items", "not", "if", "then", "else"):
        if keyword in schema:
            yield from _parts_of(f"{place}/{keyword}", schema[keyword])


def test_no_schema_is_a_boolean_or_says_what_generators_do_not_understand() -> None:
    assert [place for place, schema in schemas() if not isinstance(schema, dict)] == []
    assert {place: schema.keys() - KEYWORDS for place, schema in schemas() if schema.keys() - KEYWORDS} == {}


def test_a_reference_has_nothing_beside_it_that_tools_overlook() -> None:
    beside = {place: schema.keys() - {"$ref", "description"} for place, schema in schemas() if "$ref" in schema}

    assert len(beside) > 100
    assert {place: keys for place, keys in beside.items() if keys} == {}


def test_what_may_be_null_says_so_beside_one_type_or_in_a_choice_and_in_no_closed_set() -> None:
    for place, schema in schemas():
        match schema.get("type"):
            case [kind, "null"]:
                assert kind != "null", place
            case kind:
                assert kind is None or isinstance(kind, str), place
        assert None not in schema.get("enum", ()), f"{place}: a class for each place that refers to it"


def test_every_object_says_whether_it_may_have_more_fields() -> None:
    objects = {place: schema for place, schema in schemas() if schema.get("type") == "object"}

    assert [place for place, schema in objects.items() if "additionalProperties" not in schema] == []


def test_every_required_field_is_described() -> None:
    for place, schema in schemas():
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), place


def test_every_component_is_used() -> None:
    used = set(references(DOCUMENT))
    parts = {kind: names for kind, names in DOCUMENT["components"].items() if kind != "securitySchemes"}

    assert {f"#/components/{kind}/{name}" for kind, names in parts.items() for name in names} == used


def references(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from references(each)
    elif isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from references(each)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_operation_and_answer_is_described(operation: Operation) -> None:
    assert operation.node["summary"]
    assert operation.node["description"]
    assert all(answer.response["description"] for answer in operation.documented.values())


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


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_problem_that_is_shown_has_what_its_code_brings(name: str) -> None:
    problem: Node = EXAMPLES[name]["value"]

    check(problem, SCHEMAS["Problem"])
    check_problem(problem, frozenset([problem["code"]]))
