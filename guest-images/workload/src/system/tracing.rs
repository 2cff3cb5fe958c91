//! Processes that trace others (`ptrace(2)`).

use linux_raw_sys::general::SIGSTOP;
use syscalls::{Sysno, syscall};

use super::{Errno, Pid, kill, own_pid};

/// The request to be traced by the parent.
const PTRACE_TRACEME: usize = 0;
/// The request to let a process go on to the beginning or the end of a system call.
const PTRACE_SYSCALL: usize = 24;
/// The low byte of a status of `wait(2)` that tells of a stop.
const STOPPED: i32 = 0x7f;

/// Has the parent trace this process, and stops until it lets it go on.
///
/// # Errors
/// What `ptrace(2)` and `kill(2)` say.
pub fn be_traced() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe {
        syscall!(Sysno::ptrace, PTRACE_TRACEME, 0, 0, 0)?;
        syscall!(Sysno::kill, own_pid(), SIGSTOP).map(drop)
    }
}

/// A child that is traced.
#[derive(Debug)]
pub struct Tracee {
    pid: Pid,
}

impl Tracee {
    /// Returns the child `pid`, which calls [`be_traced`].
    #[must_use]
    pub const fn new(pid: Pid) -> Self {
        Self { pid }
    }

    /// Lets it go on to the beginning of its next system call, or to the end of that which has begun. One that
    /// does not live is let be: [`Self::wait`] tells.
    pub fn resume(&self) {
        // SAFETY: the tracee's memory and registers are not touched.
        let _ = unsafe { syscall!(Sysno::ptrace, PTRACE_SYSCALL, self.pid, 0, 0) };
    }

    /// Waits until it has stopped (true) or ended (false).
    #[must_use]
    pub fn wait(&self) -> bool {
        let mut status = 0_i32;
        // SAFETY: the kernel writes one status.
        let outcome = unsafe { syscall!(Sysno::wait4, self.pid, &raw mut status, 0, 0) };
        outcome.is_ok() && status & 0xff == STOPPED
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// What `kill(2)` says, if it does not say that the child has ended.
    pub fn end(self) -> Result<(), Errno> {
        match kill(self.pid) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
        // A stop of before may be told first.
        while self.wait() {}
        Ok(())
    }
}
