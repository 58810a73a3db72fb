# What a person types. Everything runs from .venv, made by uv from uv.lock; uv itself comes from .ci/uv where it is missing.

UV := python3 .ci/uv
BIN := .venv/bin
# The first time takes long enough to be watched.
SYNC := $(UV) sync --locked --extra embedded $(if $(wildcard .venv),--quiet)

.PHONY: help run test adapters browser screenshots chaos check docs fmt bench bench-smoke containers containers-engine up passwords release-check sync sync-bench upgrade-check vendor

help: ## list what there is to type
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name does; do printf '  make %-17s %s\n' "$$name" "$$does"; done

# --inexact leaves the development tools in place, so that `run` and `test` do not undo each other's work.
run: ## install what is missing, then run all of Redrive on this machine (ARGS="--port 8081" …)
	@$(SYNC) --no-dev --inexact $(if $(findstring --adapter,$(ARGS)),--extra procrastinate)
	@exec $(BIN)/redrive up $(ARGS)

test: sync ## install what the tests need, then linters, types and every test (TESTS="tests/unit -k ratelimit" …)
	@.ci/test-servers
	@$(MAKE) --no-print-directory check
	@$(BIN)/pytest -n 3 --dist loadgroup $(TESTS)

# Node comes from PyPI, the systems written in JavaScript from npm. The next `make test` takes Node away again.
adapters: ## try every adapter with the real system and its worker, those from npm too (ARGS="-k pg-boss" …)
	@$(SYNC) --group adapters-npm $(if $(shell command -v g++),--group adapters-compiled)
	@.ci/test-servers
	@.ci/test-npm
	@REDRIVE_ADAPTERS_NPM=1 REDRIVE_ADAPTERS_ROWS=100000 $(BIN)/pytest -n 2 --dist loadgroup tests/adapters $(ARGS)

browser: sync ## try the console in Chromium, on a whole stack (ARGS="-k incident" …)
	@.ci/test-servers
	@.ci/test-browser
	@$(BIN)/pytest tests/browser $(ARGS)

screenshots: sync ## take pictures of every page of the console into screenshots/, and those of the README
	@.ci/test-browser
	@$(BIN)/python -m tests.browser.screenshots screenshots

# A new seed each time; REDRIVE_CHAOS_SEED=… replays one. Whatever fails, fails the run, tells its seed and reason at the
# end, also of a run that takes too long, and leaves the old table. Three tests at a time, each with servers of its own:
# most of the time is spent in waiting for servers to come back. First comes the one that waits for twelve minutes.
chaos: export REDRIVE_CHAOS_SCALE ?= 100
chaos: export REDRIVE_CHAOS_RESULTS := $(shell mktemp -u)
chaos: sync ## break everything, again and again, for an hour or more on two free processors; writes docs/reliability.md (REDRIVE_CHAOS_SCALE=3 …)
	@.ci/test-servers
	@.ci/test-browser
	@timeout --signal=INT --kill-after=60 6000 \
		$(BIN)/pytest -n 3 --dist loadgroup --no-loadscope-reorder -o timeout=3600 \
		tests/browser/test_left_alone.py tests/acceptance/chaos tests/integration/test_ledger_machine.py \
		|| { echo "what was counted until then: $$REDRIVE_CHAOS_RESULTS"; exit 1; }
	@$(BIN)/python -m tests.acceptance.chaos.report $$REDRIVE_CHAOS_RESULTS

check: sync ## linters, formatting, types, import rules, links of the docs; known vulnerabilities, where the network allows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/links
	$(BIN)/python .ci/audit

fmt: sync ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: sync-bench ## measure Redrive beside others, an hour on a quiet machine: docs/benchmarks.md (ARGS="reading …"; FROM=v0.1.0: beside that, too)
	@$(if $(FROM),.ci/beside-revision $(FROM) )$(BIN)/python -m bench $(ARGS)

bench-smoke: sync-bench ## see within four minutes that all of `make bench` still works; its figures mean nothing
	@$(BIN)/pytest tests/bench $(ARGS)

# The bench's own tools come on top of what there is; the next `make test` takes them away again.
sync-bench:
	@$(SYNC) --group bench
	@.ci/test-servers
	@bench/install-wrk

# The release's own tools come on top of what there is; the next `make test` takes them away again.
release-check: ## build wheels, sdists, bills of materials and image into dist/, install and try them (TAG=v0.1.0 WITHOUT="image 3.14")
	@$(SYNC) --group release
	@.ci/release-check $(if $(TAG),--tag $(TAG)) $(WITHOUT:%=--without %)
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory upgrade-check

upgrade-check: sync ## run the programs of the release before on this schema and beside these (FROM=v0.1.0)
	@.ci/test-servers
	@.ci/upgrade-check $(FROM)

# The site's own tools come on top of what there is; the next `make test` takes them away again.
docs: ## build the docs as a site, into site/ (`.venv/bin/mkdocs serve` shows it while you write)
	@$(SYNC) --group docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

vendor: ## fetch the console's libraries from npm again, checked against .ci/vendored
	@.ci/vendor

# Three times what `make test` needs, and Docker; on images that are there, or can be pulled. The engine that answers is
# used, or else the one of `make containers-engine`, where it runs.
containers: sync ## build the image, run, flood and kill all of it in containers, and the integration tests on their servers (ARGS="-k flood" …)
	@env=$$(tests/containers/standin/engine env) && eval "$$env" && \
		$(BIN)/pytest -o timeout=600 tests/containers $(ARGS) \
		$(if $(ARGS),,&& REDRIVE_TEST_SERVERS=docker $(BIN)/pytest -n 2 --dist loadgroup tests/integration)

containers-engine: ## make a Docker engine for that on a Debian without one, and without a registry, as root (DO=stop, DO=remove)
	@tests/containers/standin/engine $(or $(DO),start)

up: export REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
up: .env ## run it in containers, with RabbitMQ (ARGS="--scale worker=4" …)
	@exec docker compose up --build $(ARGS)

passwords: export REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
passwords: .env ## give the servers in the containers the passwords of .env, where the volumes have others
	@exec deploy/set-passwords $(ARGS)

.env:
	@umask 077 && deploy/new-env >.env.new && mv .env.new .env
	@echo "wrote .env with new secrets"

sync:
	@$(SYNC)
