//! Processes that come of others: who takes them on, and who ends them.

use linux_raw_sys::general::{P_ALL, SIGKILL, WEXITED, WNOHANG, WNOWAIT};
use syscalls::{Sysno, syscall};

use super::{Errno, own_pid};

/// `prctl(2)`'s option for the process that takes on its descendants' orphans.
const PR_SET_CHILD_SUBREAPER: usize = 36;

/// Makes this process the parent of those of its descendants whose parents end, which the system's first
/// process is by itself: then all that live have come of a child of this process.
pub fn adopt_orphans() {
    // SAFETY: no memory is involved. Linux 3.4 and later do not refuse it.
    let _ = unsafe { syscall!(Sysno::prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Begins a session of its own with this process, which leads no process group.
///
/// # Errors
/// What `setsid(2)` says.
pub fn begin_session() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { syscall!(Sysno::setsid) }.map(drop)
}

/// Returns whether this process has children, be it one that has ended and was not told of yet.
#[must_use]
pub fn has_children() -> bool {
    let options = WNOHANG | WNOWAIT | WEXITED;
    // SAFETY: the kernel writes nothing where there is nothing to write to.
    let outcome = unsafe { syscall!(Sysno::waitid, P_ALL, 0, 0, options, 0) };
    outcome != Err(Errno::ECHILD)
}

/// Waits until this process has no children.
pub fn wait_for_all() {
    let mut outcome = Ok(0);
    while outcome != Err(Errno::ECHILD) {
        // SAFETY: the kernel writes nothing where there is nothing to write to.
        outcome = unsafe { syscall!(Sysno::waitid, P_ALL, 0, 0, WEXITED, 0) };
    }
}

/// Returns whether this is the system's first process.
#[must_use]
pub fn is_first() -> bool {
    own_pid() == 1
}

/// Ends all processes of the system but its first, which this one is, at once. None that is being made
/// meanwhile is left out: Linux makes none of a process that has such a signal.
///
/// # Errors
/// `EPERM` where this is not the first process, and what `kill(2)` says.
pub fn kill_all_others() -> Result<(), Errno> {
    if !is_first() {
        return Err(Errno::EPERM);
    }
    // SAFETY: no memory is involved.
    match unsafe { syscall!(Sysno::kill, -1_isize, SIGKILL) } {
        // There was none.
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error),
    }
}
