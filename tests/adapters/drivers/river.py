"""River's table; see by_hand.py."""

from tests.adapters.drivers.by_hand import ByHand

_TABLES = """
CREATE TYPE river_job_state AS ENUM (
    'available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled'
);
CREATE TABLE river_job (
    id bigserial PRIMARY KEY,
    state river_job_state NOT NULL DEFAULT 'available',
    attempt smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL CHECK (max_attempts > 0),
    attempted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    finalized_at timestamptz,
    scheduled_at timestamptz NOT NULL DEFAULT now(),
    priority smallint NOT NULL DEFAULT 1 CHECK (priority BETWEEN 1 AND 4),
    args jsonb NOT NULL,
    attempted_by text[],
    errors jsonb[],
    kind text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    queue text NOT NULL DEFAULT 'default',
    tags varchar(255)[] NOT NULL DEFAULT '{}',
    unique_key bytea,
    unique_states bit(8),
    CONSTRAINT finalized_exactly_if_final CHECK (
        (finalized_at IS NOT NULL) = (state IN ('cancelled', 'completed', 'discarded'))
    )
);
CREATE FUNCTION river_job_state_in_bitmask(bitmask bit(8), state river_job_state) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT get_bit(
        bitmask,
        CASE state
            WHEN 'available' THEN 7 WHEN 'cancelled' THEN 6 WHEN 'completed' THEN 5 WHEN 'discarded' THEN 4
            WHEN 'pending' THEN 3 WHEN 'retryable' THEN 2 WHEN 'running' THEN 1 WHEN 'scheduled' THEN 0
        END
    ) = 1
$$;
CREATE UNIQUE INDEX ON river_job (unique_key)
    WHERE unique_key IS NOT NULL AND unique_states IS NOT NULL AND river_job_state_in_bitmask(unique_states, state);
CREATE INDEX ON river_job (state, queue, priority, scheduled_at, id);
CREATE INDEX ON river_job (state, finalized_at) WHERE finalized_at IS NOT NULL;
CREATE TABLE river_migration (
    line text NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (line, version)
);
INSERT INTO river_migration (line, version) SELECT 'main', generate_series(1, 6);
"""

_SYSTEM = ByHand(
    tables=_TABLES,
    insert="""
        INSERT INTO river_job (kind, args, queue, max_attempts, scheduled_at, state)
        VALUES (
            'charge', jsonb_build_object('do', $1::text), $2, 1, now() + $3 * interval '1 s',
            CASE WHEN $3::float8 > 0 THEN 'scheduled' ELSE 'available' END::river_job_state
        )
        RETURNING id
    """,
    stage="""
        UPDATE river_job SET state = 'available'
        WHERE state IN ('scheduled', 'retryable') AND scheduled_at <= now()
    """,
    fetch="""
        UPDATE river_job SET state = 'running', attempt = attempt + 1, attempted_at = now()
        WHERE id = (
            SELECT id FROM river_job WHERE state = 'available'
            ORDER BY priority, scheduled_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING id, args ->> 'do' AS do
    """,
    complete="UPDATE river_job SET state = 'completed', finalized_at = now() WHERE id = $1",
    fail="""
        UPDATE river_job SET state = 'discarded', finalized_at = now(), errors = array_append(errors, $2::jsonb)
        WHERE id = $1
    """,
    prune="""
        DELETE FROM river_job
        WHERE state IN ('completed', 'cancelled', 'discarded') AND finalized_at < now() - interval '1 day'
    """,
)

install = _SYSTEM.install
work = _SYSTEM.work
prune = _SYSTEM.prune_once
