-- migrate:up
-- What several statements compute in the same way. None of these functions reads a table. All but the last two are one
-- expression, which the planner puts in place of the call: a call costs nothing, and a look-up by its result can go by an
-- index.

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

-- The version of a job: 16 hexadecimal digits, a hash of what is shown of its row, and of nothing else. A heartbeat
-- column, a restore from a dump, VACUUM FULL and a logical replica leave it as it is. Between servers of different byte
-- order it differs.
-- The columns come one by one: a function of the relation's row type would tie the hands of the table's owner. An
-- integer's hash does not depend on its width. COLLATE "C" because columns may have collations of their own, that do not
-- agree or call unlike texts equal. A text that is short in bytes is short in characters, and is not counted.
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

-- The ledger names a job by a UUID. A job whose id is a bigint is kept there as a UUID of version 8 (RFC 9562), in the
-- same order: its 16 hexadecimal digits around the version and the variant, then zeros and the word `bigint` in ASCII.
--
--     1  00000000-0000-8000-8100-626967696e74
--
-- Clients never see it.
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

-- What failed jobs are grouped by: their error without what differs from one job to the next. Here, so that lists,
-- groups and bulk retries agree. All patterns are ASCII: no locale of a database changes a group.
-- Each pattern is tried only where a plain search finds what it needs: of 10,000 errors most need few of them.
CREATE FUNCTION redrive.error_text(last_error text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
DECLARE
    traceback CONSTANT text := 'Traceback (most recent call last):';
    blanks CONSTANT text := E' \t\n\x0b\f\r';
    line text COLLATE "C" := split_part(translate(left(last_error, 300), E'\r', E'\n'), E'\n', 1);
    part text COLLATE "C";
    shown text COLLATE "C";
BEGIN
    IF last_error IS NULL THEN
        RETURN '';
    END IF;

    -- 1. One line, 300 characters of it, with single spaces.
    IF line = traceback THEN
        line := left(split_part(translate(rtrim(last_error, blanks), E'\r', E'\n'), E'\n', -1), 300);
    END IF;
    line := btrim(translate(line, E'\t\x0b\f', '   '), ' ');
    IF strpos(line, '  ') > 0 THEN
        line := regexp_replace(line, '  +', ' ', 'g');
    END IF;

    -- 2. URLs: the scheme and the host stay. A URL ends at a blank, a quote or an angle bracket.
    IF strpos(line, '://') > 0 THEN
        line := regexp_replace(
            line,
            '([a-zA-Z0-9+.-]://)(?:[^ /?#@"''`<>]*@)?(\[[0-9a-fA-F:.]*\]|[a-zA-Z0-9._~%-]+)[^ "''`<>]*',
            '\1\2',
            'g'
        );
    END IF;

    -- 3. UUIDs.
    IF line LIKE '%________-____-____-____-____________%' THEN
        line := regexp_replace(
            line, '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g'
        );
    END IF;

    -- 4. What stands in quotes; an apostrophe within a word is none.
    IF strpos(line, '"') > 0 OR strpos(line, '`') > 0 OR strpos(line, '''') > 0 THEN
        line := regexp_replace(
            line,
            '(")[^"]*"|(`)[^`]*`|(?<![a-zA-Z0-9])('')(?:[^'']|''[a-zA-Z0-9])*''(?![a-zA-Z0-9])',
            '\1\2\3<str>\1\2\3',
            'g'
        );
    END IF;

    IF line !~ '[0-9]' THEN
        RETURN line;
    END IF;

    -- 5. Hexadecimal numbers: 0x..., and words of eight digits and more that have a letter and a digit among them.
    IF strpos(line, '0x') > 0 THEN
        line := regexp_replace(line, '0x[0-9a-fA-F]+', '<hex>', 'g');
    END IF;
    IF line ~ '[0-9a-fA-F]{8}' THEN
        line := regexp_replace(
            line, '\m(?=[0-9a-fA-F]{8})(?:[0-9]+[a-fA-F]|[a-fA-F]+[0-9])[0-9a-fA-F]*\M', '<hex>', 'g'
        );
    END IF;

    -- 6. Numbers, but for a status of three digits. A line break is put before each of these: there is none else.
    IF line ~ '[pPsSeE1][ :=]+[0-9]{3}' THEN
        line := regexp_replace(
            line,
            '((?:[hH][tT][tT][pP](?:/1\.1)?|[sS][tT][aA][tT][uU][sS]|[cC][oO][dD][eE])[ :=]+)([0-9]{3}(?![0-9]))',
            E'\\1\n\\2',
            'g'
        );
    END IF;
    FOREACH part IN ARRAY string_to_array(line, E'\n') LOOP
        IF shown IS NULL THEN
            shown := regexp_replace(part, '[0-9]+', '<n>', 'g');
        ELSE
            shown := shown || left(part, 3) || regexp_replace(substr(part, 4), '[0-9]+', '<n>', 'g');
        END IF;
    END LOOP;
    RETURN shown;
END
$$;

-- The group of a failed job: the first 16 hexadecimal digits of a hash.
CREATE FUNCTION redrive.fingerprint(type text, error_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT left(encode(sha256(convert_to(coalesce(type, '') || chr(10) || error_text, getdatabaseencoding())), 'hex'), 16)
$$;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations of Redrive only go forward'; END $$;
