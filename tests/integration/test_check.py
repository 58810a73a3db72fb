"""`redrive check` on real servers."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import aio_pika
import asyncpg
import pytest

from shared.migrations import names, version_of
from shared.sql import statements
from tests.queues import Queues

COMMAND = Path(sys.executable).with_name("redrive")


class Answer(NamedTuple):
    status: int
    out: str
    err: str


async def redrive(*args: str, **settings: str) -> Answer:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDRIVE_")}
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *args,
        env=kept | {"REDRIVE_JWT_SECRET": "s" * 40} | {f"REDRIVE_{name}": value for name, value in settings.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), err.decode())


async def test_check_finds_all_in_place(database_url: str, amqp_url: str) -> None:
    answer = await redrive("check", DATABASE_URL=database_url, DATABASE_READ_URL=database_url, AMQP_URL=amqp_url)

    assert answer.status == 0, answer
    assert answer.err == ""
    assert {line.split()[0] for line in answer.out.splitlines()} == {"ok"}
    for word in ("api", "worker", "database:", "database for reading:", "migrations", "broker:"):
        assert word in answer.out


async def test_check_without_a_broker_says_how_retries_travel(database_url: str) -> None:
    answer = await redrive("check", DATABASE_URL=database_url)

    assert answer.status == 0
    assert "ok       broker: none, retries are dispatched through the ledger" in answer.out


async def test_check_names_a_missing_migration(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM redrive.schema_migrations WHERE version = $1", version_of(names()[1]))
    await connection.close()

    answer = await redrive("check", DATABASE_URL=database_url)

    assert answer.status == 1
    assert re.search(r"failed   database: 1 of \d migrations are missing", answer.out)
    assert answer.err == "redrive: not ready: see the lines that say failed\n"


async def test_check_sees_a_queue_that_is_not_as_it_should_be(database_url: str, amqp_url: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("redrive.retries", durable=True)

    answer = await redrive("check", DATABASE_URL=database_url, AMQP_URL=amqp_url)

    assert answer.status == 1
    assert "failed   broker: a queue or the exchange is there already, with other arguments" in answer.out


async def test_check_looks_where_it_may_not_declare(
    database_url: str, least_privileged_amqp_url: str, queues: Queues
) -> None:
    there = await redrive("check", DATABASE_URL=database_url, AMQP_URL=least_privileged_amqp_url)
    await queues.delete("redrive.retries.bulk")
    gone = await redrive("check", DATABASE_URL=database_url, AMQP_URL=least_privileged_amqp_url)

    assert there.status == 0, there
    assert "ok       broker: answers, and this user may publish to the exchange and read the queues" in there.out
    assert "note     broker: not looked at, as this user may have no right to: the queues' arguments" in there.out
    assert gone.status == 1
    assert re.search(
        r"^failed   broker: NOT_FOUND - no queue 'redrive.retries.bulk' in vhost '\S+'; and this user may not declare",
        gone.out,
        re.MULTILINE,
    )


async def test_check_disturbs_no_message(database_url: str, amqp_url: str) -> None:
    async with Queues.on(amqp_url) as queues:
        await queues.publish(b"{}")
        assert (await redrive("check", DATABASE_URL=database_url, AMQP_URL=amqp_url)).status == 0
        assert await queues.waiting() == 1


async def test_check_names_the_index_that_a_large_table_is_slow_without(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """
        INSERT INTO control_plane.jobs (id, project_id, type) SELECT gen_random_uuid(), 'p1', 'email'
        FROM generate_series(1, 100000);
        ANALYZE control_plane.jobs;
        """
    )
    slow = await redrive("check", DATABASE_URL=database_url)
    await connection.execute("CREATE INDEX ON control_plane.jobs (project_id, status, created_at, id)")
    await connection.close()

    assert slow.status == 0  # it works, slowly
    missing, use = "(project_id, status, created_at, id)", "counts, lists and bulk retries of the jobs of one status"
    assert [line for line in slow.out.splitlines() if line.startswith("warning")] == [
        f"warning  database: control_plane.jobs has no index on {missing}, which is for {use}"
    ]
    assert "warning" not in (await redrive("check", DATABASE_URL=database_url)).out


@pytest.mark.parametrize(("package", "file"), [("cli.local", "demo"), ("cli.checking", "check")])
async def test_every_statement_of_the_commands_fits_the_schema(database_url: str, package: str, file: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(  # as an adapter makes it
            "CREATE FUNCTION control_plane.schema_version() RETURNS bigint LANGUAGE sql RETURN 1"
        )
        for sql in statements(file, package).values():
            await connection.prepare(sql.replace("FIND_JOBS", statements("jobs")["find"]))
    finally:
        await connection.close()
