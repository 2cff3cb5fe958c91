//! A parallel build: a shell with four jobs at a time, each of which makes files by pipelines of
//! programs and removes them.

use super::{Behavior, shell};
use crate::system::Errno;
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "builds",
    unit: "a job of some ten programs, one of which computes `unit` steps; four jobs at a time; needs busybox",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    shell::run(
        cr#"
b=/bin/busybox
directory=/tmp/workload-builds-$2
$b mkdir -p $directory && cd $directory || exit 1
$b dd if=$b of=source bs=4096 count=4 2>/dev/null

job() {
    $b cat source source >$4.in &&
        $b cat $4.in | $b gzip -1 >$4.gz &&
        $b gzip -dc $4.gz | $b sha256sum >$4.sum &&
        $b cp $4.in $4.out && $b cmp $4.in $4.out &&
        "$1" once "$2" "$3"
    result=$?
    $b rm -f $4.in $4.gz $4.sum $4.out
    return $result
}

for number in 1 2 3 4; do
    while (job "$@" $number); do :; done &
done
wait
cd / && $b rm -r $directory"#,
        work,
    )
}
