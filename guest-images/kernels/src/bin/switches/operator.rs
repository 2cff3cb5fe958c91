//! What the operator is asked for. Each request is a line, after which the CPU halts until the operator
//! has done it and types a byte: so it can be seen how often the guest has exited until then.
//!
//! - `switches: suppress ROOT`: the address space is to be suppressed;
//! - `switches: release`: nothing is to be suppressed any more;
//! - `switches: ready NAME`: something begins that is to be measured;
//! - `switches: done NAME switched=N`: it is over, and has switched to the target so many times.

use core::fmt::Display;

use kernels::{println, serial};

/// Asks for the address space of `root` to be suppressed.
pub(crate) fn suppress(root: u64) {
    println!("switches: suppress {root:#x}");
    let _ = serial::wait();
}

/// Asks for all that is suppressed to be released.
pub(crate) fn release() {
    println!("switches: release");
    let _ = serial::wait();
}

/// Has what `action` does measured as `name`. It says how often it has switched to the target.
pub(crate) fn measure(name: impl Display, action: impl FnOnce() -> u64) {
    println!("switches: ready {name}");
    let _ = serial::wait();
    let switched = action();
    println!("switches: done {name} switched={switched}");
    let _ = serial::wait();
}
