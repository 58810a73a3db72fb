-- What `redrive check` asks a database.

-- name: server
-- The release, who we are to it, its encoding, and whether it takes writes from us.
SELECT
    current_setting('server_version_num')::int, current_user::text, current_setting('server_encoding'),
    current_setting('transaction_read_only')::bool, pg_is_in_recovery();

-- name: has_migrations
-- Whether a migration ever ran here, and whether we may look which.
SELECT count(*) > 0, coalesce(bool_and(has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')), false)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'redrive' AND c.relname = 'schema_migrations';

-- name: unique_keys
-- The columns of each unique index that holds for all rows, at once.
-- $1 oid of the relation
SELECT array_agg(a.attname::text) AS columns
FROM pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS key (number, place)
JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = key.number
WHERE
    i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    AND key.place <= i.indnkeyatts
GROUP BY i.indexrelid;

-- name: has_children
-- Whether other tables inherit from a table: their rows are read as its own, and none of its indexes holds for them.
-- $1 oid of the relation
SELECT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = $1::oid);

-- name: doubled_among
-- Of some jobs: how many these are, and the id of one that is there more than once, if there is one.
-- $1 int how many jobs to look at
WITH some_jobs AS MATERIALIZED (
    SELECT project_id, id FROM control_plane.jobs LIMIT $1::int
)
SELECT
    (SELECT count(*) FROM some_jobs) AS jobs,
    (
        SELECT id::text
        FROM some_jobs
        WHERE project_id IS NOT NULL AND id IS NOT NULL
        GROUP BY project_id, id
        HAVING count(*) > 1
        LIMIT 1
    ) AS doubled;

-- name: doubled_anywhere
-- Of some jobs: the id of one that is there a second time, among all jobs. Each is looked up as the programs do.
-- $1 int how many jobs to look up
WITH some_jobs AS MATERIALIZED (
    SELECT project_id, id FROM control_plane.jobs LIMIT $1::int
)
SELECT some_jobs.id::text AS doubled
FROM some_jobs
CROSS JOIN LATERAL (
    SELECT count(*) AS times
    FROM (
        SELECT
        FROM control_plane.jobs
        WHERE jobs.project_id = some_jobs.project_id AND jobs.id = some_jobs.id
        LIMIT 2
    ) AS same
) AS found
WHERE found.times > 1
LIMIT 1;

-- name: status_checks
-- The conditions on the status alone that call no function of the owner's.
-- $1 oid of the relation
SELECT con.conname::text AS name, pg_get_expr(con.conbin, con.conrelid) AS condition
FROM pg_constraint AS con
JOIN pg_attribute AS a ON a.attrelid = con.conrelid AND a.attname = 'status'
WHERE
    con.conrelid = $1::oid AND con.contype = 'c' AND con.conkey = ARRAY[a.attnum]
    AND NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_constraint'::regclass AND d.objid = con.oid AND d.refclassid = 'pg_proc'::regclass
    )
ORDER BY con.conname;

-- name: status_allowed
-- Whether a condition lets a status be 'pending'; the column's type and the condition take the places of these here.
SELECT (status IS NOT NULL) IS NOT false AS allowed FROM (SELECT CAST('pending' AS text) AS status) AS job;

-- name: has_cursor_key
SELECT EXISTS (SELECT FROM redrive.cursor_key);

-- name: policies
-- The policies of row-level security that hold for us; `lets_all`: this one hides nothing; `hides_all`, `refuses_all`:
-- it lets no row be found, or be written.
-- $1 oid of the relation
SELECT
    p.polname::text AS name, p.polpermissive AS permissive,
    CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END
        AS command,
    coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') = 'true'
    AND coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true' AS lets_all,
    coalesce(pg_get_expr(p.polqual, p.polrelid) IN ('false', 'NULL::boolean'), false) AS hides_all,
    coalesce(
        coalesce(pg_get_expr(p.polwithcheck, p.polrelid), pg_get_expr(p.polqual, p.polrelid)) IN ('false', 'NULL::boolean'),
        false
    ) AS refuses_all
FROM pg_policy AS p
WHERE
    p.polrelid = $1::oid
    AND EXISTS (SELECT FROM unnest(p.polroles) AS r (id) WHERE CASE WHEN r.id = 0 THEN true ELSE pg_has_role(r.id, 'USAGE') END);

-- name: hides_rows
-- Whether we see no row of a table that has some: live rows by the server's statistics, or, where it has counted none yet,
-- rows that ANALYZE has seen. The table takes the place of the one named here.
-- $1 oid of the table
SELECT
    (
        pg_stat_get_live_tuples(c.oid) > 0
        OR c.reltuples > 0 AND pg_stat_get_tuples_inserted(c.oid) = 0 AND pg_stat_get_tuples_deleted(c.oid) = 0
    )
    AND NOT EXISTS (SELECT FROM control_plane.jobs) AS hidden
