#!/usr/bin/env bash
# The part of the image's entrypoint that the tests rely on: RabbitMQ and its tools run as `rabbitmq`, to whom the data belongs.
set -euo pipefail

case "${1:-}" in
    rabbitmq*)
        if [ "$(id -u)" = 0 ]; then
            find /var/lib/rabbitmq ! -user rabbitmq -exec chown rabbitmq {} +
            exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups -- "$0" "$@"
        fi
        ;;
esac
exec "$@"
