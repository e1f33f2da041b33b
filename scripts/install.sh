#!/usr/bin/env bash
# Installs what nfsplice needs on a Debian 12 machine, and nothing that is there already.
#
#   scripts/install.sh run     what building and `make run` need
#   scripts/install.sh test    the same, and what `make test` needs
#   scripts/install.sh bench   what building and `make bench` need
#
# Run again it only looks: no network, no apt. Nothing outside apt's own folders and target/ is written. The guest kernel and
# the guest's mount.nfs (target/guest/) and the servers to compare with (target/peers/) are unpacked and not installed: no boot loader entry, no rpcbind service on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."

# libdpdk-dev depends on every poll-mode driver (librte-meta-allpmds), so the drivers that EAL opens at start come with it.
build_packages=(libdpdk-dev libclang-dev clang gcc libc6-dev make pkg-config)
run_packages=("${build_packages[@]}" iproute2 libnfs-utils)
test_packages=("${run_packages[@]}" libnfs-dev nftables tcpdump tshark valgrind qemu-system-x86 cpio kmod busybox-static
  dpdk dpdk-dev pciutils python3 util-linux procps)
# `dpdk` has testpmd.
bench_packages=("${build_packages[@]}" iproute2 util-linux procps dpdk)
# NFS-Ganesha, rpcbind and their libraries: unpacked, so that no service starts and none has to be stopped.
peer_packages=(nfs-ganesha nfs-ganesha-vfs rpcbind libntirpc4.3 liburcu8 libwbclient0 libwrap0 libnfsidmap1 libtirpc3 libtirpc-common libdbus-1-3
  libacl1 libcap2 libblkid1 libuuid1 libkrb5-3 libcom-err2 libgssapi-krb5-2 libk5crypto3 libkrb5support0 libkeyutils1 libbsd0
  libmd0 libsystemd0 libgcrypt20 libgpg-error0 liblz4-1 libzstd1 liblzma5)
# Unpacked for the guest only; their libraries that this machine has already are taken from it.
guest_packages=(nfs-common libtirpc3 libtirpc-common netbase libkeyutils1 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2)
guest_kernel=linux-image-amd64

updated=
apt_update() {
  [ -n "$updated" ] && return
  echo "install: apt-get update"
  apt-get -qq update
  updated=yes
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_packages() {
  local missing=() package
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  if [ ${#missing[@]} = 0 ]; then
    echo "install: all $# packages are there"
    return
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "install: root is needed to install: ${missing[*]}" >&2
    exit 1
  fi
  apt_update
  echo "install: apt-get install ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >target/install.log 2>&1 || {
    tail -n 30 target/install.log >&2
    exit 1
  }
}

# Downloads packages without installing them and unpacks them under $1.
unpack() {
  local into=$1 debs
  shift
  debs=$(mktemp -d)
  # The downloading user _apt has to be able to write here.
  chmod 755 "$debs" && chown _apt "$debs" 2>/dev/null || true
  (cd "$debs" && apt-get -qq download "$@")
  for deb in "$debs"/*.deb; do dpkg -x "$deb" "$into"; done
  rm -rf "$debs"
}

guest() {
  local guest=target/guest version kernel
  if [ -f $guest/.complete ] && [ -d "$guest/kernel/lib/modules/$(cat $guest/.complete)" ]; then
    echo "install: guest kernel $(cat $guest/.complete) is there"
    return
  fi
  rm -rf $guest && mkdir -p $guest/kernel $guest/tools
  apt_update
  # The metapackage depends on the package of the current kernel.
  kernel=$(apt-cache depends --no-recommends --no-suggests $guest_kernel | awk '/^ *Depends: linux-image/ {print $2; exit}')
  echo "install: unpacking $kernel and ${guest_packages[0]} under $guest (not installed)"
  unpack $guest/kernel "$kernel"
  unpack $guest/tools "${guest_packages[@]}"
  version=$(basename $guest/kernel/lib/modules/*)
  depmod -b "$PWD/$guest/kernel" "$version"
  echo "$version" >$guest/.complete
}

peers() {
  local peers=target/peers
  if [ -f $peers/.complete ] && [ -f $peers/etc/netconfig ]; then
    echo "install: NFS-Ganesha is there"
    return
  fi
  rm -rf $peers && mkdir -p $peers
  apt_update
  echo "install: unpacking ${peer_packages[0]} under $peers (not installed)"
  unpack $peers "${peer_packages[@]}"
  touch $peers/.complete
}

mkdir -p target
case "${1:-}" in
run) install_packages "${run_packages[@]}" ;;
test)
  install_packages "${test_packages[@]}"
  guest
  ;;
bench)
  install_packages "${bench_packages[@]}"
  peers
  ;;
*)
  echo "usage: $0 run|test|bench" >&2
  exit 2
  ;;
esac
if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
  echo "install: no Rust toolchain found (cargo); install one with rustup" >&2
  exit 1
fi
