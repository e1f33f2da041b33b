#!/usr/bin/env bash
# Proves the two commands on a machine that has nothing: makes a Debian 12 root with git, make and this machine's Rust toolchain, clones
# this repository's HEAD into it, and runs `make run` and `make test` there.
#
#   scripts/fresh.sh           both
#   scripts/fresh.sh run       make run, its three printed commands from another terminal, then Ctrl-C
#   scripts/fresh.sh test      make test to its last line (about 15 minutes on 2 cores, and what is installed first)
#
# Needs root, debootstrap, and room for 8 GB under NFSPLICE_FRESH_DIR (default /var/tmp), all given back at the end; NFSPLICE_FRESH_KEEP=1
# keeps the folder. NFSPLICE_FRESH_MIRROR names another Debian mirror. The root has its own mounts, processes, /run and cargo registry; it
# shares the kernel, the devices and the network access of the machine. Uncommitted changes are not tested.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
mirror=${NFSPLICE_FRESH_MIRROR:-http://deb.debian.org/debian}
# The names of what lets package clients reach their registries, where a machine sets them.
passed_on='^(https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|SSL_CERT_(FILE|DIR)|CURL_CA_BUNDLE|GIT_SSL_CAINFO|CARGO_HTTP_.*|RUSTUP_TOOLCHAIN|NFSPLICE_E2E)$'

fail() {
  echo "fresh: $*" >&2
  exit 1
}

# ---- inside the new root -------------------------------------------------------------------------------------------------------

# The run's terminal is a pty of its own: what is written to the pipe is typed there, so byte 3 is Ctrl-C and goes where the terminal
# driver sends it, to the whole foreground process group.
inside_run() {
  local log=/tmp/run.log started command commands stopped_ms
  mkfifo /tmp/keys
  # A shell starts its background jobs with SIGINT ignored, which a script cannot undo by a trap.
  env --default-signal=INT,QUIT script -qefc "make run" $log </tmp/keys >/dev/null &
  local terminal=$!
  exec 7>/tmp/keys
  started=$SECONDS
  until grep -q '^Ready' $log 2>/dev/null; do
    kill -0 $terminal 2>/dev/null || { cat $log; fail "make run ended before it was ready"; }
    [ $((SECONDS - started)) -lt 1800 ] || { cat $log; fail "make run was not ready after 30 minutes"; }
    sleep 0.2
  done
  tr -d '\r' <$log
  echo "fresh: ready after $((SECONDS - started)) s"
  commands=$(tr -d '\r' <$log | sed -n 's/^  \(ip netns exec .*\)/\1/p')
  [ "$(wc -l <<<"$commands")" = 3 ] || fail "make run printed other than three commands"
  while read -r command; do
    echo "\$ $command"
    bash -c "$command" </dev/null || fail "exit code $? of: $command"
  done <<<"$commands"
  cmp /etc/hostname export/written.txt || fail "what was written over NFS is not in ./export"
  stopped_ms=$(date +%s%3N)
  printf '\003' >&7
  wait $terminal || true
  stopped_ms=$(($(date +%s%3N) - stopped_ms))
  exec 7>&-
  echo "fresh: Ctrl-C ended make run in $stopped_ms ms"
  [ $stopped_ms -lt 2000 ] || fail "longer than 2 s"
  [ -z "$(ip netns list)" ] || fail "the namespace is still there: $(ip netns list)"
  ! pgrep -x nfsplice >/dev/null 2>&1 || fail "the server still runs"
  grep -q '^make: \*\*\*.*Error 130' <(tr -d '\r' <$log) || tail -n 3 $log
}

inside_test() {
  local started=$SECONDS last
  make test </dev/null 2>&1 | tee /tmp/test.log || { echo "fresh: make test failed" >&2; exit 1; }
  last=$(tail -n 1 /tmp/test.log)
  echo "fresh: make test took $((SECONDS - started)) s and ended with: $last"
  grep -qE '^[1-9][0-9]* passed, 0 failed, [0-9]+ skipped$' <<<"$last" || fail "not the expected last line"
}

if [ "$what" = inside ]; then
  git clone -q /tmp/nfsplice.bundle /root/nfsplice
  cd /root/nfsplice
  echo "fresh: $(git log -1 --format='%h %s'), $(cat /etc/debian_version), $(dpkg-query -W | wc -l) packages, $(cargo --version)"
  for tool in gcc clang pkg-config ip nfs-ls; do
    ! command -v $tool >/dev/null || fail "$tool is there already: this root is not fresh"
  done
  case $2 in
  run) inside_run ;;
  test) inside_test ;;
  all)
    inside_run
    inside_test
    ;;
  esac
  exit 0
fi

# ---- inside the new namespaces, outside the new root ---------------------------------------------------------------------------

if [ "$what" = enter ]; then
  root=$2
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mkdir -p "$root/root/.rustup" "$root/root/.cargo/bin"
  mount --bind -o ro "${RUSTUP_HOME:-$HOME/.rustup}" "$root/root/.rustup"
  mount --bind -o ro "${CARGO_HOME:-$HOME/.cargo}/bin" "$root/root/.cargo/bin"
  mv "$root/nfsplice.bundle" "$root/tmp/"
  mapfile -t variables < <(env | grep -E "${passed_on%\$}=" || true)
  exec chroot "$root" env -i HOME=/root TERM=xterm LANG=C.UTF-8 PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "${variables[@]}" bash /fresh.sh inside "$3"
fi

# ---- on the machine ------------------------------------------------------------------------------------------------------------

case $what in run | test | all) ;; *) fail "usage: $0 [run|test]" ;; esac
[ "$(id -u)" = 0 ] || fail "root is needed for the new root and its mounts"
command -v debootstrap >/dev/null || fail "debootstrap is not installed (apt-get install debootstrap)"
[ -d "${RUSTUP_HOME:-$HOME/.rustup}/toolchains" ] || fail "no toolchain of rustup found to hand on"
folder=$(mktemp -d -p "${NFSPLICE_FRESH_DIR:-/var/tmp}" nfsplice-fresh.XXXXXX)
clean_up() {
  # The mounts ended with their namespace; --one-file-system is for the case that they did not.
  [ -n "${NFSPLICE_FRESH_KEEP:-}" ] && echo "fresh: $folder is kept" || rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
root=$folder/root
echo "fresh: debootstrap of Debian 12 from $mirror into $root"
debootstrap --variant=minbase --include=ca-certificates,git,make bookworm "$root" "$mirror" >"$folder/debootstrap.log" 2>&1 || {
  tail -n 20 "$folder/debootstrap.log" >&2
  fail "debootstrap failed"
}
for suite in bookworm bookworm-updates; do echo "deb $mirror $suite main"; done >"$root/etc/apt/sources.list"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
# A machine behind a proxy may have certificates of its own.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
echo fresh >"$root/etc/hostname"
git bundle create -q "$root/nfsplice.bundle" HEAD
cp scripts/fresh.sh "$root/fresh.sh"
status=0
unshare --mount --pid --fork --kill-child "$PWD/scripts/fresh.sh" enter "$root" "$what" || status=$?
exit $status
