//! Two processes that wait for each other by turns: context switches all the time.

use super::Behavior;
use crate::system::files::{File, pipe};
use crate::system::{self, Errno, Fork};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "ping-pong",
    unit: "a byte to another process by a pipe, and back by another: two switches",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let (to_read, ours) = pipe()?;
    let (theirs, to_write) = pipe()?;
    match system::fork()? {
        Fork::Child => {
            // Whoever keeps a pipe's end for writing never reads its end.
            ours.close()?;
            theirs.close()?;
            system::exit(i32::from(answer(&to_read, &to_write).is_err()))
        }
        Fork::Parent(child) => {
            to_read.close()?;
            to_write.close()?;
            let mut byte = [0x5a];
            while work.goes_on() {
                ours.write(&byte)?;
                if theirs.read(&mut byte)? == 0 {
                    return Err(Errno::EPIPE);
                }
                work.count();
            }
            ours.close()?;
            system::wait_for(child);
            Ok(())
        }
    }
}

/// Sends each byte back, until nobody sends any more.
fn answer(from: &File, to: &File) -> Result<(), Errno> {
    let mut byte = [0];
    while from.read(&mut byte)? > 0 {
        to.write(&byte)?;
    }
    Ok(())
}
