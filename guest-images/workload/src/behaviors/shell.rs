//! The shell that some behaviors become.

use core::ffi::CStr;

use super::program::{Number, ONCE};
use crate::system::{self, Errno, files};
use crate::tag;
use crate::work::Work;

/// The program that brings a shell and all that its scripts call.
pub const BUSYBOX: &CStr = c"/bin/busybox";

/// Becomes a shell that runs `script`. In there `"$1" once "$2" "$3"` computes a unit, and fails when
/// the process was asked to end; `$0` is the text by which it is found from outside.
///
/// # Errors
/// `ENOENT` where there is no busybox, and what `readlink(2)` and `execve(2)` say.
pub(super) fn run(script: &CStr, work: Work) -> Result<(), Errno> {
    if !files::exists(BUSYBOX) {
        return Err(Errno::ENOENT);
    }
    let mut path = [0; 256];
    let program = files::own_program(&mut path)?;
    let tag = tag::text(work.index());
    let tag = CStr::from_bytes_until_nul(&tag).unwrap_or_default();
    let (index, unit) = (Number::of(work.index() as u64), Number::of(work.unit()));
    let (index, unit) = (index.text(), unit.text());
    let arguments = [BUSYBOX, c"sh", c"-c", script, tag, program, index, unit];
    Err(system::execute(arguments))
}

/// The scripts have the word in them.
const _: () = assert!(matches!(ONCE.to_bytes(), b"once"));
