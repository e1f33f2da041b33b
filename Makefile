# One command each. `make run` and `make test` are all that a fresh Debian 12 machine with git and a Rust toolchain needs.
.PHONY: help build run test sim fuzz bench goodput fmt lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## install what is missing and build the release binary
	@scripts/install.sh run
	cargo build --release

run: ## serve ./export in the network namespace nfsplice (Ctrl-C stops)
	@scripts/run.sh

test: ## install what is missing and run every test (NFSPLICE_E2E=full for the long sizes)
	@scripts/test.sh

sim: ## run both simulators, of the server and of TCP alone, on SEEDS=n seeds (default 1000) from FIRST=s (0) on
	@status=0; \
	SIM_SEEDS=$(or $(SEEDS),1000) SIM_FIRST=$(or $(FIRST),0) \
		cargo test --profile sim --no-default-features --test simulation -- --nocapture || status=1; \
	TCP_SEEDS=$(or $(SEEDS),1000) TCP_FIRST=$(or $(FIRST),0) \
		cargo test --profile sim --no-default-features --lib tcp::tests::seeds -- --nocapture || status=1; \
	exit $$status

fuzz: ## fuzz every target for FUZZ_SECONDS (60) each, on its corpus
	@for target in packet tcp_segments rpc_record nfs3_call; do scripts/fuzz.sh $$target $(or $(FUZZ_SECONDS),60) || exit 1; done

bench: ## measure against NFS-Ganesha, sendfile and testpmd, 12 minutes (docs/benchmarks.md)
	@scripts/install.sh bench
	cargo bench --bench appliance

goodput: ## goodput over lossy links beside the kernel's, 45 minutes, root (docs/goodput.md)
	cargo bench --no-default-features --bench goodput -- ours
	cargo bench --no-default-features --bench goodput -- kernel --seeds 3
	cargo bench --no-default-features --bench goodput -- page

fmt: ## format the sources
	cargo fmt --all

lint: ## check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

clean: ## remove what was built
	cargo clean
