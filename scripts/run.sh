#!/usr/bin/env bash
# Builds nfsplice and serves ./export inside a network namespace of its own, over a TAP port.
#
# The namespace is named nfsplice. In it, the kernel's end of the TAP (nfs0) has 10.77.0.1/24 and fd4e:6673::1/64, and the server,
# which has its own TCP/IP stack, answers at 10.77.0.2 and fd4e:6673::2 behind it. The machine's own network is not touched. Ctrl-C drains, stops and removes the namespace.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
namespace=nfsplice
tap=nfs0
host_address=10.77.0.1/24
host_address6=fd4e:6673::1/64
server_address=10.77.0.2
server_address6=fd4e:6673::2
config=${1:-config/tap.toml}
stop_wait_ms=2000

scripts/install.sh run
if [ "$(id -u)" != 0 ]; then
  echo "run: root is needed for the network namespace and its TAP" >&2
  exit 1
fi
cargo build --release --quiet --bin nfsplice

if [ ! -e export ]; then
  echo "run: making ./export with sample files"
  mkdir -p export/docs export/data
  echo "This file came out of the page cache without a copy." >export/hello.txt
  cp README.md export/docs/ 2>/dev/null || echo "nfsplice" >export/docs/README.md
  head -c 4194304 /dev/urandom >export/data/4MiB.bin
  ln -s ../hello.txt export/docs/hello
fi

# The whole name: other namespaces may begin with it.
if ip netns list | awk -v name=$namespace '$1 == name { found = 1 } END { exit !found }'; then
  if [ -n "$(ip netns pids $namespace)" ]; then
    echo "run: the namespace $namespace is in use by process $(ip netns pids $namespace | tr '\n' ' ')" >&2
    exit 1
  fi
  ip netns del $namespace
fi

server=
clean_up() {
  trap '' INT TERM
  if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then
    for ((waited = 0; waited < stop_wait_ms; waited += 50)); do
      kill -0 "$server" 2>/dev/null || break
      sleep 0.05
    done
    if kill -0 "$server" 2>/dev/null; then
      echo "run: the server did not stop within $stop_wait_ms ms and is killed" >&2
      kill -KILL "$server"
    fi
  fi
  ip netns del $namespace 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ip netns add $namespace
ip -n $namespace link set lo up
# The device outlives the driver that opens it, so its address stays across restarts of the server.
ip -n $namespace tuntap add dev $tap mode tap multi_queue
ip -n $namespace addr add $host_address dev $tap
# Not looked for first: until the line below the kernel's end has the server's own hardware address.
ip -n $namespace -6 addr add $host_address6 dev $tap nodad

# A session of its own, so that Ctrl-C reaches this script alone and the server gets one signal.
setsid ip netns exec $namespace target/release/nfsplice serve "$config" &
server=$!

for ((tries = 0; ; tries++)); do
  kill -0 "$server" 2>/dev/null || { wait "$server" || exit $?; exit 1; }
  # The driver gave the kernel's end its own hardware address; the two ends of a wire need two.
  ip -n $namespace link set $tap address 02:00:0a:4d:00:01 up 2>/dev/null || true
  if timeout 2 ip netns exec $namespace nfs-ls "nfs://$server_address/export" >/dev/null 2>&1; then break; fi
  [ $tries -lt 60 ] || { echo "run: no answer from $server_address" >&2; exit 1; }
  sleep 0.1
done

# nfs-cp makes a new file only.
written=written.txt
for ((next = 2; ; next++)); do
  [ -e "export/$written" ] || break
  written=written-$next.txt
done

cat <<EOF

Ready. ./export is served at nfs://$server_address/export, and at nfs://$server_address6/export. In another terminal:

  ip netns exec $namespace nfs-ls nfs://$server_address/export
  ip netns exec $namespace nfs-cat nfs://$server_address/export/hello.txt
  ip netns exec $namespace nfs-cp /etc/hostname nfs://$server_address/export/$written

Ctrl-C stops the server and removes the namespace.
EOF
status=0
wait "$server" || status=$?
server=
exit $status
