# A Linux kernel's NFSv3 client on the export: the operations of a working day, each checked.
# Settings: t_server t_address t_options t_files t_interface; over IPv6 also t_server6 t_address6

ip link set lo up
wait_for 10 test -e "/sys/class/net/$t_interface"
ip link set "$t_interface" up
ip addr add "$t_address/24" dev "$t_interface"
if [ -n "$t_address6" ]; then
  ip -6 addr add "$t_address6/64" dev "$t_interface"
  # Not before nobody else is found to have it.
  wait_for 10 sh -c "! ip -6 addr show dev $t_interface | grep -q tentative"
  t_server="[$t_server6]"
fi
m=/mnt

mount_export() { mount.nfs "$t_server:/export" $m -o "$t_options"; }
remount() { umount $m && mount_export; }
drop_caches() { sync && echo 3 >/proc/sys/vm/drop_caches; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'" && return 1; }; }

create() {
  echo first >$m/created && same "$(cat $m/created)" first && : >$m/empty && same "$(stat -c %s $m/empty)" 0
}
rename_over() {
  echo old >$m/target && echo new >$m/source && mv $m/source $m/target &&
    same "$(cat $m/target)" new && [ ! -e $m/source ]
}
rename_across_folders() {
  mkdir -p $m/from/deep $m/to && echo x >$m/from/deep/f && mv $m/from/deep $m/to/ &&
    same "$(cat $m/to/deep/f)" x && [ ! -e $m/from/deep ]
}
# The open file goes on to be readable after its name is gone (the client's silly rename).
unlink_while_open() {
  echo kept >$m/open && exec 5<$m/open && rm $m/open && same "$(cat <&5)" kept
  status=$?
  exec 5<&-
  return $status
}
hard_link() {
  echo linked >$m/one && ln $m/one $m/two && same "$(stat -c %h $m/one)" 2 && echo more >>$m/two &&
    same "$(tail -n 1 $m/one)" more && rm $m/one && same "$(stat -c %h $m/two)" 1
}
symlink() {
  ln -s created $m/link && same "$(readlink $m/link)" created && same "$(cat $m/link)" first &&
    ln -s nowhere $m/dangling && ! cat $m/dangling
}
special_files() {
  mknod $m/null c 1 3 && mknod $m/disk b 7 0 && mkfifo $m/pipe && [ -c $m/null ] && [ -b $m/disk ] && [ -p $m/pipe ] &&
    same "$(stat -c %t:%T $m/null)" 1:3 && echo gone >$m/null && { echo through >$m/pipe & } && same "$(cat $m/pipe)" through
}
modes_and_owners() {
  echo x >$m/owned && chmod 640 $m/owned && same "$(stat -c %a $m/owned)" 640 && chown 1234:4321 $m/owned &&
    same "$(stat -c %u:%g $m/owned)" 1234:4321 && chmod 4755 $m/owned && same "$(stat -c %a $m/owned)" 4755 &&
    mkdir $m/sticky && chmod 1777 $m/sticky && same "$(stat -c %a $m/sticky)" 1777
}
# What another user may do and may not. The user u (1000) is a member of the group staff (2000) besides its own.
as_user() { su u -c "$*"; }
permissions() {
  mkdir -m 700 $m/private && echo secret >$m/private/f && echo secret >$m/secret && chmod 600 $m/secret &&
    echo shared >$m/shared && chown 0:2000 $m/shared && chmod 640 $m/shared && echo open >$m/public && chmod 644 $m/public &&
    mkdir -m 777 $m/common && remount &&
    same "$(as_user cat $m/public)" open && same "$(as_user cat $m/shared)" shared && as_user touch $m/common/mine &&
    same "$(stat -c %u:%g $m/common/mine)" 1000:1000 &&
    ! as_user cat $m/secret && ! as_user ls $m/private && ! as_user touch $m/refused && ! as_user "echo x >>$m/public" &&
    ! as_user chmod 777 $m/public && ! as_user chown 1000 $m/public &&
    # Not the owner, but of a group that may write.
    echo before >$m/written && chown 0:2000 $m/written && chmod 660 $m/written && remount &&
    as_user "echo after >$m/written" && same "$(cat $m/written)" after && as_user touch -m $m/written
}
set_times() {
  touch -d "2001-02-03 04:05:06" $m/created && remount && same "$(date -r $m/created +%Y-%m-%dT%H:%M:%S)" 2001-02-03T04:05:06
}
truncate_up() {
  printf abc >$m/grown && truncate -s 300000 $m/grown && same "$(stat -c %s $m/grown)" 300000 && remount &&
    same "$(head -c 3 $m/grown)" abc && same "$(tail -c 299997 $m/grown | tr -d '\0' | wc -c)" 0
}
truncate_down() {
  dd if=/dev/urandom of=$m/cut bs=1k count=200 2>/dev/null && sum=$(head -c 70001 $m/cut | md5sum) && truncate -s 70001 $m/cut &&
    truncate -s 150000 $m/cut && remount && same "$(head -c 70001 $m/cut | md5sum)" "$sum" &&
    same "$(tail -c 79999 $m/cut | tr -d '\0' | wc -c)" 0
}
append_from_two() {
  : >$m/appended
  for writer in a b; do
    (i=0; while [ $i -lt 100 ]; do echo "$writer line $i" >>$m/appended || exit 1; i=$((i + 1)); done) &
  done
  wait
  remount && same "$(wc -l <$m/appended)" 200 && same "$(grep -c '^a line [0-9]*$' $m/appended)" 100 && same "$(sort -u $m/appended | wc -l)" 200
}
sparse() {
  dd if=/dev/zero of=$m/sparse bs=1 count=1 seek=5000000000 2>/dev/null && printf x | dd of=$m/sparse bs=1 seek=4999999999 conv=notrunc 2>/dev/null &&
    remount && same "$(stat -c %s $m/sparse)" 5000000001 && same "$(tail -c 2 $m/sparse | tr '\0' 0)" x0
}
long_names() {
  name=$(head -c 255 /dev/zero | tr '\0' n) && echo x >"$m/$name" && same "$(cat "$m/$name")" x && ! echo x >"$m/${name}n" &&
    echo y >"$m/naïve ü 日本 	tab" && same "$(cat "$m/naïve ü 日本 	tab")" y
}
exclusive_create() { mkdir $m/lock && ! mkdir $m/lock && (set -C && echo 1 >$m/noclobber && ! echo 2 >$m/noclobber) && same "$(cat $m/noclobber)" 1; }
fsync_file() { dd if=/dev/urandom of=$m/synced bs=64k count=16 conv=fsync 2>/dev/null && same "$(stat -c %s $m/synced)" 1048576; }
large_write() {
  dd if=/dev/urandom of=/tmp/large bs=1M count=64 2>/dev/null && md5sum </tmp/large >/tmp/large.md5 && dd if=/tmp/large of=$m/large bs=1M conv=fsync 2>/dev/null
}
large_read() { drop_caches && same "$(md5sum <$m/large)" "$(cat /tmp/large.md5)"; }
# Pieces in the wrong order, odd sizes, over what is there.
scattered_writes() {
  cp /tmp/large /tmp/scattered && cp /tmp/large $m/scattered || return 1
  for piece in 7 3 5 1 11 2; do
    for file in /tmp/scattered $m/scattered; do
      head -c 99991 /tmp/large | dd of=$file bs=99991 seek=$((piece * 37)) conv=notrunc 2>/dev/null || return 1
    done
  done
  drop_caches && same "$(md5sum <$m/scattered)" "$(md5sum </tmp/scattered)"
}
many_files() { mkdir $m/many && cd $m/many && i=0 && while [ $i -lt "$t_files" ]; do : >f$i || return 1; i=$((i + 1)); done; cd /; }
many_listed() {
  remount && same "$(ls $m/many | wc -l)" "$t_files" && same "$(ls $m/many | sort -u | wc -l)" "$t_files" && same "$(find $m/many -type f | wc -l)" "$t_files"
}
many_removed() { rm -r $m/many && [ ! -e $m/many ]; }
# -P: one line, however long the name of the server is.
statfs() { df -P $m | tail -n 1 | grep -Fq "$t_server:/export"; }
manifest() {
  cd $m && find . -type f ! -name manifest.md5 ! -name sparse -print0 | sort -z | xargs -0 md5sum >/tmp/manifest && cp /tmp/manifest manifest.md5
  status=$?
  cd /
  return $status
}
manifest_after_remount() { remount && drop_caches && cd $m && md5sum -c manifest.md5 >/dev/null && cd /; }

step mount mount_export
step create create
step rename_over rename_over
step rename_across_folders rename_across_folders
step unlink_while_open unlink_while_open
step hard_link hard_link
step symlink symlink
step special_files special_files
step modes_and_owners modes_and_owners
step permissions permissions
step set_times set_times
step truncate_up truncate_up
step truncate_down truncate_down
step append_from_two append_from_two
step sparse sparse
step long_names long_names
step exclusive_create exclusive_create
step fsync fsync_file
step large_write large_write
step large_read large_read
step scattered_writes scattered_writes
step many_files many_files
step many_listed many_listed
step many_removed many_removed
step statfs statfs
step manifest manifest
step manifest_after_remount manifest_after_remount
step umount umount $m
