"""A relation that no program can work with: api and worker say so once at their start, and answer 503 until it fits.

What is asked for is a view over another system's table; a table of the wrong shape is refused in the same way.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import asyncpg
import pytest

import shared.migrations
import shared.relation
from api.serving import readiness, run
from shared.database import Database
from shared.migrations import migrate, names
from shared.ops import Status
from shared.relation import faults_of
from shared.settings import ApiSettings, read
from tests.api_server import Serve
from tests.eventually import eventually
from tests.logs import Log
from tests.ops_port import OpsPort
from tests.servers.processes import free_port
from tests.tokens import SECRET, token
from tests.workers import a_worker

COLUMNS: Final = {
    "id": "no",
    "project_id": "'p1'::text",
    "type": "'work'::text",
    "payload": "'{}'::jsonb",
    "status": "CASE state WHEN 'dead' THEN 'failed' ELSE 'pending' END",
    "attempts": "tries",
    "max_attempts": "tries + 1",
    "last_error": "error",
    "scheduled_at": "due",
    "started_at": "NULL::timestamptz",
    "completed_at": "NULL::timestamptz",
    "created_at": "made",
}
THEIRS: Final = """
CREATE SCHEMA theirs;
CREATE TABLE theirs.work (
    no bigint PRIMARY KEY, state text NOT NULL DEFAULT 'dead', tries int NOT NULL DEFAULT 1, error text,
    due timestamptz NOT NULL DEFAULT now(), made timestamptz NOT NULL DEFAULT now()
);
INSERT INTO theirs.work (no) VALUES (1), (2);
CREATE FUNCTION theirs.retry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE theirs.work SET state = 'waiting' WHERE no = old.id;
    RETURN new;
