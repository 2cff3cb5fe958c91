#!/bin/busybox sh
# Starts the workload on a machine in a network, at the address on the kernel's command line
# (address=10.0.0.2/24).
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module"
done
for word in $(cat /proc/cmdline); do
    case $word in
    address=*) address=${word#address=} ;;
    esac
done
ip link set eth0 up
ip address add "$address" dev eth0
exec /workload
