-- migrate:up
-- Rules that several statements share. PostgreSQL puts the bodies of these functions into the plans, so that a call costs
-- nothing. Every role may execute them: they read no table.

-- How many attempts a job may have once `extra_attempts` are added; a NULL in max_attempts means 3.
CREATE FUNCTION redrive.attempts_allowed(attempts anycompatible, max_attempts anycompatible, extra_attempts int)
RETURNS anycompatible
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN extra_attempts > 0 THEN greatest(coalesce(max_attempts, 3), coalesce(attempts, 0) + extra_attempts)
        ELSE coalesce(max_attempts, 3)
    END
$$;

-- The retry rule: whether no attempt is left to a job once `extra_attempts` are added.
CREATE FUNCTION redrive.is_exhausted(attempts anycompatible, max_attempts anycompatible, extra_attempts int)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(attempts, 0) >= redrive.attempts_allowed(attempts, max_attempts, extra_attempts)
$$;

-- Whether both are numbers that an integer of 64 bits holds, or NULL: a column may be numeric, and hold NaN.
CREATE FUNCTION redrive.fit_bigint(attempts anycompatible, max_attempts anycompatible) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT
        coalesce(attempts, 0) BETWEEN -9223372036854775807 AND 9223372036854775807
        AND coalesce(max_attempts, 0) BETWEEN -9223372036854775807 AND 9223372036854775807
$$;

-- Until when a request is deferred: for a second, or for a quarter of the time that it has waited, up to `longest`.
CREATE FUNCTION redrive.deferred_until(requested_at timestamptz, longest interval) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT now() + least(greatest((now() - requested_at) / 4, interval '1 s'), longest)
$$;

-- migrate:down
DROP FUNCTION redrive.deferred_until(timestamptz, interval);
DROP FUNCTION redrive.fit_bigint(anycompatible, anycompatible);
DROP FUNCTION redrive.is_exhausted(anycompatible, anycompatible, int);
DROP FUNCTION redrive.attempts_allowed(anycompatible, anycompatible, int);
