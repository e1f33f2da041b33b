#!/bin/busybox sh
# The guest's first process: mounts, drivers, then the test in /test.sh. Its console is read by the runner.
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /run /var/lib/nfs
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
while read -r module; do
  insmod "$module" || echo "GUEST-RESULT: FAIL insmod $module"
done </modules.list
# Settings come as NAME=VALUE words with the prefix "t_" on the kernel's command line.
for word in $(cat /proc/cmdline); do
  case $word in t_*) export "$word" ;; esac
done

ok() { echo "GUEST-RESULT: ok $*"; }
fail() { echo "GUEST-RESULT: FAIL $*"; }
# step NAME COMMAND...: one line per step; what a failing one printed is shown.
# The functions share the shell's variables: this one's have names of their own.
step() {
  step_name=$1
  shift
  read -r step_started _ </proc/uptime
  if "$@" >/tmp/step.log 2>&1; then
    read -r step_ended _ </proc/uptime
    ok "$step_name $(echo "$step_started $step_ended" | awk '{print $2 - $1}') s"
  else
    fail "$step_name (exit code $?)"
    sed "s/^/GUEST-OUTPUT: /" /tmp/step.log | tail -n 20
  fi
}
# wait_for SECONDS COMMAND...
wait_for() {
  left=$(($1 * 5))
  shift
  until "$@" 2>/dev/null; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 0.2
  done
}

. /test.sh
echo "GUEST-DONE"
poweroff -f
