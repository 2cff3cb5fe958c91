#!/bin/busybox sh
# Starts the workload on a machine with disks.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module"
done
exec /workload
