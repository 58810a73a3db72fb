"""Entity tags, the conditions that are made with them, and when to come back."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from api.batch_view import BatchView
from api.conditional import condition_of, matches
from api.job_view import JobView, versions_of
from api.retry_view import RetryView
from shared.batches import Batch
from shared.models import (
    BatchId,
    Job,
    JobId,
    JobStatus,
    Outcome,
    Payload,
    PendingRetry,
    ProjectId,
    Retry,
    RetryId,
    RetryState,
    Version,
)

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
RETRY = RetryId(UUID("0193c9a8-0000-7000-8000-000000000001"))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


PAYLOAD = Payload("3f9c01ab77d2e410", 2, msgspec.Raw(b"{}"))


def job(**changed: object) -> Job:
    made = Job(
        id=JobId("11111111-1111-4111-8111-111111111111"),
        project_id=ProjectId("p1"),
        type="email",
        status=JobStatus.FAILED,
        attempts=1,
        max_attempts=3,
        last_error="it broke",
        scheduled_at=at(-100),
        started_at=at(-90),
        completed_at=at(-80),
        created_at=at(-200),
        version=Version("5f0c2d9e71b841a7"),
    )
    return msgspec.structs.replace(made, **changed)


def retry(**changed: object) -> Retry:
    made = Retry(
        id=RETRY,
        project_id=ProjectId("p1"),
        job_id=JobId("11111111-1111-4111-8111-111111111111"),
        batch_id=None,
        state=RetryState.QUEUED,
        outcome=None,
        actor="alice",
        reason=None,
        delay_seconds=0,
        extra_attempts=0,
        requested_at=at(-60),
        processed_at=None,
        attempts_before=None,
        error_before=None,
    )
    return msgspec.structs.replace(made, **changed)


# -- tags


@pytest.mark.parametrize(
    ("seen", "tag"),
    [
        (job(), '"5f0c2d9e71b841a7"'),
        (job(pending_retry=PendingRetry(RETRY, NOW)), f'"5f0c2d9e71b841a7-{RETRY}"'),
        (job(payload=PAYLOAD), '"5f0c2d9e71b841a7+3f9c01ab77d2e410"'),
        (job(pending_retry=PendingRetry(RETRY, NOW), payload=PAYLOAD), f'"5f0c2d9e71b841a7-{RETRY}+3f9c01ab77d2e410"'),
    ],
)
def test_a_job_s_tag_is_its_version_and_the_queued_retry(seen: Job, tag: str) -> None:
    assert JobView().etag(seen) == tag


# The row is a function of its version, as in PostgreSQL, and a retry's time a function of its id.
_ROWS = st.integers(1, 6).map(
    lambda n: job(
        version=Version(str(n)),
        status=list(JobStatus)[n % 4],
        attempts=n,
        last_error=None if n % 2 else f"error {n}",
        scheduled_at=at(n),
    )
)
_PENDING = st.none() | st.integers(0, 3).map(lambda n: PendingRetry(RetryId(UUID(int=n)), at(n)))


@given(_ROWS, _PENDING, st.booleans(), _ROWS, _PENDING, st.booleans())
def test_two_bodies_are_equal_exactly_when_their_tags_are(  # noqa: PLR0917 - generated
    row: Job,
    pending: PendingRetry | None,
    with_payload: bool,  # noqa: FBT001
    other_row: Job,
    other_pending: PendingRetry | None,
    other_with_payload: bool,  # noqa: FBT001
) -> None:
    def seen(row: Job, pending: PendingRetry | None, *, with_payload: bool) -> Job:
        json = f'{{"n":{row.version}}}'.encode()
        payload = Payload(f"{int(row.version):016x}", len(json), msgspec.Raw(json)) if with_payload else None
        return msgspec.structs.replace(row, pending_retry=pending, payload=payload)

    one = seen(row, pending, with_payload=with_payload)
    other = seen(other_row, other_pending, with_payload=other_with_payload)

    assert (JobView().body(one) == JobView().body(other)) == (JobView().etag(one) == JobView().etag(other))


def test_a_retry_s_tag_changes_when_it_is_settled() -> None:
    settled = [
        retry(state=state, outcome=Outcome.APPLIED, processed_at=when)
        for state in RetryState
        if state is not RetryState.QUEUED
        for when in (NOW, at(0.000001))
    ]

    assert len({RetryView().etag(each) for each in [retry(), *settled]}) == 1 + len(settled)
    assert RetryView().etag(retry()) == RetryView().etag(retry())


# -- If-None-Match


@pytest.mark.parametrize(
    "header",
    [
        '"5f0c2d9e71b841a7"',
        'W/"5f0c2d9e71b841a7"',
        ' "5f0c2d9e71b841a7" ',
        "*",
        " * ",
        '"1", "5f0c2d9e71b841a7"',
        'W/"1",W/"5f0c2d9e71b841a7"',
        '"1","2" , W/"5f0c2d9e71b841a7",',
        '"a,b", "5f0c2d9e71b841a7"',
        ", ".join(f'"{n:016x}"' for n in (*range(700), 0x5F0C2D9E71B841A7)),
    ],
    ids=lambda header: header[:30],
)
def test_a_client_that_has_it_is_recognised(header: str) -> None:
    assert matches(header, '"5f0c2d9e71b841a7"')


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        '""',
        "5f0c2d9e71b841a7",
        "'5f0c2d9e71b841a7'",
        '"5f0c2d9e71b841a7',
        '5f0c2d9e71b841a7"',
        'x"5f0c2d9e71b841a7"',
        '"5f0c2d9e71b841a7"x',
        'w/"5f0c2d9e71b841a7"',
        'x, "5f0c2d9e71b841a7"',
        '"1" "5f0c2d9e71b841a7"',
        'w/"5f0c2d9e71b841a70"',
        '"5f0c2d9e71b841a70"',
        '"5f0c2d9e71b841a7+3f9c01ab77d2e410"',
        f'"5f0c2d9e71b841a7-{RETRY}"',
        '"7 741"',
        '"*"',
        "**",
        "* 5f0c2d9e71b841a7",
        "\udcff\udcfe",
        '"' * 4096,
        'W/"' * 1365,
        "," * 4096,
        '"5f0c2d9e71b841a8' * 800,
        "x" * 4096,
    ],
    ids=lambda header: str(ascii(header))[:30],
)
def test_what_does_not_name_it_or_cannot_be_read_matches_nothing(header: str | None) -> None:
    assert not matches(header, '"5f0c2d9e71b841a7"')


@given(st.text(alphabet='"W/, *5f0c2d9e71b841a7', max_size=4096))
def test_reading_a_condition_takes_no_time(header: str) -> None:
    started_at = time.thread_time()  # of the processor: another process may have it meanwhile
    matches(header, '"8"')
    versions_of(header)

    assert time.thread_time() - started_at < 0.1


@pytest.mark.parametrize(
    ("lines", "condition"),
    [([], None), ([""], None), (["", ""], None), ([" , "], None), (['"1"'], '"1"'), (['"1"', "*"], '"1", *')],
)
def test_a_condition_that_names_nothing_is_none(lines: list[str], condition: str | None) -> None:
    assert condition_of(CIMultiDict([("If-None-Match", line) for line in lines])) == condition


# -- If-Match


@pytest.mark.parametrize(
    ("header", "versions"),
    [
        (None, None),
        ("*", None),
        ('"5f0c2d9e71b841a7"', {"5f0c2d9e71b841a7"}),
        ('"5f0c2d9e71b841a7", "5f0c2d9e71b841a8"', {"5f0c2d9e71b841a7", "5f0c2d9e71b841a8"}),
        ('"5f0c2d9e71b841a7+3f9c01ab77d2e410"', {"5f0c2d9e71b841a7"}),
        (f'"5f0c2d9e71b841a7-{RETRY}"', {"5f0c2d9e71b841a7"}),
        (f'"5f0c2d9e71b841a7-{RETRY}+3f9c01ab77d2e410"', {"5f0c2d9e71b841a7"}),
        ('W/"5f0c2d9e71b841a7"', {"5f0c2d9e71b841a7"}),
        ('W/"5f0c2d9e71b841a7", "5f0c2d9e71b841a8"', {"5f0c2d9e71b841a7", "5f0c2d9e71b841a8"}),
        ('"5f0c2d9e71b841a7-gzip"', {"5f0c2d9e71b841a7"}),
        ('W/"5f0c2d9e71b841a7--gzip"', {"5f0c2d9e71b841a7"}),
        (f'"5f0c2d9e71b841a7-{RETRY}-br"', {"5f0c2d9e71b841a7"}),
        ('"5f0c2d9e71b841a7-gzip-gzip"', set()),
        ('"-gzip"', set()),
        ("5f0c2d9e71b841a7", set()),
        ('x"5f0c2d9e71b841a7"', set()),
        ('"5f0c2d9e71b841a7", x', set()),
        ('"5f0c2d9e71b841a7 OR 1=1"', set()),
        ('"canary"', set()),
        ('""', set()),
        ("", set()),
        ('"' * 4096, set()),
    ],
    ids=lambda value: "" if isinstance(value, set) else str(value)[:30],
)
def test_a_condition_names_versions_by_tags(header: str | None, versions: set[str] | None) -> None:
    assert versions_of(header) == versions


@pytest.mark.parametrize("suffix", ["-gzip", "--gzip", "-br", "-zstd", "-deflate"])
@pytest.mark.parametrize("weak", ["", "W/"])
def test_what_a_proxy_adds_to_a_tag_is_overlooked(suffix: str, weak: str) -> None:
    given = f'{weak}"5f0c2d9e71b841a7{suffix}"'

    assert matches(given, '"5f0c2d9e71b841a7"')
    assert matches(f'"1", {given}', '"5f0c2d9e71b841a7"')
    assert versions_of(given) == frozenset({Version("5f0c2d9e71b841a7")})
    for other in (f"{suffix}{suffix}", suffix.upper(), f"{suffix}x", f";{suffix[1:]}", "-identity", "-"):
        assert not matches(f'{weak}"5f0c2d9e71b841a7{other}"', '"5f0c2d9e71b841a7"')
        assert versions_of(f'{weak}"5f0c2d9e71b841a7{other}"') == frozenset()


# -- Retry-After


@pytest.mark.parametrize(
    ("seen", "seconds"),
    [
        (job(), None),
        (job(status=JobStatus.COMPLETED), None),
        (job(status=JobStatus.PENDING, scheduled_at=at(12.2)), 13),
        (job(status=JobStatus.PENDING, scheduled_at=at(0.1)), 1),
        (job(status=JobStatus.PENDING, scheduled_at=at(300)), 300),
        (job(status=JobStatus.PENDING, scheduled_at=at(86_400)), 300),
        (job(status=JobStatus.PENDING, scheduled_at=at(-20), started_at=None, completed_at=None), 5),
        (job(status=JobStatus.PENDING, scheduled_at=None, started_at=None, completed_at=None), 30),
        (job(status=JobStatus.PENDING, scheduled_at=NOW, started_at=None, completed_at=None), 1),
        (job(status=JobStatus.RUNNING, started_at=at(-1), completed_at=None), 1),
        (job(status=JobStatus.RUNNING, started_at=at(-41), completed_at=None), 11),
        (job(status=JobStatus.RUNNING, started_at=at(-4000), completed_at=None, scheduled_at=at(-4000)), 30),
        (job(status=JobStatus.RUNNING, created_at=at(60), started_at=at(60), completed_at=None), 1),
        (job(pending_retry=PendingRetry(RETRY, at(-2))), 1),
        (job(pending_retry=PendingRetry(RETRY, at(-40))), 10),
        (job(pending_retry=PendingRetry(RETRY, at(40))), 20),
        (job(pending_retry=PendingRetry(RETRY, at(-4000)), redriven_at=at(-8)), 2),
    ],
)
def test_a_job_says_when_to_look_again_while_it_is_not_done(seen: Job, seconds: int | None) -> None:
    assert JobView().retry_after(seen, NOW) == seconds


@given(
    st.sampled_from(JobStatus),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
)
def test_whatever_the_clocks_say_the_wait_is_bounded(
    status: JobStatus, scheduled_at: datetime | None, started_at: datetime | None, created_at: datetime
) -> None:
    seen = job(status=status, scheduled_at=scheduled_at, started_at=started_at, created_at=created_at)

    seconds = JobView().retry_after(seen, NOW)

    assert seconds is None if seen.done else seconds is not None and 1 <= seconds <= 300


@pytest.mark.parametrize(
    ("seen", "seconds"),
    [
        (retry(requested_at=NOW), 1),
        (retry(requested_at=at(-8)), 2),
        (retry(), 15),
        (retry(requested_at=at(-4000)), 30),
        (retry(requested_at=at(60)), 1),
        (retry(requested_at=at(-4000), redriven_at=at(-8)), 2),
        (retry(state=RetryState.APPLIED), None),
        (retry(state=RetryState.REJECTED), None),
    ],
)
def test_a_retry_says_when_to_look_again_until_it_is_settled(seen: Retry, seconds: int | None) -> None:
    assert RetryView().retry_after(seen, NOW) == seconds


def test_a_batch_s_tag_changes_where_what_was_settled_is_pruned_before_the_next_look() -> None:
    queued = Batch(
        id=BatchId(UUID(int=1)), project_id=ProjectId("p1"), actor="alice", reason=None, filter=None, requested_at=NOW,
        total=3, queued=3, applied=0, rejected=0, cancelled=0, dead_lettered=0,
    )  # fmt: skip
    pruned = msgspec.structs.replace(queued, queued=0)

    assert BatchView().body(queued) != BatchView().body(pruned)
    assert BatchView().etag(queued) != BatchView().etag(pruned)