FROM pg_class AS c
WHERE c.oid = $1::oid;

-- name: sample
-- Read a column of some rows; it and its type take the place of those here.
SELECT count(status::text) FROM (SELECT status FROM control_plane.jobs LIMIT 1000) AS some_rows;

-- name: least_id
-- The least of all ids.
SELECT id::text AS id FROM control_plane.jobs ORDER BY id LIMIT 1;

-- name: table_rights
-- Which of these rights we have on a table.
-- $1 oid of the relation, $2 text[] rights
SELECT wanted.name, has_table_privilege($1::oid, wanted.name) AS held FROM unnest($2::text[]) AS wanted (name);

-- name: migrations
-- The versions of those that did.
SELECT version FROM redrive.schema_migrations;

-- name: job_indexes
-- The columns of each index on the jobs that is whole and fit for use, in their order, and how many jobs the server
-- believes there are (-1: it never looked).
SELECT
    array_agg(a.attname::text ORDER BY place) AS columns,
    (SELECT reltuples FROM pg_class WHERE oid = i.indrelid)::int8 AS jobs
FROM pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS key (number, place)
JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = key.number
WHERE
    i.indrelid = to_regclass('control_plane.jobs') AND i.indisvalid AND i.indpred IS NULL
    AND place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indrelid;

-- name: tables_behind
-- The tables that a view reads, through other views, too: who reads each, whether row-level security counts for it, how
-- many policies let it see rows, and whether one lets it see all. `parts`: its partitions.
-- $1 oid of the view
WITH RECURSIVE behind (oid, reader) AS (
    SELECT $1::oid, r.oid FROM pg_roles AS r WHERE r.rolname = current_user
    UNION
    SELECT
        d.refobjid,
        CASE
            WHEN EXISTS (
                SELECT FROM pg_options_to_table(v.reloptions) AS o
                WHERE o.option_name = 'security_invoker' AND o.option_value::bool
            ) THEN behind.reader
            ELSE v.relowner
        END
    FROM behind
    JOIN pg_class AS v ON v.oid = behind.oid AND v.relkind = 'v'
    JOIN pg_rewrite AS w ON w.ev_class = v.oid AND w.ev_type = '1'
    JOIN pg_depend AS d
        ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid <> v.oid
)
SELECT DISTINCT
    t.oid, format('%s.%s', n.nspname, t.relname) AS name, r.rolname::text AS reader, t.reltuples::bigint AS rows,
    ARRAY(
        SELECT format('%s.%s', pn.nspname, p.relname)
        FROM pg_partition_tree(t.oid) AS tree
        JOIN pg_class AS p ON p.oid = tree.relid
        JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
    ) AS parts,
    t.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
    AND (t.relforcerowsecurity OR NOT pg_has_role(r.oid, t.relowner, 'USAGE')) AS row_security,
    policies.permissive AS policies, policies.lets_all
FROM behind
JOIN pg_class AS t ON t.oid = behind.oid AND t.relkind IN ('r', 'p')
JOIN pg_namespace AS n ON n.oid = t.relnamespace
JOIN pg_roles AS r ON r.oid = behind.reader
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE p.polpermissive) AS permissive,
        coalesce(bool_or(p.polpermissive AND p.shown = 'true') AND bool_and(p.polpermissive OR p.shown = 'true'), false)
            AS lets_all
    FROM (
        SELECT polpermissive, polroles, coalesce(pg_get_expr(polqual, polrelid), 'true') AS shown
        FROM pg_policy
        WHERE polrelid = t.oid AND polcmd IN ('r', '*')
    ) AS p
    WHERE EXISTS (
        SELECT FROM unnest(p.polroles) AS u (id)
        WHERE CASE WHEN u.id = 0 THEN true ELSE pg_has_role(r.oid, u.id, 'USAGE') END
    )
) AS policies
ORDER BY name;

-- name: indexes_behind
-- What each index of some tables, and of their partitions, begins with: a column or an expression.
-- $1 oid[] of the tables
SELECT c.relname::text AS name, pg_get_indexdef(i.indexrelid, 1, true) AS first
FROM unnest($1::oid[]) AS t (oid)
CROSS JOIN LATERAL (
    SELECT t.oid AS part
    UNION
    SELECT tree.relid FROM pg_partition_tree(t.oid) AS tree
) AS parts
JOIN pg_index AS i ON i.indrelid = parts.part
JOIN pg_class AS c ON c.oid = i.indexrelid;
