# One image for all commands: `api`, `worker`, `migrate`, `check` and `token`.
# The tag moves with Debian's and Python's fixes. To pin every byte, pass --build-arg PYTHON=python:3.11-slim-bookworm@sha256:…
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_PROGRESS=1 \
    UV_PROJECT_ENVIRONMENT=/opt/redrive \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /src
# .ci/uv fetches the uv that uv.lock pins, and checks its hash, as uv does with everything else.
COPY .ci/uv .ci/uv
COPY pyproject.toml uv.lock ./
COPY redrive_client/pyproject.toml redrive_client/
RUN --mount=type=cache,target=/root/.cache/uv \
    python3 .ci/uv sync --locked --no-dev --extra otel --no-install-project
COPY LICENSE README.md ./
COPY api api
COPY cli cli
COPY redrive redrive
COPY redrive_client redrive_client
COPY shared shared
COPY worker worker
# Anew each time: as long as pyproject.toml has not changed, uv would take what it built of older sources from its cache.
# Its lock file is writable for all, and of no use any more.
RUN --mount=type=cache,target=/root/.cache/uv \
    python3 .ci/uv sync --locked --no-dev --extra otel --no-editable --reinstall-package redrive && rm -f /opt/redrive/.lock

FROM ${PYTHON}
COPY --from=build /opt/redrive /opt/redrive
COPY --chmod=755 deploy/health /opt/redrive/health
# Both programs on one ops port: a container holds one of them, and the health check need not ask which.
ENV PATH=/opt/redrive/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    REDRIVE_HOST=0.0.0.0 \
    REDRIVE_OPS_PORT=9090
# At the end, because the revision is another one each time. The version is pyproject.toml's.
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="Redrive" \
      org.opencontainers.image.description="Job status and exactly-once retries beside a PostgreSQL jobs table" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION:-unknown}"
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Liveness: a database that is away is no reason to restart the program.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-I", "-S", "/opt/redrive/health", "/livez"]
ENTRYPOINT ["redrive"]
CMD ["--help"]
