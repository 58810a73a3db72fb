#!/usr/bin/env bash
# The part of the image's entrypoint that the tests rely on: it becomes `postgres`, makes the database once, and meanwhile
# lets its server listen on the socket alone.
set -euo pipefail

superuser=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$superuser}
hosts=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}

as_superuser() { PGPASSWORD=${POSTGRES_PASSWORD:-} psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$superuser" "$@"; }

make_database() { # the server's own arguments
    if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$hosts" != trust ]; then
        echo "POSTGRES_PASSWORD is empty" >&2
        exit 1
    fi
    initdb --username="$superuser" --pwfile=<(echo "${POSTGRES_PASSWORD:-}")
    echo "host all all all $hosts" >>"$PGDATA/pg_hba.conf"
    pg_ctl start --wait --options="$(printf '%q ' "$@" -c listen_addresses=)"
    if [ "$database" != postgres ]; then
        as_superuser --dbname=postgres --set=name="$database" <<<'CREATE DATABASE :"name"'
    fi
    local script
    for script in /docker-entrypoint-initdb.d/*.sql; do
        if [ -e "$script" ]; then as_superuser --dbname="$database" --file="$script"; fi
    done
    pg_ctl stop --wait --mode=fast
}

case "${1:-}" in -*) set -- postgres "$@" ;; esac
if [ "${1:-}" = postgres ]; then
    if [ "$(id -u)" = 0 ]; then
        install -d -m 700 "$PGDATA"
        find "$PGDATA" /var/run/postgresql ! -user postgres -exec chown postgres {} +
        exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
    fi
    if [ ! -s "$PGDATA/PG_VERSION" ]; then make_database "${@:2}"; fi
fi
exec "$@"
