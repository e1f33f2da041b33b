#!/usr/bin/env bash
# Builds one fuzz target and runs it on its corpus: scripts/fuzz.sh TARGET SECONDS [libFuzzer options]
# or makes the smallest corpus that reaches as much as what was found does: scripts/fuzz.sh TARGET merge
# A stable toolchain does: libFuzzer needs only LLVM's coverage instrumentation, which rustc's stable flags reach. `cargo fuzz`
# with a nightly toolchain finds the same targets.
set -euo pipefail
cd "$(dirname "$0")/.."

targets="packet tcp_segments rpc_record nfs3_call"
usage() {
    echo "usage: scripts/fuzz.sh TARGET SECONDS|merge [libFuzzer options]   (targets: $targets)" >&2
    exit 2
}
[ $# -ge 2 ] || usage
target=$1
seconds=$2
shift 2
case " $targets " in *" $target "*) ;; *) usage ;; esac

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="$PWD/target/fuzz"
coverage=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
# With --target the flags reach the library and its dependencies, but not build scripts and procedural macros.
RUSTFLAGS="${coverage[*]} --cfg fuzzing" cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$host" --bin "$target"

# New inputs go to a folder of their own, outside git; the corpus in git is only read.
fuzzer="target/fuzz/$host/release/$target"
corpus="fuzz/corpus/$target"
found="target/fuzz/found/$target"
artifacts="target/fuzz/artifacts/$target/"
mkdir -p "$found" "$artifacts" "$corpus"
limits=(-timeout=10 -rss_limit_mb=1024 -max_len=8192 -artifact_prefix="$artifacts")

if [ "$seconds" = merge ]; then
    # By edges reached, not by how often: ten times fewer files, which git and `cargo test` have to carry.
    merged="target/fuzz/merged/$target"
    rm -rf "$merged"
    mkdir -p "$merged"
    "$fuzzer" -merge=1 -use_counters=0 "${limits[@]}" "$@" "$merged" "$corpus" "$found"
    [ -n "$(ls "$merged")" ] || { echo "nothing was merged; $corpus is as it was" >&2; exit 1; }
    rm -rf "$corpus"
    mv "$merged" "$corpus"
    exit
fi

exec "$fuzzer" "$found" "$corpus" "${limits[@]}" -max_total_time="$seconds" -len_control=20 -print_final_stats=1 "$@"
