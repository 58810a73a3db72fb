"""Every refusal has one answer, and its words are fixed."""

import json
from collections.abc import Iterator
from http import HTTPStatus

import pytest

import api.problems as problems_module
import shared.errors as errors_module
from api.problems import (
    PROBLEMS,
    AuthenticationRequired,
    Fault,
    InvalidBody,
    InvalidParameter,
    InvalidToken,
    KeysUnavailable,
    MethodNotAllowed,
    RateLimited,
    problem_answer,
    problem_of,
)
from shared.errors import DatabaseUnavailable, JobNotFound, RedriveError, StatementRefused, TextUnstorable

MADE_WITH: dict[type[RedriveError], RedriveError] = {
    MethodNotAllowed: MethodNotAllowed("GET"),
    RateLimited: RateLimited(7),
    InvalidParameter: InvalidParameter("Canary"),
    InvalidBody: InvalidBody((Fault("/reason", "Expected `str`."),)),
    TextUnstorable: TextUnstorable("reason"),
}


def every_error() -> Iterator[type[RedriveError]]:
    """What the two modules of errors define, so that a new one is found by itself."""
    for module in (errors_module, problems_module):
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, RedriveError) and thing.__module__ == module.__name__:
                yield thing


def made(kind: type[RedriveError]) -> RedriveError:
    return MADE_WITH[kind] if kind in MADE_WITH else kind(["canary"])


def body_of(error: RedriveError, request_id: str = "r1") -> dict[str, object]:
    body = problem_answer(error, request_id).body
    assert isinstance(body, bytes)
    answer: dict[str, object] = json.loads(body)
    return answer


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer_of_the_one_shape(kind: type[RedriveError]) -> None:
    error = made(kind)
    answer = problem_answer(error, "r1")
    body = body_of(error)

    assert body.keys() - {"errors", "parameter"} == {
        "type",
        "title",
        "status",
        "detail",
        "code",
        "retryable",
        "request_id",
    }
    assert body["status"] == answer.status == problem_of(kind).status
    assert body["type"] == f"/problems/{body['code']}"
    assert body["request_id"] == "r1"
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_nothing_that_an_error_was_made_with_is_in_its_answer(kind: type[RedriveError]) -> None:
    answer = problem_answer(made(kind), "r1")

    assert b"canary" not in (answer.body if isinstance(answer.body, bytes) else b"")
    assert "canary" not in str(answer.headers)


@pytest.mark.parametrize(
    ("name", "told"),
    [("limit", "limit"), ("created_after", "created_after"), ("a" * 32, "a" * 32), ("a" * 33, None), ("", None),
     ("Limit", None), ("limit\n", None), ("li mit", None), ("limit2", None), ("Idempotency-Key", None),
     ("\udcff", None)],
)  # fmt: skip
def test_a_wrong_parameter_is_named_where_its_name_is_a_plain_word(name: str, told: str | None) -> None:
    assert body_of(InvalidParameter(name))["parameter"] == told


@pytest.mark.parametrize("problem", list(PROBLEMS.values()), ids=lambda problem: problem.title)
def test_titles_and_details_are_sentences_for_a_caller(problem: problems_module.Problem) -> None:
    assert problem.title[0].isupper()
    assert problem.detail.endswith(".")
    assert problem.retryable == (problem.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def test_a_code_stands_for_one_status() -> None:
    statuses = {(kind.code, problem_of(kind).status) for kind in PROBLEMS}

    assert len(statuses) == len({code for code, _ in statuses})


def test_a_subclass_is_answered_as_its_parent_under_its_own_code() -> None:
    class JobHidden(JobNotFound):
        code = "job-hidden"

    assert problem_of(JobHidden) is PROBLEMS[JobNotFound]
    assert body_of(JobHidden())["code"] == "job-hidden"


def test_an_error_without_an_answer_of_its_own_is_internal_and_does_not_say_which() -> None:
    assert body_of(StatementRefused("23514")) == body_of(RedriveError())
    assert body_of(RedriveError())["code"] == "internal"


def test_faults_are_listed_with_their_places() -> None:
    body = body_of(InvalidBody((Fault("/reason", "Expected `str`."), Fault("", "Object expected."))))

    assert body["errors"] == [
        {"pointer": "/reason", "detail": "Expected `str`."},
        {"pointer": "", "detail": "Object expected."},
    ]


def test_no_list_of_faults_where_there_are_none() -> None:
    assert "errors" not in body_of(JobNotFound())


@pytest.mark.parametrize(
    ("error", "header", "value"),
    [
        (RateLimited(7), "Retry-After", "7"),
        (DatabaseUnavailable(), "Retry-After", "1"),
        (KeysUnavailable(), "Retry-After", "1"),
        (MethodNotAllowed("GET, POST"), "Allow", "GET, POST"),
        (AuthenticationRequired(), "WWW-Authenticate", "Bearer"),
        (InvalidToken(), "WWW-Authenticate", "Bearer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RedriveError) else value,
)
def test_an_answer_carries_the_header_that_its_status_calls_for(error: RedriveError, header: str, value: str) -> None:
    assert problem_answer(error, "r1").headers[header] == value
