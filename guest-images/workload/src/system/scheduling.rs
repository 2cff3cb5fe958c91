//! How the kernel schedules this process.

use linux_raw_sys::general::{PRIO_PROCESS, SCHED_RESET_ON_FORK};
use syscalls::{Sysno, syscall};

use super::Errno;

/// Puts this process into the scheduling class `policy` (`SCHED_*`), at `priority` within it.
///
/// # Errors
/// What `sched_setscheduler(2)` says.
pub fn set_policy(policy: u32, priority: u8) -> Result<(), Errno> {
    let priority = i32::from(priority);
    // SAFETY: the kernel reads one sched_param, which is an int.
    unsafe { syscall!(Sysno::sched_setscheduler, 0, policy, &raw const priority) }.map(drop)
}

/// Sets the policy as [`set_policy`] does, but not for processes that this one starts, which are
/// ordinary ones.
///
/// # Errors
/// What `sched_setscheduler(2)` says.
pub fn set_own_policy(policy: u32, priority: u8) -> Result<(), Errno> {
    set_policy(policy | SCHED_RESET_ON_FORK, priority)
}

/// Sets this process's nice value, from -20 (gets most) to 19.
///
/// # Errors
/// What `setpriority(2)` says.
pub fn set_nice(nice: i8) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { syscall!(Sysno::setpriority, PRIO_PROCESS, 0, isize::from(nice)) }.map(drop)
}

/// Keeps this process, and what it starts, on one CPU.
///
/// # Errors
/// What `sched_setaffinity(2)` says: `EINVAL` where there is no such CPU.
pub fn pin_to(cpu: u32) -> Result<(), Errno> {
    let mask = 1_u64.checked_shl(cpu).unwrap_or(0);
    // SAFETY: the kernel reads eight bytes.
    unsafe {
        syscall!(
            Sysno::sched_setaffinity,
            0,
            size_of_val(&mask),
            &raw const mask
        )
    }
    .map(drop)
}

/// Lets others run that want to.
pub fn yield_now() {
    // SAFETY: no memory is involved. It cannot fail.
    let _ = unsafe { syscall!(Sysno::sched_yield) };
}
