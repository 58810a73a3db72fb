"""The database moves, changes its logins, or stands behind a name that leads elsewhere: nothing is restarted."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest

from api.serving import readiness
from shared.connections import IN_VAIN_S, MOST_IN_VAIN, Connector, _Refused
from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.gauges import ReplicaLag, replayed, written
from shared.models import Outcome
from shared.ops import Status
from shared.postgres_url import Host, PostgresUrl
from shared.secret import FileSecret
from shared.settlement import Settled
from tests.api_server import Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, a_retry_of
from tests.ledger import Ledger
from tests.servers.postgres import LocalPostgres
from tests.servers.processes import free_port, run_apart
from tests.servers.proxy import Proxy
from tests.tokens import token

pytestmark = pytest.mark.xdist_group("private servers")


class Pair(NamedTuple):
    """The URLs of one migrated database: where it is written, and where a standby shows it."""

    writer: str
    reader: str


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[LocalPostgres, LocalPostgres]]:
    """A primary and its standby."""
    primary = LocalPostgres()
    standby = LocalPostgres(follows=primary)
    try:
        run_apart(primary.start())
        run_apart(primary.postgres.prepare())
        run_apart(standby.start())
        yield primary, standby
    finally:
        run_apart(standby.close())
        run_apart(primary.close())


@pytest.fixture
async def pair(servers: tuple[LocalPostgres, LocalPostgres]) -> AsyncIterator[Pair]:
    primary, standby = servers
    async with primary.postgres.database() as writer:
        reader = standby.postgres.url_of(urlsplit(writer).path[1:])

        async def shown() -> bool:
            try:
                await (await asyncpg.connect(reader)).close()
            except asyncpg.InvalidCatalogNameError:
                return False
            return True

        await eventually(shown)
        yield Pair(writer, reader)


def database_at(url: str, *, writes: bool = True, replica: bool = False, pool_size: int = 2) -> Database:
    return Database(url, program="test", timeout_s=2, pool_size=pool_size, writes=writes, replica=replica)


async def test_a_pool_that_was_led_to_a_reader_follows_the_name_to_the_writer(pair: Pair) -> None:
    async with Proxy.to(pair.writer) as name, database_at(name.url_of(pair.writer)).opened() as database:
        await database.probe()
        name.lead_to(pair.reader)
        await name.reset()
        await eventually(lambda: refused(database, "is read-only, and a server that takes writes is needed"))
        name.lead_to(pair.writer)

        await database.probe()


async def refused(database: Database, words: str) -> bool:
    with pytest.raises(DatabaseUnavailable) as error:
        await database.probe()
    return words in str(error.value)


async def test_calls_without_a_server_that_takes_writes_cost_the_standby_a_few_connections_however_many_they_are(
    pair: Pair,
) -> None:
    async with (
        Proxy.to(pair.reader) as name,
        database_at(name.url_of(pair.reader), pool_size=4).opened() as database,
    ):

        async def ask() -> None:
            with pytest.raises(DatabaseUnavailable, match="read-only"):
                await database.ping()

        async def answered() -> bool:
            try:
                await database.ping()
            except DatabaseUnavailable:
                return False
            return True

        began_at = time.monotonic()
        for _ in range(200):
            await asyncio.gather(*(ask() for _ in range(4)))
        spent_s = time.monotonic() - began_at
        assert name.connections_total <= MOST_IN_VAIN * (1 + spent_s / IN_VAIN_S)

        name.lead_to(pair.writer)
        await eventually(answered, within_s=IN_VAIN_S + 1)


async def test_a_connection_that_becomes_read_only_is_not_kept(pair: Pair) -> None:
    """What a managed server does when its disk is full, and when it demotes without ending sessions."""
    async with database_at(pair.writer, pool_size=1).opened() as database:
        await database.fetch("SET default_transaction_read_only = on")
        with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
            await database.fetch("CREATE TABLE redrive.refused ()")

        await database.fetch("CREATE TABLE redrive.accepted ()")


async def test_readiness_asks_for_a_writer_on_the_very_connections_that_are_used(pair: Pair) -> None:
    async with database_at(pair.writer, pool_size=1).opened() as database:
        await database.fetch("SET default_transaction_read_only = on")
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await database.probe()

        await database.probe()


async def test_of_several_hosts_the_one_that_takes_writes_is_used(pair: Pair) -> None:
    reader, writer = urlsplit(pair.reader), urlsplit(pair.writer)
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{reader.port},127.0.0.1:{writer.port}"

    async with database_at(f"postgresql://postgres@{hosts}{writer.path}").opened() as database:
        await database.probe()
    async with database_at(
        f"postgresql://postgres@{hosts}{writer.path}?target_session_attrs=standby", writes=False
    ).opened() as database:
        assert (await database.fetch("SELECT pg_is_in_recovery()"))[0][0]


def standby_first(pair: Pair, *, writer_port: int | None = None, more: str = "") -> str:
    """A URL with both hosts of the pair, the standby before the primary."""
    reader, writer = urlsplit(pair.reader), urlsplit(pair.writer)
    return f"postgresql://postgres@127.0.0.1:{reader.port},127.0.0.1:{writer_port or writer.port}{writer.path}{more}"


async def is_standby(database: Database) -> bool:
    return bool((await database.fetch("SELECT pg_is_in_recovery()"))[0][0])


@pytest.mark.parametrize(
    "more", ["", "?options=-cdefault_transaction_read_only%3Don"], ids=["role that may write", "role that may not"]
)
async def test_an_api_that_only_reads_prefers_the_primary_and_a_replica_is_any_host(pair: Pair, more: str) -> None:
    url = standby_first(pair, more=more)

    async with (
        database_at(url, writes=False).opened() as primary,
        database_at(url, writes=False, replica=True).opened() as replica,
    ):
        assert not await is_standby(primary)
        assert await is_standby(replica)


async def test_a_standby_serves_an_api_that_only_reads_until_the_primary_is_back(
    pair: Pair, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.database.PREFER_AGAIN_S", 0)
    async with Proxy.to(pair.writer) as primary:
        await primary.refuse()
        api = await serve(standby_first(pair, writer_port=primary.port), read_only=True)
        meanwhile = await readiness(api.parts)
        served_by_standby = await is_standby(api.parts.database)
        await primary.heal()
        after = await readiness(api.parts)

        assert (meanwhile.status, after.status) == (Status.OK, Status.OK)
        assert served_by_standby
        assert not await is_standby(api.parts.database)


@pytest.mark.parametrize("replica", [False, True])
async def test_the_primary_serves_readers_that_prefer_a_standby_until_one_is_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *, replica: bool
) -> None:
    monkeypatch.setattr("shared.database.PREFER_AGAIN_S", 0)
    async with Proxy.to(pair.reader) as standby:
        await standby.refuse()
        url = standby_first(Pair(pair.writer, standby.url_of(pair.reader)), more="?target_session_attrs=prefer-standby")
        async with database_at(url, writes=False, replica=replica).opened() as database:
            assert not await is_standby(database)
            await standby.heal()
            await database.probe()

            assert await is_standby(database)


async def test_a_standby_is_kept_until_it_is_time_to_look_for_the_primary(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy.to(pair.writer) as primary, Proxy.to(pair.reader) as standby:
        await primary.refuse()
        url = standby_first(Pair(pair.writer, standby.url_of(pair.reader)), writer_port=primary.port)
        async with database_at(url, writes=False).opened() as database:
            for _ in range(3):
                await database.probe()
            assert standby.connections_total == 1

            monkeypatch.setattr("shared.database.PREFER_AGAIN_S", 0)
            for _ in range(3):
                await database.probe()
            assert standby.connections_total == 3  # the first probe used the one that was open


async def test_connections_that_are_opened_at_the_same_time_end_at_the_primary_all_of_them(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gives the primary up and takes the standby; the second began before that, and gets the primary."""
    try_host = Connector._try
    both_wait, fell_back = asyncio.Event(), asyncio.Event()
    tried = 0

    async def try_slow_primary(
        connector: Connector,
        url: PostgresUrl,
        host: Host,
        *rest: Any,  # noqa: ANN401 - passed on as it came
        within_s: float,
    ) -> object:
        nonlocal tried
        if host.port == urlsplit(pair.writer).port:
            tried += 1
            if tried == 1:
                await both_wait.wait()
                return _Refused("no answer in time")
            both_wait.set()
            await fell_back.wait()
        return await try_host(connector, url, host, *rest, within_s=within_s)

    monkeypatch.setattr(Connector, "_try", try_slow_primary)
    async with database_at(standby_first(pair), writes=False).opened() as database:
        async with asyncio.TaskGroup() as tasks:
            opening = [tasks.create_task(is_standby(database)) for _ in range(2)]
            await asyncio.wait(opening, return_when=asyncio.FIRST_COMPLETED)
            fell_back.set()
        assert sorted(task.result() for task in opening) == [False, True]

        assert not any(await asyncio.gather(is_standby(database), is_standby(database)))


