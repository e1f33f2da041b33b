#!/usr/bin/env bash
# Instructions that one call costs the whole server, by callgrind, which collects inside the server's turns only, and only once
# everything is warm. Prints the tables of docs/benchmarks.md.
#
#   scripts/instructions.sh [TABLE ..]          tables: idle pipelined alone blocks bytes single segments pieces; default all
#   scripts/instructions.sh profile LOAD ..     where the instructions of one load go, by function; LOAD is what
#                                               benches/instructions.rs takes
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin
if ! command -v valgrind >/dev/null; then
  echo "instructions.sh: valgrind is not installed (apt-get install valgrind); nothing was measured" >&2
  exit 1
fi
# In a folder of its own: without DPDK the binary beside the benchmarks is not the one that serves.
built=$(cargo bench --target-dir target/instructions --no-default-features --bench instructions --bench segments --bench micro --no-run --message-format=json 2>/dev/null || true)
executable() { grep "\"name\":\"$1\"" <<<"$built" | grep -o '"executable":"[^"]*"' | cut -d'"' -f4; }
binary=$(executable instructions) segments=$(executable segments) micro=$(executable micro)
[ -x "$binary" ] && [ -x "$segments" ] && [ -x "$micro" ] || { echo "instructions.sh: the benchmarks do not build: cargo bench --no-default-features --no-run" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Runs a benchmark ($2 ..) and collects inside the functions that $1 names, one a word, but not where one is inside another; prints the
# instructions.
collected() {
  local toggles=() function
  set -f
  for function in $1; do toggles+=(--toggle-collect="$function"); done
  set +f
  shift
  valgrind --tool=callgrind --collect-atstart=no "${toggles[@]}" --callgrind-out-file="$out/profile" \
    "$@" >"$out/figures" 2>"$out/log" || { cat "$out/log" >&2; exit 1; }
  awk '/^(summary|totals):/ { print $2; exit }' "$out/profile"
}

# row NAME LOAD ..
row() {
  local name=$1 instructions
  shift
  instructions=$(collected '*measured_turn*' "$binary" "$@")
  awk -v name="$name" -v instructions="$instructions" '{
    printf "| %s | %d | %s | %s | %s | %s | %s | %s |\n", name, instructions / $2, $6, $4, $10, $8, $12, $14 }' "$out/figures"
}

table() {
  echo "$1"
  echo
  echo "| call | instructions | segments | chains | frames in | payload bytes | turns | empty turns |"
  echo "|---|---:|---:|---:|---:|---:|---:|---:|"
}

idle() {
  table "A turn that finds nothing to do:"
  row "empty turn" idle 1000
}

pipelined() {
  table "Per call, 32 calls outstanding on each of 4 connections, blocks of 64 KiB, a client that coalesces:"
  row "NULL" null 8 0 65536 coalesced 32 4
  row "GETATTR" getattr 8 0 65536 coalesced 32 4
  row "READ 4 KiB" read 8 4096 65536 coalesced 32 4
  row "READ 64 KiB" read 4 65536 65536 coalesced 32 4
  row "READ 1 MiB" read 2 1048576 65536 coalesced 8 4
  row "WRITE 64 KiB" write 4 65536 65536 coalesced 8 4
}

alone() {
  table "Per call, one call at a time, blocks of 64 KiB, a client that coalesces (one acknowledgement for each chain or two):"
  row "NULL" null 50
  row "GETATTR" getattr 50
  row "READ 4 KiB" read 50 4096 65536 coalesced
  row "READ 64 KiB" read 50 65536 65536 coalesced
  row "READ 256 KiB" read 50 262144 65536 coalesced
  row "READ 1 MiB" read 50 1048576 65536 coalesced
  row "WRITE 64 KiB" write 50 65536 65536 coalesced
}

blocks() {
  table "The same bytes in more or fewer segments:"
  local block
  for block in 4 8 16 32 64; do
    row "READ 64 KiB from blocks of $block KiB" read 50 65536 $((block << 10)) coalesced
  done
}

bytes() {
  table "The same segments with more or fewer bytes:"
  local kib
  for kib in 4 8 16 32 60; do
    row "READ $kib KiB from one block" read 50 $((kib << 10)) 65536 coalesced
  done
}

single() {
  table "A client that acknowledges every second packet of 1448 bytes:"
  row "READ 64 KiB" read 50 65536 65536 single
  row "READ 1 MiB" read 50 1048576 65536 single
}

