# The two commands are `make demo` and `make test`; README.md says what they do.

LAB := integration/lab/lab
TOOLS := /var/cache/godwit/tools
CARGO_DENY := $(firstword $(wildcard $(HOME)/.cargo/bin/cargo-deny) $(TOOLS)/bin/cargo-deny)
# The shim that is installed lies apart from everything else, because it is linked in its own way: no loader, no C library
# beside it and no relocations, all of which every one of its processes would have in memory.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
LEAN := -C target-feature=+crt-static -C relocation-model=static
RELEASE_DIR := $(or $(CARGO_TARGET_DIR),target)/$(HOST)/release
PACKAGES := $(or $(CARGO_TARGET_DIR),target)/debian
# Where `make install` installs to; DESTDIR, if set, comes before it.
PREFIX ?= /usr/local
# What the bench is given besides: `make bench-shim BENCH=--quick`, `make bench-shim BENCH="--part memory"`.
# The same for `make bench-move BENCH="--row 1g --runs 3"`.
BENCH ?=
# What the chaos is given besides: `make chaos CHAOS="--runs 20 --seed 7"`.
CHAOS ?=
# What the tests are given besides: `make test TESTS=test_shim`, `make test TESTS="--runtime io.containerd.runc.v2"`.
TESTS ?=

.PHONY: help setup build release-shim release install uninstall package lint test test-all test-vm package-test nova bench-shim bench-move bench-archive chaos fuzz demo lab \
	lab-down lab-status

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '%-12s %s\n' "$$name" "$$what"; done

setup: ## install what this machine lacks to build and to run the lab
	@integration/setup

build: setup ## build the binaries
	cargo build --workspace --locked

release-shim: setup ## build the shim as it is installed: small, static, optimised as a whole
	RUSTFLAGS="$(LEAN)" cargo build --release --locked --package godwit-shim --target $(HOST)

release: release-shim ## build everything as it is installed
	cargo build --release --locked --package godwit --package godwit-lens --target $(HOST)

install: release ## install the release below PREFIX (/usr/local), and a default configuration where there is none
	contrib/install-tree $(RELEASE_DIR) "$(DESTDIR)" $(PREFIX)

uninstall: ## remove what `make install` has installed there; the configuration stays
	contrib/uninstall-tree "$(DESTDIR)" $(PREFIX)

package: release ## make a Debian package of the release, in target/debian
	contrib/debian/build $(RELEASE_DIR) $(PACKAGES)

lint: setup $(CARGO_DENY) ## check the format, clippy and the dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
	cargo fetch --locked
	$(CARGO_DENY) --offline --locked check bans licenses sources

# It takes five and a half minutes of processor time to build, so it is kept outside the checkout.
$(TOOLS)/bin/cargo-deny:
	CARGO_TARGET_DIR=$$(mktemp -d) && export CARGO_TARGET_DIR && trap 'rm -rf "$$CARGO_TARGET_DIR"' EXIT && \
		cargo install --locked --root $(TOOLS) cargo-deny

test: build ## run the unit tests and the end-to-end tests in a lab of their own
	integration/run-tests --unit $(TESTS)

test-all: build ## the same on both bases, forky and trixie, with the tests that take long
	GODWIT_TEST_SLOW=1 integration/run-tests --unit --base forky --base trixie $(TESTS)

test-vm: build ## test pre-copy in two virtual machines, whose kernel tells what is written to; 10 minutes
	@integration/setup vm
	integration/test-vm

package-test: package ## install the Debian package in fresh roots of trixie and forky, try it, and remove it; 4 minutes
	integration/test-package $(RELEASE_DIR) $(PACKAGES)/godwit_*.deb

nova: build ## move containers by a real Nova with two computes; the first time some minutes to install it
	integration/test-nova

bench-shim: release-shim ## measure the shim's memory and times beside the stock shim's; best on a quiet machine
	GODWIT_BINARIES=$(RELEASE_DIR) integration/bench-shim $(BENCH)

bench-move: release ## measure the downtime of a move beside podman's checkpoint and restore; best on a quiet machine
	GODWIT_BINARIES=$(RELEASE_DIR) integration/bench-move $(BENCH)

bench-archive: release ## measure exports and imports beside podman's checkpoint and restore; best on a quiet machine
	GODWIT_BINARIES=$(RELEASE_DIR) integration/bench-archive $(BENCH)

chaos: build ## strike moves with faults in every phase, 200 times, and check that nobody is harmed
	integration/chaos $(CHAOS)

fuzz: setup ## fuzz what reads outside input, FUZZ_SECONDS (600) for each target
	fuzz/run

demo: build ## move a Redis under load from one host to another, and check
	integration/demo

lab: build ## bring up the lab: two hosts and a place for clients
	$(LAB) up

lab-down: ## remove the lab, also after a crash half-way
	$(LAB) down

lab-status: ## say what of the lab is up
	@$(LAB) status
