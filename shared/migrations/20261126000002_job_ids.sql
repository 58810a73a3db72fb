-- migrate:up
-- The ledger names a job by a UUID. A job whose id is a bigint is kept there as a UUID of version 8 (RFC 9562), in the
-- same order: its 16 hexadecimal digits around the version and the variant, then zeros and the word `bigint` in ASCII.
--
--     1  00000000-0000-8000-8100-626967696e74
--
-- Clients never see it. Each function is one expression, which the planner puts in place of the call, so that a look-up
-- goes by the index of the jobs.
CREATE FUNCTION redrive.job_uuid(number bigint) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN overlay(
    overlay(lpad(to_hex(number), 16, '0') || '00626967696e74' PLACING '8' FROM 13 FOR 0) PLACING '8' FROM 17 FOR 0
)::uuid;

-- NULL for any other UUID: it is the id of no job.
CREATE FUNCTION redrive.job_number(id uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN id::text LIKE '________-____-8___-8_00-626967696e74'
        THEN (
            'x' || substr(id::text, 1, 8) || substr(id::text, 10, 4) || substr(id::text, 16, 3) || substr(id::text, 21, 1)
        )::bit(64)::bigint
END;

-- Only who may execute a function has it put in place of the call.
REVOKE EXECUTE ON FUNCTION redrive.job_uuid(bigint), redrive.job_number(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive.job_uuid(bigint), redrive.job_number(uuid) TO redrive_api, redrive_worker;

-- migrate:down
DROP FUNCTION redrive.job_number(uuid);
DROP FUNCTION redrive.job_uuid(bigint);
