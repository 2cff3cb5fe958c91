#!/bin/busybox sh
# A server of a file, or a client of it, as the kernel's command line says.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
role=$(sed 's/.*role=\([a-z]*\).*/\1/' /proc/cmdline)

say() { echo "networks: $role $*"; }
fail() { say "FAILED: $*"; dmesg; }
sum() { sha256sum < "$1" | cut -d ' ' -f 1; }

for module in /modules/*.ko; do
    insmod $module || fail "no $module"
done
# Asks the operator to go on, at the console beside the serial line.
exec 3<> /dev/hvc0
ask() {
    echo "networks: $role asks: $*" >&3
    read -r answer <&3
}
ip link set lo up
ip link set eth0 up
say "address $(cat /sys/class/net/eth0/address)"

if [ "$role" != client ]; then
    ip address add 10.0.0.1/24 dev eth0
    mkdir /www
    dd if=/dev/urandom of=/www/file bs=1024 count=700 status=none
    httpd -p 80 -h /www
    say "has $(sum /www/file)"
    while :; do sleep 1000; done
fi

ip address add 10.0.0.2/24 dev eth0
tries=0
until ping -c 1 -W 1 10.0.0.1 > /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || fail "no answer"
done
# Larger than a frame: in pieces.
ping -c 3 -s 4000 10.0.0.1 > /dev/null || fail "pieces"
say "features $(cat /sys/class/net/eth0/device/features)"
# One packet at a time.
ask "ping?"
ping -A -q -c 200 10.0.0.1 > /dev/null || fail "many pings"
ask "fetch?"
hundredths() { sed 's/ .*//; s/\.//' /proc/uptime; }
begun=$(hundredths)
wget -q -O /file http://10.0.0.1/file || fail wget
ended=$(hundredths)
say "took $((ended - begun))"
say "fetched $(sum /file)"
say done
while :; do sleep 1000; done
