-- migrate:up
-- The version of a job: 16 hexadecimal digits, a hash of what is shown of its row, and of nothing else. A heartbeat
-- column, a restore from a dump, VACUUM FULL and a logical replica leave it as it is. Between servers of different byte
-- order it differs.
-- The columns come one by one: a function of the relation's row type would tie the hands of the table's owner. An
-- integer's hash does not depend on its width. COLLATE "C" because columns may have collations of their own, that do not
-- agree or call unlike texts equal. A text that is short in bytes is short in characters, and is not counted. One
-- expression, which the planner puts in place of the call.
CREATE FUNCTION redrive.job_version(
    type text, status text, attempts bigint, max_attempts bigint, last_error text,
    scheduled_at timestamptz, started_at timestamptz, completed_at timestamptz, created_at timestamptz
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(
    int8send(hash_record_extended(
        row(
            type COLLATE "C", status COLLATE "C", coalesce(attempts, 0), coalesce(max_attempts, 3),
            CASE WHEN octet_length(last_error) <= 65536 THEN last_error ELSE left(last_error, 65536) END COLLATE "C",
            scheduled_at, started_at, completed_at, created_at
        ),
        0
    )),
    'hex'
);

-- Only who may execute a function has it put in place of the call.
REVOKE EXECUTE ON FUNCTION redrive.job_version(
    text, text, bigint, bigint, text, timestamptz, timestamptz, timestamptz, timestamptz
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive.job_version(
    text, text, bigint, bigint, text, timestamptz, timestamptz, timestamptz, timestamptz
) TO redrive_api, redrive_worker;

-- migrate:down
DROP FUNCTION redrive.job_version(
    text, text, bigint, bigint, text, timestamptz, timestamptz, timestamptz, timestamptz
);
