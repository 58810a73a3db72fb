"""A database whose making was cut short is not healthy."""

import pytest

from tests.containers.stack import Stack
from tests.eventually import eventually


@pytest.mark.parametrize("done", ["POSTGRES_DB was not made", "its users were not made"])
async def test_a_volume_that_was_cut_short_is_not_healthy(new_stack: Stack, done: str) -> None:
    new_stack.up("postgres")
    drop = "DROP DATABASE redrive" if done.startswith("POSTGRES_DB") else "ALTER DATABASE redrive OWNER TO postgres"
    psql = ("psql", "--quiet", "--username=postgres", "--dbname=postgres", "--command")
    new_stack.run("postgres", *psql, drop)
    new_stack.compose("restart", "postgres")

    def answers() -> bool:
        health = new_stack.inspected("{{json .State.Health.Log}}", new_stack.container("postgres"))
        return "cut short" in health[-1]

    await eventually(answers, within_s=60, every_s=0.5)
    (status,) = new_stack.inspected("{{.State.Health.Status}}", new_stack.container("postgres"))
    assert status != "healthy"
