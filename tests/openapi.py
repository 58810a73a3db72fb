"""`api/openapi.yaml` as tests use it: its operations, every reference followed, and validators for what is sent."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

import yaml
from jsonschema import FormatChecker
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator

Node = Mapping[str, Any]

DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((files("api") / "openapi.yaml").read_text(encoding="utf-8"))
PROBLEM: Final = "application/problem+json"
ELSEWHERE: Final[dict[str, Any]] = DOCUMENT["x-elsewhere"]
"""The responses where there is no operation."""


def followed(node: Node) -> Node:
    """The node, or the one that it refers to."""
    while "$ref" in node:
        target: Any = DOCUMENT
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")]
        node = target
    return node


class Documented(NamedTuple):
    """What an operation may be answered with under one status."""

    status: int
    response: Node

    @property
    def headers(self) -> dict[str, Node]:
        return {name: followed(header) for name, header in self.response.get("headers", {}).items()}

    @property
    def content(self) -> tuple[str, Node] | None:
        """The one media type and its schema; None where there is no body."""
        (found,) = self.response.get("content", {}).items() or [(None, None)]
        return None if found[0] is None else (found[0], found[1]["schema"])

    @property
    def codes(self) -> frozenset[str]:
        """The problems' codes; none for a success."""
        if self.content is None or self.content[0] != PROBLEM:
            return frozenset()
        examples = self.response["content"][PROBLEM]["examples"].values()
        return frozenset(followed(example)["value"]["code"] for example in examples)


class Operation(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    node: Node
    path_node: Node

    @property
    def id(self) -> str:
        return str(self.node["operationId"])

    @property
    def parameters(self) -> list[Node]:
        return [followed(one) for one in [*self.path_node.get("parameters", ()), *self.node.get("parameters", ())]]

    @property
    def query(self) -> frozenset[str]:
        return frozenset(one["name"] for one in self.parameters if one["in"] == "query")

    @property
    def documented(self) -> dict[int, Documented]:
        return {int(status): Documented(int(status), followed(one)) for status, one in self.node["responses"].items()}


def _operations() -> Iterator[Operation]:
    for path, path_node in DOCUMENT["paths"].items():
        for method in path_node.keys() & {"get", "put", "post", "delete", "options", "head", "patch", "trace"}:
            yield Operation(method.upper(), path, path_node[method], path_node)


OPERATIONS: Final = {operation.id: operation for operation in sorted(_operations())}


@cache
def _validator(schema_id: int) -> Validator:
    return Draft202012Validator(
        {**_SCHEMAS[schema_id], "components": DOCUMENT["components"]}, format_checker=FormatChecker()
    )


_SCHEMAS: Final[dict[int, Node]] = {}


def check(value: Any, schema: Node) -> None:  # noqa: ANN401 - any JSON
    """Raise ValidationError where the value is not of the schema; references are the document's."""
    _SCHEMAS[id(schema)] = schema  # kept, so that no other schema gets its id
    _validator(id(schema)).validate(value)


def check_problem(body: Node, codes: frozenset[str]) -> None:
    """Raise AssertionError where a problem is none of these, or where `errors` or `parameter` do not fit its code."""
    assert body["code"] in codes
    assert ("errors" in body) == (body["code"] == "invalid-body")
    assert ("parameter" in body) == (body["code"] == "invalid-parameter")


def check_header(text: str, header: Node) -> None:
    """The same of a header's text."""
    schema = followed(header["schema"])
    check(int(text) if schema.get("type") == "integer" else text, schema)
