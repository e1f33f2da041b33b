#!/usr/bin/env bash
# Instructions that one call costs the whole server, by callgrind: the difference between COUNT and 2 x COUNT calls, collected
# inside the server's turns only. Prints the tables of docs/benchmarks.md.
#
#   scripts/instructions.sh [COUNT]     default 50 calls
#   scripts/instructions.sh segments    only what TCP/IP costs by segment, chain, connection and turn
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin
if ! command -v valgrind >/dev/null; then
  echo "instructions.sh: valgrind is not installed (apt-get install valgrind); nothing was measured" >&2
  exit 1
fi
count=50
[ "${1:-}" = segments ] || count=${1:-50}
built=$(cargo bench --no-default-features --bench instructions --bench segments --no-run --message-format=json 2>/dev/null || true)
executable() { grep "\"name\":\"$1\"" <<<"$built" | grep -o '"executable":"[^"]*"' | cut -d'"' -f4; }
binary=$(executable instructions) segments=$(executable segments)
[ -x "$binary" ] && [ -x "$segments" ] || { echo "instructions.sh: the benchmarks do not build: cargo bench --no-default-features --no-run" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Instructions collected in a run of $1 with $2 calls and the further arguments.
collected() {
  local operation=$1 calls=$2
  shift 2
  valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*server_turn*' --callgrind-out-file="$out/profile" \
    "$binary" "$operation" "$calls" "$@" >"$out/figures" 2>"$out/log" || { cat "$out/log" >&2; exit 1; }
  awk '/^(summary|totals):/ { print $2; exit }' "$out/profile"
}

row() {
  local name=$1 once twice
  shift
  once=$(collected "$1" "$count" "${@:2}")
  twice=$(collected "$1" "$((2 * count))" "${@:2}")
  awk -v name="$name" -v instructions="$(((twice - once) / count))" '{
    printf "| %s | %d | %s | %s | %s | %s |\n", name, instructions, $4, $2, $8, $6 }' "$out/figures"
}

table() {
  echo "| call | instructions | segments | chains | frames in | payload bytes |"
  echo "|---|---:|---:|---:|---:|---:|"
}

# What $2 instances of an operation of benches/segments.rs cost, each; $3 what one of them is.
segment_row() {
  valgrind --tool=callgrind --collect-atstart=no --toggle-collect='segments::measured*' --callgrind-out-file="$out/profile" \
    "$segments" "$1" "$2" >"$out/figures" 2>"$out/log" || { cat "$out/log" >&2; exit 1; }
  awk -v name="$3" -v count="$2" '/^(summary|totals):/ { printf "| %s | %d |\n", name, $2 / count; exit }' "$out/profile"
}

segment_table() {
  echo "TCP/IP alone: interface and endpoint, without what is above and without the driver:"
  echo
  echo "| what | instructions |"
  echo "|---|---:|"
  segment_row ack-of-two-packets 320 "pure ACK of two packets, one in a turn"
  segment_row ack-of-two-packets-burst 320 "pure ACK of two packets, 16 in a turn"
  segment_row ack-of-a-chain 100 "pure ACK of a chain of 17 segments"
  segment_row segment 320 "full segment in order, one in a turn"
  segment_row segment-burst 320 "full segment in order, 16 in a turn"
  segment_row chain-of-17 100 "a chain of 17 segments (60 KiB) sent"
  segment_row send-64k 100 "64 KiB and a head in 17 slices sent, two chains"
  segment_row send-64k-packets 100 "64 KiB and a head in 17 slices sent, 46 packets"
  segment_row life 100 "a connection's life: 5 segments in, 4 out"
  segment_row idle-turn 100 "a turn of an idle server, 16 connections"
}

if [ "${1:-}" = segments ]; then
  segment_table
  exit
fi

echo "Per call, blocks of 64 KiB, a client that coalesces (one acknowledgement for each chain or two):"
echo
table
row "NULL" null
row "GETATTR" getattr
row "READ 4 KiB" read 4096 65536 coalesced
row "READ 64 KiB" read 65536 65536 coalesced
row "READ 256 KiB" read 262144 65536 coalesced
row "READ 1 MiB" read 1048576 65536 coalesced
echo
echo "The same bytes in more or fewer segments:"
echo
table
for block in 4 8 16 32 64; do
  row "READ 64 KiB from blocks of $block KiB" read 65536 $((block << 10)) coalesced
done
echo
echo "The same segments with more or fewer bytes:"
echo
table
for kib in 4 8 16 32 60; do
  row "READ $kib KiB from one block" read $((kib << 10)) 65536 coalesced
done
echo
echo "A client that acknowledges every second packet of 1448 bytes:"
echo
table
row "READ 64 KiB" read 65536 65536 single
row "READ 1 MiB" read 1048576 65536 single
echo
segment_table
