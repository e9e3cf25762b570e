#!/bin/bash
# vm_boot.sh IMAGE DISK ADDRESS: one "VM", in namespaces of its own, until they are killed.
#
# Its disk is the image, and what it writes on top of that. Its network card is given to it from
# outside, once this runs.
set -eu
here=$(dirname "$0")
image=$1 disk=$2 address=$3
mkdir -p "$disk/changes" "$disk/work" "$disk/root"
mount -t overlay overlay \
  -o "lowerdir=$image,upperdir=$disk/changes,workdir=$disk/work" "$disk/root"
hostname "vm-${address//./-}"
echo "$address $(hostname)" >> "$disk/root/etc/hosts"
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip addr add "$address/16" dev eth0
ip link set eth0 up
ip route add default via "$VM_GATEWAY"
exec bash "$here/vm_root.sh" "$disk/root" /usr/sbin/sshd -D -e -f /etc/ssh/sshd_vm