# What $2 instances of an operation of benches/segments.rs cost, each, or each of its $4 parts; $3 what one of them is.
segment_row() {
  local instructions
  instructions=$(collected 'segments::measured* segments::driven*' "$segments" "$1" "$2")
  echo "| $3 | $((instructions / $2 / ${4:-1})) |"
}

segments() {
  echo "TCP/IP alone: interface and endpoint, without what is above and without the driver, but for received buffers given back:"
  echo
  echo "| what | instructions |"
  echo "|---|---:|"
  segment_row ack-of-two-packets 320 "pure ACK of two packets, one in a turn"
  segment_row ack-of-two-packets-burst 320 "pure ACK of two packets, 16 in a turn"
  segment_row ack-of-a-chain 100 "pure ACK of a chain of 17 segments"
  segment_row segment 320 "full segment in order, one in a turn"
  segment_row segment-burst 320 "full segment in order, 16 in a turn"
  segment_row chain-of-17 100 "a chain of 17 segments (60 KiB) sent, one in a turn"
  segment_row chain-of-17-burst 320 "a chain of 17 segments sent, 16 in a turn, each of another connection"
  segment_row chain-of-a-large-reply 20 "a chain of 16 to 18 segments, one of the 17 of a reply of 1 MiB" 17
  segment_row send-64k 100 "64 KiB and a head in 17 slices sent, two chains"
  segment_row send-64k-packets 100 "64 KiB and a head in 17 slices sent, 46 packets"
  segment_row life 100 "a connection's life: 5 segments in, 4 out"
  segment_row syn-cookie 320 "a SYN answered by a cookie, of 16 in a turn, 4 in each from then on"
  segment_row syn-cookie-busy 630 "a SYN of 63 in a turn in which a connection has a segment, one of them answered"
  segment_row accept 320 "a connection accepted, 16 in a turn: SYN, ACK"
  segment_row accept-cookie 320 "the same with a cookie"
  segment_row close 320 "a connection closed by the peer, 16 in a turn: FIN, ACK"
  segment_row reset 320 "a connection reset by the peer, 16 in a turn"
  segment_row idle-turn 100 "a turn of an idle server, 16 connections"
  segment_row buffer 320 "of each segment: a received buffer given back"
}

# What one of $2 runs of a piece of benches/micro.rs costs.
piece_row() {
  local instructions
  instructions=$(collected 'micro::measured*' "$micro" --count "$1" 1000)
  echo "| $2 | $((instructions / 1000)) |"
}

pieces() {
  echo "The pieces of a call above TCP, each alone:"
  echo
  echo "| what | instructions |"
  echo "|---|---:|"
  piece_row decode "record mark, call header, AUTH_SYS of a READ"
  piece_row lookup "a block of a file of 16,384, and a reference to it"
  piece_row seal "record mark, head and one page into a gather list"
  piece_row call-null "NULL, from received bytes to the reply's gather list"
  piece_row call-getattr "GETATTR, the same"
  piece_row call-read-64k "READ 64 KiB, the same"
}

# Functions by what they cost themselves (what is inlined counts where it is inlined), then with all they call; per call.
profile() {
  collected '*measured_turn*' "$binary" "$@" >/dev/null
  cat "$out/figures"
  local calls
  calls=$(awk '{ print $2 }' "$out/figures")
  for inclusive in no yes; do
    echo "--- inclusive: $inclusive"
    callgrind_annotate --auto=no --threshold=100 --inclusive=$inclusive "$out/profile" | awk -v calls="$calls" -v inclusive="$inclusive" '
      /^ *[0-9,]+ \(/ && !/PROGRAM/ {
        cost = $1; gsub(/,/, "", cost)
        sub(/^.*%\) +[^ ]*:/, ""); sub(/ \[[^[]*$/, "")
        # With all they call, a function stands once for each file whose lines were inlined into it.
        if (inclusive == "yes") { if (cost > sum[$0]) sum[$0] = cost } else sum[$0] += cost
      }
      END { for (name in sum) printf "%9.1f  %s\n", sum[name] / calls, name }' | sort -rn | head -60
  done
}

if [ "${1:-}" = profile ]; then
  shift
  profile "$@"
  exit
fi
[ $# -gt 0 ] || set -- idle pipelined alone blocks bytes single segments pieces
for name; do
  "$name"
  echo
done
