#!/bin/busybox sh
# A shell on a machine in the network 10.0.0.0/24.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module"
done
ip link set eth0 up
ip address add 10.0.0.2/24 dev eth0
exec sh
