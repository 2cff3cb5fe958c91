#!/bin/busybox sh
# Looks at a disk from inside: what it begins as, and that what is written stays.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
grep -q nomsi /proc/cmdline && vm=old || vm=web

say() { echo "disks: $vm $*"; }
fail() { say "FAILED: $*"; dmesg; }

for module in /modules/*.ko; do
    insmod $module || fail "no $module"
done
say "functions" $(cat /sys/bus/pci/devices/*/device)
say "id $(cat /sys/block/vda/serial), read-only $(cat /sys/block/vda/ro)"
say "begins as" $(sha256sum < /dev/vda)

# The workload with the disk that is kept: what it does, and for how many seconds.
blocks() {
    { echo start blocks; sleep $1; echo exit 0; sleep 1; } | /workload workload.mode=idle workload.interval_ms=0
}
grep virtio /proc/interrupts

# Asks the operator to go on, at the console beside the serial line.
[ $vm = old ] || exec 3<> /dev/hvc0
ask() {
    echo "disks: $vm asks: $*" >&3
    read -r answer <&3
    say "heard: $answer"
}

# One block at a time, from the disk, on the processor that takes its interrupts.
read_blocks() {
    irq=$(sed -n 's/^ *\([0-9]*\):.*virtio[0-9]*-req\.0$/\1/p' /proc/interrupts | head -n 1)
    ask "read?"
    taskset $(cat /proc/irq/$irq/effective_affinity) dd if=/dev/vda of=/dev/null bs=4k count=500 iflag=direct status=none || fail read
    ask "write?"
}

# Reads come from the disk and not from memory.
forget() { sync; echo 3 > /proc/sys/vm/drop_caches; }

# Pieces of random bytes at random places go to the disk and to a copy of it in memory.
write_at_random() {
    cat /dev/vda > /copy
    sectors=$(blockdev --getsz /dev/vda)
    round=0
    while [ $round -lt 30 ]
    do
        count=$((1 + RANDOM % 100))
        place=$((RANDOM % (sectors - count)))
        direct=
        case $((round % 3)) in
        0) from=/dev/zero; blkdiscard -o $((place * 512)) -l $((count * 512)) /dev/vda || fail discard ;;
        1) from=/dev/hwrng ;;
        2) from=/dev/urandom; direct=oflag=direct ;;
        esac
        dd if=$from of=/piece bs=512 count=$count iflag=fullblock status=none
        [ $from = /dev/zero ] ||
            dd if=/piece of=/dev/vda bs=512 seek=$place conv=notrunc $direct status=none || fail write
        dd if=/piece of=/copy bs=512 seek=$place conv=notrunc status=none
        round=$((round + 1))
        if [ $((round % 5)) = 0 ]
        then
            say "round $round"
            forget
            cmp /dev/vda /copy || fail "not what was written"
        fi
    done
    say "holds what was written"
}

keep_files() {
    mke2fs -F /dev/vda > /dev/null
    mkdir /mnt
    mount -t ext2 /dev/vda /mnt || fail mount
    for file in 1 2 3 4 5 6 7 8
    do
        cat /init /proc/interrupts > /mnt/$file
        sha256sum /mnt/$file >> /sums
    done
    umount /mnt
    forget
    mount -t ext2 /dev/vda /mnt || fail mount
    sha256sum -c -s /sums && say "holds its files"
    umount /mnt
}

if [ "$(cat /sys/block/vda/ro)" = 1 ]
then
    dd if=/dev/zero of=/dev/vda count=1 2> /dev/null || say "cannot be written"
else
    # After a restart: is there what was written before?
    [ "$(head -c 6 /dev/vdb)" != ledger ] || blocks 1
    read_blocks
    write_at_random
    keep_files
fi
say done
[ $vm = old ] || blocks 1000
while :
do
    sleep 1000
done
