//! A web server that forks for each connection, and two clients, each of which is a new program for
//! each request.

use super::{Behavior, shell};
use crate::system::Errno;
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "serves",
    unit: "a request of 16 KiB answered by a web server, and the computation of `unit` steps; needs busybox",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    // Each process of this behavior has a port of its own.
    shell::run(
        cr#"
b=/bin/busybox
directory=/tmp/workload-serves-$2
port=$((8000 + $2))
# Fails where it is up already and may not be changed.
$b ifconfig lo 127.0.0.1 up 2>/dev/null
$b mkdir -p $directory
$b dd if=$b of=$directory/page bs=4096 count=4 2>/dev/null
$b httpd -f -p 127.0.0.1:$port -h $directory &
server=$!

request() {
    $b wget -q -O /dev/null http://127.0.0.1:$port/page
}

client() {
    # Until the server is there.
    for try in 1 2 3 4 5 6 7 8 9 10; do
        request 2>/dev/null && break
        $b sleep 0.2
    done
    request && while "$1" once "$2" "$3" && request 2>/dev/null; do :; done
    # Also where the shell that has started it was killed.
    kill $server 2>/dev/null
}

client "$@" &
client "$@" &
wait
$b rm -r $directory"#,
        work,
    )
}
