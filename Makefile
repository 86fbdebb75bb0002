# Thin on purpose: each goal is a line or two; what takes more is in scripts/.

.PHONY: help setup build demo test test-faults test-network sim sim-plants fuzz bench bench-peers bench-micro bench-instructions fmt lint
.DEFAULT_GOAL := help

help: ## shows this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## installs what is missing on this machine (asks apt only for that)
	@scripts/setup

build: ## builds every program into target/debug
	cargo build --locked --workspace --bins

# The development profile: it shares its work with `make test`, and a release build with its link-time optimisation takes
# longer; five devices notice no difference, since cryptography and SQLite are optimised here too (Cargo.toml).
demo: build ## a site with five agents on this machine; EXIT=1 ends by itself, ARGS="--agents 20" and the like
	@$${CARGO_TARGET_DIR:-target}/debug/bgb demo $(if $(EXIT),--exit) $(ARGS)

test: setup ## everything that must hold: format, lints, docs, dependencies, tests
	@scripts/test

test-faults: ## faults on real processes: kills, full disks, cut links, wrong clocks; some 8 minutes (BGB_FAULTS_SEED=n repeats the dice)
	@scripts/test-faults

test-network: ## devices behind real proxies and balancers (squid, tinyproxy, nginx, haproxy), other clients, slow attackers; some 8 minutes
	@scripts/test-network

sim: ## the simulator over many seeds: SEEDS=10000
	@scripts/sim "$(or $(SEEDS),512)"

sim-plants: ## tests the simulator with mistakes that it must find: PLANT=wheel for those with this name
	@scripts/sim-plants $(PLANT)

fuzz: ## fuzzes one target: T=frame SECONDS=60, or RUNS=1000000 (fuzz/corpus has their names)
	@scripts/fuzz "$(T)" "$(SECONDS)" "$(RUNS)"

bench: ## measures all goals, each with its floor, and writes BENCHMARKS.md; some 35 minutes
	@scripts/bench

bench-peers: ## measures mosquitto, NATS and nginx with nchan beside our server, and writes their table
	@scripts/bench-peers

bench-micro: ## measures codecs, slots and TLS at rest beside floors and rivals (criterion)
	cargo bench --locked -p bgb-protocol --bench codecs
	cargo bench --locked -p bgb-server --bench transport

bench-instructions: ## counts the instructions of single operations under valgrind
	@scripts/bench-instructions

bench-%: ## measures one goal, and ends in a line of JSON: idle, connect, fanout, latency, storm, ingest, wheel, sessions, follow, roads, growth
	@scripts/bench $*

fmt: ## formats the source
	cargo fmt --all

lint: ## clippy, warnings are errors
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --test faults --test network -- -D warnings
