-- What `redrive check` asks a database.

-- name: has_migrations
-- Whether a migration ever ran here.
SELECT to_regclass('redrive.schema_migrations') IS NOT NULL AS found;

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
