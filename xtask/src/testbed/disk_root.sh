#!/bin/busybox sh
# Starts the system on a disk, whose root file system it checks and may write. The kernel's command line says which
# disk (root=), and an address for the network card (address=10.0.0.1/24), if it has one.
/bin/busybox --install -s /bin
mkdir -p /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module"
done
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    address=*) address=${word#address=} ;;
    esac
done
ip link set lo up
if [ -n "$address" ]; then
    ip link set eth0 up
    ip address add "$address" dev eth0
fi
# The system has it checked, and then mounted for writing.
mount -t ext4 -o ro "$root" /root || exec sh
mount -o move /dev /root/dev
umount /proc /sys
exec switch_root /root /sbin/init
