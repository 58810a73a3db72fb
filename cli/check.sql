-- What `redrive check` asks a database.

-- name: has_migrations
-- Whether a migration ever ran here.
SELECT to_regclass('redrive.schema_migrations') IS NOT NULL AS found;

-- name: migrations
-- The versions of those that did.
SELECT version FROM redrive.schema_migrations;
