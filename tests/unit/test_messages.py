"""The retry request on the wire."""

import json
import re
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import UnreadableMessage
from shared.job_ids import UuidIds
from shared.messages import (
    MAX_BYTES,
    MOST_PACKED_BYTES,
    MOST_REQUESTS,
    Contents,
    RetryMessage,
    decoded,
    encoded,
    packed,
)
from shared.models import JobId

NEEDED = {
    "v": 1,
    "request_id": "0193c9a8-0000-7000-8000-000000000001",
    "job_id": "11111111-1111-4111-8111-111111111111",
    "project_id": "p1",
}


def wire(**fields: object) -> bytes:
    return json.dumps(NEEDED | fields).encode()


def test_the_wire_format_is_the_contract_s() -> None:
    message = RetryMessage(
        request_id=UUID(str(NEEDED["request_id"])),
        job_id=JobId(str(NEEDED["job_id"])),
        project_id="p1",
        job_version="5f0c2d9e71b841a7",
        requested_at=datetime(2026, 11, 23, 6, 0, tzinfo=UTC),
        actor="alice",
    )

    assert json.loads(encoded(message)) == NEEDED | {
        "job_version": "5f0c2d9e71b841a7",
        "run_at": None,
        "extra_attempts": 0,
        "actor": "alice",
        "reason": None,
        "requested_at": "2026-11-23T06:00:00Z",
    }


@given(
    st.builds(
        RetryMessage,
        request_id=st.uuids(),
        job_id=st.uuids().map(str),
        project_id=st.from_regex(r"[A-Za-z0-9_-]{1,100}", fullmatch=True),
        job_version=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64),
        run_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        extra_attempts=st.integers(0, 10),
        actor=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=500),
        reason=st.none() | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=500),
        requested_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    )
)
def test_what_is_written_is_read_again(message: RetryMessage) -> None:
    assert decoded(encoded(message), UuidIds()) == Contents([message])


def test_only_four_fields_are_needed() -> None:
    (message,) = decoded(wire(), UuidIds()).requests

    assert (message.actor, message.job_version, message.extra_attempts) == ("unknown", None, 0)


def test_unknown_fields_are_ignored() -> None:
    assert decoded(wire(colour="blue", nested={"deep": [1]}), UuidIds()) == decoded(wire(), UuidIds())


@pytest.mark.parametrize("missing", NEEDED)
def test_a_message_without_a_field_that_is_needed_cannot_be_read(missing: str) -> None:
    fields = {name: value for name, value in NEEDED.items() if name != missing}

    with pytest.raises(UnreadableMessage):
        decoded(json.dumps(fields).encode(), UuidIds())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"canary",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"[" * 60_000,
        b'{"v":' * 10_000,
        wire(v=2),
        wire(v=3),
        wire(v="1"),
        wire(request_id="canary"),
        wire(job_id=1),
        wire(project_id="canary p"),
        wire(project_id="p\n"),
        wire(project_id=""),
        wire(project_id="p" * 101),
        wire(job_version="canary x"),
        wire(job_version="canary\n"),
        wire(job_version="canär"),
        wire(job_version=""),
        wire(job_version="c" * 65),
        wire(run_at="2026-11-23T06:00:00"),
        wire(run_at="canary"),
        wire(extra_attempts=-1),
        wire(extra_attempts=11),
        wire(extra_attempts=10**30),
        wire(actor="canary\x00"),
        wire(actor="c" * 501),
        wire(reason={"canary": 1}),
        wire(reason="c" * 501),
        wire(colour="c" * MAX_BYTES),
        wire(reason="\ud800"),
    ],
    ids=lambda body: body[-60:].decode("latin-1"),
)
def test_a_message_that_cannot_be_read_says_why_without_its_content(body: bytes) -> None:
    with pytest.raises(UnreadableMessage) as refusal:
        decoded(body, UuidIds())

    assert str(refusal.value)
    assert "canary" not in str(refusal.value)


def test_requests_are_packed_within_a_hundred_and_sixty_thousand_bytes() -> None:
    small, large = (
        RetryMessage(request_id=uuid4(), job_id=JobId(str(uuid4())), project_id="p1", actor="ä" * size)
        for size in (1, 500)
    )
    for messages in ([], [small], [small] * 101, [large] * 100, [large] * 99 + [small] * 150):
        packs = list(packed(messages))
        assert [request for body, _ in packs for request in decoded(body, UuidIds()).requests] == messages
        assert all(len(body) <= MOST_PACKED_BYTES and held <= MOST_REQUESTS for body, held in packs)
        assert sum(held for _, held in packs) == len(messages)
    assert len(list(packed([large] * 100))) == 3


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_a_request_of_several_that_cannot_be_read_is_a_message_that_cannot(request: object) -> None:
    good = {name: value for name, value in NEEDED.items() if name != "v"}

    contents = decoded(json.dumps({"v": 2, "requests": [good, request, good]}).encode(), UuidIds())

    assert len(contents.requests) == 2
    ((body, reason),) = contents.unreadable
    with pytest.raises(UnreadableMessage, match=re.escape(reason)):
        decoded(body, UuidIds())


def test_the_version_inside_a_request_of_several_is_an_unknown_field() -> None:
    contents = decoded(json.dumps({"v": 2, "requests": [NEEDED | {"v": 9}, {"v": 9, "job_id": 1}]}).encode(), UuidIds())

    assert len(contents.requests) == 1
    assert [json.loads(body) for body, _ in contents.unreadable] == [{"v": 1, "job_id": 1}]
