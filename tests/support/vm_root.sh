#!/bin/bash
# vm_root.sh ROOT COMMAND...: runs a command in a folder that looks like a machine's own disk.
#
# Programs are this machine's, read-only; everything else is the folder's. To be called in mount and
# pid namespaces of its own, as what is mounted here goes with them. VM_SHARED names more folders
# that are shared read-only.
set -eu
root=$1
shift
for path in /usr /opt $VM_SHARED; do
  [ -d "$path" ] || continue
  mkdir -p "$root$path"
  mount --bind "$path" "$root$path"
  mount -o remount,ro,bind "$root$path"
done
mount --bind "$root/bin-local" "$root/usr/local/bin"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/sshd"
exec /usr/sbin/chroot "$root" "$@"