END
$$;
CREATE SCHEMA control_plane;
"""
FITS: Final[dict[str, str | None]] = {}
WITHOUT_ERROR: Final[dict[str, str | None]] = {"last_error": None}
TRIGGER: Final = """
CREATE TRIGGER retry INSTEAD OF UPDATE ON control_plane.jobs FOR EACH ROW EXECUTE FUNCTION theirs.retry();
"""
VERSION: Final = """
COMMENT ON VIEW control_plane.jobs IS 'redrive adapter some-system; tested with 1.2; schema version 24 to 26';
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint LANGUAGE sql RETURN {version};
"""


def view(changed: dict[str, str | None], *more: str) -> str:
    """SQL for the view with other columns than it should have; None: without that column."""
    columns = {**COLUMNS, **changed}
    shown = ", ".join(f"{expression} AS {name}" for name, expression in columns.items() if expression is not None)
    return (
        f"DROP VIEW IF EXISTS control_plane.jobs; CREATE VIEW control_plane.jobs AS SELECT {shown} FROM theirs.work;"
        + ("".join(more))
    )


async def execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture
async def url(empty_database_url: str) -> str:
    """A database with jobs of another system, where Redrive is installed beside a view that fits."""
    await execute(empty_database_url, THEIRS + view(FITS, TRIGGER))
    await asyncio.to_thread(migrate, empty_database_url)
    return empty_database_url


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.relation, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(shared.relation, "LOOK_EVERY_S", 0.05)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with Log(caplog).recording() as recorded:
        yield recorded


def refusals(log: Log) -> list[list[str]]:
    """What each line that says that jobs cannot be served names."""
    return [line["faults"] for line in log.lines if line["event"] == "jobs cannot be served"]


class RunningApi(OpsPort):
    """An api as a program runs it, with its ops port."""

    def __init__(self, settings: ApiSettings) -> None:
        super().__init__(settings.ops_port)
        self._port = settings.port

    async def call(self, method: str, path: str) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token(exp=4_000_000_000)}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"http://127.0.0.1:{self._port}{path}") as answer,
        ):
            return answer.status, await answer.json()


@asynccontextmanager
async def an_api(url: str, **known: object) -> AsyncIterator[RunningApi]:
    settings = read(
        ApiSettings,
        **{
            "database_url": url, "jwt_secret": SECRET, "port": free_port(), "ops_port": free_port(),
            "job_id": "bigint", "shutdown_grace": 1, **known,
        },
    )  # fmt: skip
    started, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run(settings, stop=stop, started=started))
    try:
        async with asyncio.timeout(10):
            await started.wait()
        yield RunningApi(settings)
    finally:
        stop.set()
        await task


UNFIT: Final = [
    pytest.param(view(WITHOUT_ERROR, TRIGGER), "control_plane.jobs has no column last_error", id="a column is missing"),
    pytest.param(
        view({"created_at": "made::text"}, TRIGGER),
        "control_plane.jobs.created_at is of type text, wanted: timestamp with time zone",
        id="a time is text",
    ),
    pytest.param(
        view({"id": "no::text"}, TRIGGER), "control_plane.jobs.id is of type text, wanted: bigint", id="an id is text"
    ),
    pytest.param(
        view(FITS),
        "control_plane.jobs cannot be updated: a view needs an INSTEAD OF UPDATE trigger, and it has none",
        id="no trigger",
    ),
    pytest.param(
        view(FITS, TRIGGER, VERSION.format(version=27)),
        "control_plane.jobs is the adapter some-system, tested with 1.2: that system's tables have version 27,"
        " and 24 to 26 was tested",
        id="another version",
    ),
]


@pytest.mark.parametrize(("change", "fault"), UNFIT)
async def test_the_api_names_what_is_wrong_once_and_answers_503(url: str, log: Log, change: str, fault: str) -> None:
    await execute(url, change)
    async with an_api(url) as api:
        answers = [
            await api.call(*call)
            for call in (
                ("GET", "/api/jobs/1"),
                ("GET", "/api/jobs"),
                ("GET", "/api/jobs?ids=1,2"),
                ("GET", "/api/jobs/stats"),
                ("GET", "/api/failures"),
                ("POST", "/api/jobs/1/retry"),
                ("GET", "/api/retries"),
            )
        ]
        readiness, _ = await api.health()
        about, _ = await api.call("GET", "/api/me")

    assert {(status, body["code"], body["retryable"]) for status, body in answers} == {(503, "unavailable", True)}
    assert {body["detail"] for _, body in answers} == {
        "The jobs are not stored in the form that is served here; the reason is in the log of the api."
    }
    assert (readiness, about) == (503, 200)
    assert refusals(log) == [[fault]]
    assert len(log.troubles()) == 1  # not one for each request


@pytest.mark.parametrize(("change", "fault"), UNFIT)
async def test_the_worker_names_it_once_and_takes_no_request(url: str, log: Log, change: str, fault: str) -> None:
    await execute(url, change)
    async with a_worker(url, ready=False, job_id="bigint") as worker:

        async def is_unready() -> bool:
            return await worker.readiness() == 503

        await eventually(lambda: refusals(log))
        await eventually(is_unready)
        assert (await worker.health())[1]["checks"]["database"] == "unavailable"

    assert refusals(log) == [[fault]]


@pytest.mark.usefixtures("impatient")
async def test_what_is_mended_is_served_without_a_restart(url: str, log: Log) -> None:
    await execute(url, view(WITHOUT_ERROR))
    async with an_api(url) as api, a_worker(url, ready=False, job_id="bigint") as worker:
        refused, _ = await api.call("GET", "/api/jobs/1")
        await eventually(lambda: len(refusals(log)) == 2)  # one of each program
        await execute(url, view(FITS, TRIGGER))

        async def are_ready() -> bool:
            return await api.readiness() == 200 and await worker.ready()

        await eventually(are_ready, within_s=20)
        accepted, retry = await api.call("POST", "/api/jobs/1/retry")

        async def is_applied() -> bool:
            _, settled = await api.call("GET", f"/api/retries/{retry['data']['id']}")
            return bool(settled["data"]["state"] == "applied")

        await eventually(is_applied, within_s=20)

    assert (refused, accepted) == (503, 202)
    told = ["control_plane.jobs has no column last_error", UNFIT[3].values[1]]
    assert refusals(log)[:2] == [told, told]  # a look in the middle of the mending may name one of them
    assert [line["event"] for line in log.lines].count("jobs can be served") == 2


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("DROP VIEW control_plane.jobs", "control_plane.jobs is not there"),
        (view(WITHOUT_ERROR, TRIGGER), "control_plane.jobs has no column last_error"),
        ("DROP TRIGGER retry ON control_plane.jobs", UNFIT[3].values[1]),
    ],
)
@pytest.mark.usefixtures("impatient")
async def test_what_is_changed_while_they_run_is_noticed_and_healed(
    url: str, log: Log, change: str, fault: str
) -> None:
    async with an_api(url) as api, a_worker(url, job_id="bigint") as worker:
        await execute(url, change)

        async def are(status: int) -> bool:
            return [await program.readiness() for program in (api, worker)] == [status, status]

        await eventually(lambda: are(503))
        await eventually(lambda: len(refusals(log)) >= 2)  # a worker is unready as soon as a statement fails
        refused, _ = await api.call("GET", "/api/jobs/1")
        told = refusals(log)
        await execute(url, view(FITS, TRIGGER))
        await eventually(lambda: are(200))
        served, _ = await api.call("GET", "/api/jobs/1")

    assert (refused, served, told) == (503, 200, [[fault]] * 2)
    in_the_middle_of_mending = refusals(log)[2:]
    assert [each for each in in_the_middle_of_mending if each != ["control_plane.jobs is not there"]] == []


async def test_the_api_is_not_ready_before_it_listens(url: str, serve: Serve) -> None:
    api = await serve(url, job_id="bigint")

    assert (await readiness(api.parts, listening=False)).checks["process"] is Status.UNAVAILABLE
    assert (await readiness(api.parts)).status is Status.OK


async def test_no_program_is_ready_before_the_newest_migration(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an upgrade, in which new pods start while the old ones go on."""
    monkeypatch.setattr(shared.migrations, "LOOK_AGAIN_S", 0.05)
    version = names()[-1].partition("_")[0]
    await execute(database_url, f"DELETE FROM redrive.schema_migrations WHERE version = '{version}'")
    async with an_api(database_url, job_id="uuid") as api, a_worker(database_url, ready=False) as worker:
        await eventually(lambda: [line["event"] for line in log.lines].count("migrations missing") == 2)
        before = [await program.health() for program in (api, worker)]
        await execute(database_url, f"INSERT INTO redrive.schema_migrations VALUES ('{version}')")

        async def are_ready() -> bool:
            return [await program.readiness() for program in (api, worker)] == [200, 200]

        await eventually(are_ready)

    assert [(status, body["checks"]["schema"]) for status, body in before] == [(503, "unavailable")] * 2
    assert [line["event"] for line in log.lines].count("migrations missing") == 2  # once each


