# A server with a network card that the kernel does not drive: the card is bound to vfio-pci by deploy/nfsplice-bind, and the host's
# own binary serves from it. The machine's root is this host's over 9p, read-only, with a tmpfs over it.
# Settings: t_folder (shared with the runner) t_project t_binary t_driver t_standin

address=
mount_host() {
  mkdir -p /lower /over /new && mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose host /lower &&
    mount -t tmpfs tmpfs /over && mkdir /over/upper /over/work &&
    mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work overlay /new &&
    mount --bind /proc /new/proc && mount --bind /sys /new/sys && mount --bind /dev /new/dev && mount -t tmpfs tmpfs /new/run &&
    mkdir -p "/new$t_folder" "/new/lib/modules/$(uname -r)" /new/dev/hugepages &&
    modules=$(on_host readlink -f "$t_project/target/guest/kernel/lib/modules/$(uname -r)") &&
    mount --bind "/new$modules" "/new/lib/modules/$(uname -r)" &&
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none shared "/new$t_folder"
}
on_host() { chroot /new /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }
# In the background: the shell's child becomes the program, so that its pid takes signals.
become_on_host() { exec chroot /new /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }
find_card() {
  for device in /sys/bus/pci/devices/*; do
    case $(cat "$device/class") in 0x0200*) address=$(basename "$device") ;; esac
  done
  [ -n "$address" ]
}
driver_of() { basename "$(readlink "/sys/bus/pci/devices/$address/driver")"; }
bind() { on_host "$t_project/deploy/nfsplice-bind" "$@"; }

starts_with_the_kernels_driver() { [ "$(driver_of)" = "$t_driver" ] || { driver_of && return 1; }; }
dry_run_changes_nothing() { bind --hugepages 448 "$address" && [ "$(driver_of)" = "$t_driver" ]; }
# The card that carries the default route is refused with exit code 3 and keeps its driver.
default_route_is_refused() {
  interface=$(ls "/sys/bus/pci/devices/$address/net" 2>/dev/null || ls "/sys/bus/pci/devices/$address/"*/net)
  ip addr add 192.0.2.1/24 dev "$interface" && ip link set "$interface" up && ip route add default via 192.0.2.2 dev "$interface" || return 1
  bind --apply "$address"
  refused=$?
  ip route del default && ip addr flush dev "$interface" && ip link set "$interface" down
  [ $refused = 3 ] && [ "$(driver_of)" = "$t_driver" ]
}
bind_card() { bind --hugepages 448 --apply "$address" && [ "$(driver_of)" = vfio-pci ]; }
prepare_export() { mkdir -p /new/srv/export /new/srv/state && mount -t tmpfs tmpfs /new/srv/export && cp "/new$t_folder/large" /new/srv/export/large; }
start_server() {
  if [ -n "$t_standin" ]; then
    # It answers ARP and ping: enough to show that card, IOMMU, hugepages and binding work.
    { while [ ! -e "/new$t_folder/stop" ]; do sleep 0.3; done } | on_host dpdk-testpmd -l 0,1 -a "$address" --no-telemetry -- \
      --forward-mode=icmpecho --auto-start --no-lsc-interrupt --txd=512 --rxd=512 --total-num-mbufs=8192 >"/new$t_folder/server.log" 2>&1 &
  else
    sed "s/GUEST-CARD/$address/" "/new$t_folder/guest.toml" >/new/srv/nfsplice.toml
    # As LimitNOFILE= in deploy/nfsplice.service; the first process of a guest has 4096.
    ulimit -n 65536
    become_on_host "$t_binary" serve /srv/nfsplice.toml >"/new$t_folder/server.log" 2>&1 &
  fi
  server=$!
}
runs() { kill -0 "$server"; }
asked_to_stop() { wait_for 120 test -e "/new$t_folder/stop"; }
counters() { [ -n "$t_standin" ] || on_host "$t_binary" stats --socket /run/nfsplice.sock --json >"/new$t_folder/stats.json"; }
stop_server() {
  [ -n "$t_standin" ] || kill -TERM "$server"
  wait "$server"
}
undo() { bind --undo --apply && [ "$(driver_of)" = "$t_driver" ]; }

step mount_host mount_host
step find_card find_card
step starts_with_the_kernels_driver starts_with_the_kernels_driver
step dry_run_changes_nothing dry_run_changes_nothing
step default_route_is_refused default_route_is_refused
step bind_card bind_card
step prepare_export prepare_export
start_server
echo "GUEST-SERVING"
step asked_to_stop asked_to_stop
step runs runs
step counters counters
step stop_server stop_server
step undo undo
