#!/usr/bin/env bash
# Every test there is: the workspace's own, then the end-to-end cases. Ends with the line "N passed, N failed, N skipped".
#
#   scripts/test.sh            sizes for a 2-core machine, about 15 minutes
#   NFSPLICE_E2E=full ...      trees of 2,000 files, files of 2 GiB, 50 kills
set -uo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
passed=0 failed=0 skipped=0
mkdir -p target
log=target/test.log

finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ] && [ "$passed" != 0 ] && exit 0
  exit 1
}

step() {
  local name=$1
  shift
  echo "test: $name"
  "$@" || {
    echo "test: $name failed" >&2
    failed=$((failed + 1))
    finish
  }
}

# Adds the sums of cargo's "test result:" lines, or of the end-to-end runner's, in $log.
add_results() {
  local status=$1 sums before=$failed
  sums=$(awk '/^(test|end-to-end) result: / {
      for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) p += $(i-1)
        if ($i ~ /^failed/) f += $(i-1)
        if ($i ~ /^(ignored|skipped)/) s += $(i-1)
      }
    } END { print p+0, f+0, s+0 }' $log)
  read -r p f s <<<"$sums"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  # A test that did not build, or a process that died, has no result line: it counts as one failure.
  if [ "$status" != 0 ] && [ "$failed" = "$before" ]; then failed=$((failed + 1)); fi
}

step "install" scripts/install.sh test
step "build" cargo build --release --bin nfsplice
# What README promises to those who take the library alone; nothing of it is run, as the tests are the same.
step "without DPDK" cargo check --no-default-features --all-targets
echo "test: workspace"
cargo test --workspace --no-fail-fast 2>&1 | tee $log
add_results "${PIPESTATUS[0]}"
echo "test: end to end"
cargo test --test e2e 2>&1 | tee $log
add_results "${PIPESTATUS[0]}"
finish