async def test_who_only_reads_needs_no_trigger(url: str, log: Log) -> None:
    await execute(url, view(FITS))
    async with an_api(url, read_only=True) as api:
        status, body = await api.call("GET", "/api/jobs/1")

    assert (status, body["data"]["status"], refusals(log)) == (200, "failed", [])


ODD: Final = {
    "text": "'1'::text", "integer": "1", "bytea": "'\\x00'::bytea"
}  # fmt: skip
PATHS: Final = ("/api/jobs/1", "/api/jobs", "/api/jobs/stats", "/api/jobs?status=failed", "/api/failures")


async def test_no_type_of_a_column_is_an_internal_error(url: str, serve: Serve) -> None:
    """Every column as each of three types is served, or named as unfit, or the jobs alone are unreadable."""
    for name in COLUMNS:
        for kind, expression in ODD.items():
            await execute(url, view({name: expression}, TRIGGER))
            async with Database(url, program="test", timeout_s=2, pool_size=1).opened() as database:
                faults = await faults_of(database.look, job_id="bigint", updates=True)
            if faults:
                assert f"control_plane.jobs.{name} is of type " in faults[0], kind
                continue
            api = await serve(url, job_id="bigint")
            statuses = {path: (await api.get(path)).status for path in PATHS}
            assert set(statuses.values()) <= {200, 404, 409}, (name, kind, statuses)
            await api.client.close()
