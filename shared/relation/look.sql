-- What is asked about the relation `control_plane.jobs`, and about other tables as far as they are alike.

-- name: find_relation
-- A table or view, with what we may do there; found without the right to its schema, which `to_regclass` needs.
-- $1 text schema, $2 text name
SELECT
    c.oid, c.relkind::text AS kind, quote_ident(current_user) AS role, has_schema_privilege(n.oid, 'USAGE') AS usage,
    row_security_active(c.oid) AS row_security,
    EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 19 = 19
    ) AS is_rewritten, -- a trigger BEFORE UPDATE FOR EACH ROW may change what is written
    (pg_relation_is_updatable(c.oid, true) & 4) <> 0 AS is_updatable
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2;

-- name: columns_of
-- Its columns, with a table's xmin: their types without modifiers, the same for the type below domains, and what we may do
-- to each.
-- $1 oid of the relation
SELECT
    a.attname::text AS name, format_type(a.atttypid, NULL) AS type, format_type(types.base, NULL) AS base,
    format_type(a.atttypid, a.atttypmod) AS full_type, a.attnotnull OR types.not_null AS not_null,
    has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS may_select,
    has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AS may_update
FROM pg_attribute AS a
CROSS JOIN LATERAL (
    WITH RECURSIVE chain (id) AS (
        SELECT a.atttypid
        UNION ALL
        SELECT t.typbasetype FROM chain JOIN pg_type AS t ON t.oid = chain.id WHERE t.typtype = 'd'
    )
    SELECT bool_or(t.typnotnull) AS not_null, max(t.oid) FILTER (WHERE t.typtype <> 'd') AS base
    FROM chain
    JOIN pg_type AS t ON t.oid = chain.id
) AS types
WHERE a.attrelid = $1::oid AND (a.attnum > 0 OR a.attname = 'xmin') AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: types_read
-- Of what types the times of a job are when it is read, by the statement that takes the place of the name below.
SELECT
    pg_typeof(job.scheduled_at)::text AS scheduled_at, pg_typeof(job.started_at)::text AS started_at,
    pg_typeof(job.completed_at)::text AS completed_at, pg_typeof(job.created_at)::text AS created_at
FROM (VALUES (1)) AS one (row)
LEFT JOIN (FIND_JOBS) AS job ON false;

-- name: triggers_of
-- The INSTEAD OF UPDATE triggers of a view: whether they fire, and with whose rights.
-- $1 oid of the view
SELECT
    t.tgname::text AS name, t.tgenabled IN ('O', 'A') AS enabled, p.prosecdef AS as_owner,
    format('%I.%I()', n.nspname, p.proname) AS function,
    coalesce(p.proconfig::text LIKE '%search\_path=%', false) AS has_path,
    format('ALTER FUNCTION %I.%I() SET search_path = pg_catalog, pg_temp;', n.nspname, p.proname) AS remedy
FROM pg_trigger AS t
JOIN pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE t.tgrelid = $1::oid AND NOT t.tgisinternal AND t.tgtype & 80 = 80 -- INSTEAD, UPDATE
ORDER BY t.tgname;

-- name: fixed_columns
-- Which of these columns of a view cannot be updated without a trigger.
-- $1 oid of the view, $2 text[] columns
SELECT a.attname::text AS name
FROM pg_attribute AS a
WHERE
    a.attrelid = $1::oid AND a.attname = ANY ($2::text[]) AND NOT pg_column_is_updatable(a.attrelid, a.attnum, false)
ORDER BY a.attnum;

-- name: adapter_of
-- A view's comment, in which an adapter says what it is, and whether the adapter's function for the version is there.
-- $1 oid of the view
SELECT
    obj_description($1::oid, 'pg_class') AS comment,
    EXISTS (
        SELECT FROM pg_proc AS p
        JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = 'control_plane' AND p.proname = 'schema_version' AND p.pronargs = 0
    ) AS has_version;

-- name: schema_version
SELECT control_plane.schema_version()::bigint AS version;