async def test_a_silent_host_leaves_the_others_their_time_and_the_last_good_one_comes_first(pair: Pair) -> None:
    async with Proxy.to(pair.writer) as silent, Proxy.to(pair.writer) as good:
        await silent.black_hole()
        hosts = f"127.0.0.1:{silent.port},127.0.0.1:{good.port}"
        async with database_at(f"postgresql://postgres@{hosts}{urlsplit(pair.writer).path}").opened() as database:
            await database.ping()
            tried = silent.connections_total
            await good.reset()
            await eventually_pinged(database)

        assert tried == silent.connections_total == 1


async def eventually_pinged(database: Database) -> None:
    async def answers() -> bool:
        try:
            await database.ping()
        except DatabaseUnavailable:
            return False
        return True

    await eventually(answers)


@pytest.fixture
async def synchronous(servers: tuple[LocalPostgres, LocalPostgres], pair: Pair) -> AsyncIterator[Pair]:
    """The pair, with commits that wait for the standby."""
    primary, standby = servers
    admin = await asyncpg.connect(primary.postgres.url)
    try:
        await admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await admin.execute("SELECT pg_reload_conf()")

        async def in_effect() -> bool:
            return bool(await admin.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"))

        await eventually(in_effect)
        yield pair
    finally:
        await standby.thaw()
        await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.close()


async def give_up_waiting_commits(jobs: JobMaker) -> None:
    """Cancel what waits for the standby, as a driver does whose call timed out: from then on the change is shown."""

    async def none_waits() -> bool:
        sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        return not await jobs.pool.fetch(sql)

    await eventually(none_waits)


@pytest.mark.parametrize("keyed", [True, False])
async def test_a_202_that_repeats_a_request_waits_for_the_standby_too(
    servers: tuple[LocalPostgres, LocalPostgres], synchronous: Pair, serve: Serve, *, keyed: bool
) -> None:
    """The first request gave its commit up, and from then on the primary shows what no standby has."""
    api = await serve(synchronous.writer)
    headers = {"Idempotency-Key": "again"} if keyed else {}
    async with JobMaker.on(synchronous.writer) as jobs:
        job = await jobs.failed()
        await servers[1].freeze()
        first = await api.post(f"/api/jobs/{job.id}/retry", headers=headers)
        await give_up_waiting_commits(jobs)
        shown = await api.get(f"/api/jobs/{job.id}")
        second = await api.post(f"/api/jobs/{job.id}/retry", headers=headers)
        await servers[1].thaw()
        third = await api.post(f"/api/jobs/{job.id}/retry", headers=headers)

    assert [answer.status for answer in (first, second, third)] == [503, 503, 202]
    assert third.data["id"] == shown.data["pending_retry"]["id"]


@pytest.mark.parametrize("apart", [True, False])
async def test_a_message_of_a_settled_request_is_not_acknowledged_before_the_standby_has_it(
    servers: tuple[LocalPostgres, LocalPostgres], synchronous: Pair, *, apart: bool
) -> None:
    """Neither by a worker that settles it, nor by one that takes it apart."""
    async with JobMaker.on(synchronous.writer) as jobs, database_at(synchronous.writer).opened() as database:
        ledger = Ledger(database)
        accepted = await ledger.retries.accept(a_retry_of(await jobs.failed()))
        (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
        await servers[1].freeze()
        with pytest.raises(DatabaseUnavailable):
            await ledger.settlement.apply([row.message])
        await give_up_waiting_commits(jobs)
        assert await jobs.pool.fetchval("SELECT state FROM redrive.retry_requests") == "applied"
        settle = ledger.settlement.take_apart if apart else ledger.settlement.apply
        with pytest.raises(DatabaseUnavailable):
            await settle([row.message])
        await servers[1].thaw()

        expected = {} if apart else {accepted.retry.id: Settled(Outcome.APPLIED, None)}
        assert await settle([row.message]) == expected


async def test_a_rotated_login_is_read_from_its_file_for_new_connections(pair: Pair, tmp_path: Path) -> None:
    parts = urlsplit(pair.writer)

    def url_of(user: str) -> str:
        return parts._replace(netloc=f"{user}@127.0.0.1:{parts.port}").geturl()

    admin = await asyncpg.connect(pair.writer)
    try:
        for user in ("rotated_old", "rotated_new"):
            await admin.execute(f"CREATE ROLE {user} LOGIN SUPERUSER")
        file = tmp_path / "url"
        file.write_text(url_of("rotated_old"))
        url = FileSecret(file, url_of("rotated_old"), str)
        async with Database(url, program="test", timeout_s=2, pool_size=1).opened() as database:
            assert (await database.fetch("SELECT session_user"))[0][0] == "rotated_old"
            file.write_text(url_of("rotated_new"))
            await admin.execute("ALTER ROLE rotated_old NOLOGIN")
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated_old'")
            await eventually_pinged(database)

            assert (await database.fetch("SELECT session_user"))[0][0] == "rotated_new"
    finally:
        for user in ("rotated_old", "rotated_new"):
            await admin.execute(f"DROP ROLE IF EXISTS {user}")
        await admin.close()


async def test_a_server_that_refuses_is_told_in_its_own_words(pair: Pair) -> None:
    parts = urlsplit(pair.writer)
    told = {
        parts._replace(path="/nowhere").geturl(): 'database "nowhere" does not exist',
        parts._replace(netloc=f"unknown_role@127.0.0.1:{parts.port}").geturl(): 'role "unknown_role" does not exist',
        parts._replace(netloc=f"postgres@127.0.0.1:{free_port()}").geturl(): "connection refused",
        f"{pair.writer}?sslmode=require": "the server does not speak TLS",
    }

    for url, words in told.items():
        async with database_at(url).opened() as database:
            with pytest.raises(DatabaseUnavailable, match=words):
                await database.ping()


async def test_nothing_is_sent_at_the_start_or_kept_prepared_for_a_pooler(pair: Pair) -> None:
    async with Database(pair.writer, program="pooled", timeout_s=2, pool_size=1, pooled=True).opened() as database:
        ((inside, jit, bounded),) = await database.fetch(
            "SELECT current_setting('application_name'), current_setting('jit'), current_setting('statement_timeout')"
        )
        async with database.transaction() as session:
            ((prepared,),) = await session.fetch("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")

    assert (inside, jit, bounded, prepared) == ("pooled", "off", "1800ms", 0)


async def test_a_cursor_of_one_process_and_login_continues_with_another(pair: Pair, serve: Serve) -> None:
    parts = urlsplit(pair.writer)
    admin = await asyncpg.connect(pair.writer)
    try:
        await admin.execute("CREATE ROLE another_pod LOGIN IN ROLE redrive_api")
        other = parts._replace(netloc=f"another_pod@127.0.0.1:{parts.port}").geturl()
        one, two = await serve(pair.writer), await serve(other, jwt_secret="x" * 40)
        async with JobMaker.on(pair.writer) as jobs:
            for _ in range(3):
                await jobs.failed()
            page = await one.get("/api/jobs?limit=2")
            rest = await two.get(f"/api/jobs?limit=2&cursor={page.json['next_cursor']}", token=token(key="x" * 40))

        assert [len(page.data), len(rest.data)] == [2, 1]
    finally:
        await admin.execute("DROP ROLE IF EXISTS another_pod")
        await admin.close()


async def test_a_replica_that_is_behind_shows_no_waiter_the_failure_from_before(
    servers: tuple[LocalPostgres, LocalPostgres], pair: Pair, serve: Serve
) -> None:
    late = LocalPostgres(follows=servers[0], behind_s=3600)
    try:
        async with JobMaker.on(pair.writer) as jobs:
            job = await jobs.failed()
            await asyncio.to_thread(run_apart, late.start())
            behind = late.postgres.url_of(urlsplit(pair.writer).path[1:])
            api = await serve(pair.writer, database_read_url=behind, watch_interval=0.05)
            await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", job.id)

            assert (await api.get(f"/api/jobs/{job.id}")).data["status"] == "failed"
            assert (await api.get(f"/api/jobs/{job.id}?fresh=true")).data["status"] == "completed"
            waited = await api.get(f"/api/jobs/{job.id}", headers={"Prefer": "wait=5"})
            assert waited.data["status"] == "completed"
    finally:
        await asyncio.to_thread(run_apart, late.close())


async def test_the_lag_of_a_replica_is_the_age_of_the_oldest_that_it_has_not_replayed(pair: Pair) -> None:
    lag = ReplicaLag()
    async with (
        database_at(pair.writer).opened() as writer,
        database_at(pair.reader, writes=False).opened() as reader,
        JobMaker.on(pair.writer) as jobs,
    ):
        assert await written(writer) is not None
        assert (await written(reader), await replayed(writer)) == (None, None)

        async def caught_up() -> bool:
            return (await replayed(reader) or 0) >= (await written(writer) or 0)

        control = await asyncpg.connect(pair.reader)
        try:
            await control.execute("SELECT pg_wal_replay_pause()")
            await jobs.failed()
            behind = await replayed(reader)
            ahead = await written(writer)
            assert ahead is not None
            assert behind is not None
            assert ahead > behind
            assert lag.seconds(written=ahead, replayed=behind, now=100) == 0
            assert lag.seconds(written=ahead, replayed=behind, now=105) == 5
            assert lag.seconds(written=ahead + 8, replayed=behind, now=110) == 10
        finally:
            await control.execute("SELECT pg_wal_replay_resume()")
            await control.close()
        await eventually(caught_up)
        assert lag.seconds(written=ahead + 8, replayed=ahead, now=115) == 5  # the later half is still missing
        assert lag.seconds(written=ahead + 8, replayed=ahead + 8, now=120) == 0
