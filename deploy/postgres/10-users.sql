-- Users of one PostgreSQL database for Redrive, each with no more rights than it needs:
--
--     redrive_owner       owns the database, runs `redrive migrate`; for no program that listens
--     redrive_api_user    `redrive api`, by the role redrive_api
--     redrive_worker_user `redrive worker`, by the role redrive_worker
--
-- The role redrive_scaler is for a scaler of your own: grant it to the scaler's user.
--
-- For psql, as a superuser, connected to the database. The PostgreSQL image runs it when it makes a database; it can be
-- run again, to change passwords. The migrations give the roles their rights; they are made here, before that,
-- because the owner may not make roles.
\set ON_ERROR_STOP on
\getenv owner_password OWNER_DB_PASSWORD
\getenv api_password API_DB_PASSWORD
\getenv worker_password WORKER_DB_PASSWORD

BEGIN;

SELECT format('CREATE ROLE %I NOLOGIN', role)
FROM unnest(ARRAY['redrive_api', 'redrive_worker', 'redrive_scaler']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['redrive_owner', 'redrive_api_user', 'redrive_worker_user']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

ALTER ROLE redrive_owner PASSWORD :'owner_password';
ALTER ROLE redrive_api_user PASSWORD :'api_password';
ALTER ROLE redrive_worker_user PASSWORD :'worker_password';
GRANT redrive_api TO redrive_api_user;
GRANT redrive_worker TO redrive_worker_user;

ALTER DATABASE :"DBNAME" OWNER TO redrive_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC; -- connecting, and temporary tables
GRANT CONNECT ON DATABASE :"DBNAME" TO redrive_api, redrive_worker, redrive_scaler;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

COMMIT;
