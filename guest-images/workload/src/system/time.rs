//! Clocks, sleep and timers.

use core::arch::naked_asm;
use core::ptr;

use linux_raw_sys::general::{
    __kernel_itimerspec, __kernel_old_itimerval, __kernel_old_timeval, __kernel_timespec,
    CLOCK_MONOTONIC, CLOCK_REALTIME, ITIMER_REAL, SA_RESTART, SA_RESTORER, SIGALRM, TIMER_ABSTIME,
};
use syscalls::{Sysno, syscall};

use super::Errno;

pub(super) const NS_PER_S: u64 = 1_000_000_000;

/// A clock of `clock_gettime(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Wall time, since 1970.
    Realtime,
    /// Time since boot, without jumps.
    Monotonic,
}

/// Returns what `clock` shows, in nanoseconds.
#[must_use]
pub fn now(clock: Clock) -> u64 {
    let clock = match clock {
        Clock::Realtime => CLOCK_REALTIME,
        Clock::Monotonic => CLOCK_MONOTONIC,
    };
    let mut time = timespec(0);
    // Cannot fail for these two clocks; would show as 0 if it did.
    // SAFETY: the kernel writes one timespec.
    let _ = unsafe { syscall!(Sysno::clock_gettime, clock, &raw mut time) };
    (time.tv_sec as u64)
        .wrapping_mul(NS_PER_S)
        .wrapping_add(time.tv_nsec as u64)
}

/// Nanoseconds as the kernel takes them.
pub(super) const fn timespec(ns: u64) -> __kernel_timespec {
    __kernel_timespec {
        tv_sec: (ns / NS_PER_S) as i64,
        tv_nsec: (ns % NS_PER_S) as i64,
    }
}

/// Sleeps for so many nanoseconds, and what the kernel takes longer to wake it.
pub fn sleep_for(ns: u64) {
    sleep(ns, 0);
}

/// Sleeps until [`Clock::Monotonic`] shows `ns`, and what the kernel takes longer to wake it.
pub fn sleep_until(ns: u64) {
    sleep(ns, TIMER_ABSTIME);
}

fn sleep(ns: u64, flags: u32) {
    let time = timespec(ns);
    // A signal ends the sleep early, which is no harm to those who sleep here.
    // SAFETY: the kernel reads one timespec, and writes none where there is none to write to.
    let _ = unsafe {
        syscall!(
            Sysno::clock_nanosleep,
            CLOCK_MONOTONIC,
            flags,
            &raw const time,
            0
        )
    };
}

/// A timer that interrupts the CPU once, and does nothing else: nobody waits for it.
#[derive(Debug)]
pub struct OneShot {
    file: usize,
}

impl OneShot {
    /// Returns a timer that is not armed.
    ///
    /// # Errors
    /// What `timerfd_create(2)` says.
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: no memory is involved.
        let file = unsafe { syscall!(Sysno::timerfd_create, CLOCK_MONOTONIC, 0) }?;
        Ok(Self { file })
    }

    /// Lets it expire in so many nanoseconds from now.
    ///
    /// # Errors
    /// What `timerfd_settime(2)` says.
    pub fn arm(&self, ns: u64) -> Result<(), Errno> {
        let time = __kernel_itimerspec {
            it_interval: timespec(0),
            it_value: timespec(ns),
        };
        // SAFETY: the kernel reads one itimerspec, and writes none where there is none to write to.
        unsafe { syscall!(Sysno::timerfd_settime, self.file, 0, &raw const time, 0) }.map(drop)
    }
}

/// Has a signal delivered to this process each `us` microseconds (below a second), whose handler
/// does nothing.
///
/// # Errors
/// What `rt_sigaction(2)` and `setitimer(2)` say.
pub fn interrupt_every(us: u32) -> Result<(), Errno> {
    /// `struct sigaction` of the kernel's, with its mask of 64 signals.
    #[repr(C)]
    struct Action {
        handler: extern "C" fn(),
        flags: u64,
        restorer: extern "C" fn(),
        mask: u64,
    }
    let action = Action {
        handler: do_nothing,
        flags: u64::from(SA_RESTORER | SA_RESTART),
        restorer: return_from_signal,
        mask: 0,
    };
    let period = __kernel_old_timeval {
        tv_sec: 0,
        tv_usec: us.into(),
    };
    let timer = __kernel_old_itimerval {
        it_interval: period,
        it_value: period,
    };
    let old = ptr::null::<u8>();
    // SAFETY: the kernel reads both structures. The handler changes nothing, and the restorer
    // does what the kernel asks of it.
    unsafe {
        let mask_size = size_of_val(&action.mask);
        syscall!(
            Sysno::rt_sigaction,
            SIGALRM,
            &raw const action,
            old,
            mask_size
        )?;
        syscall!(Sysno::setitimer, ITIMER_REAL, &raw const timer, old).map(drop)
    }
}

extern "C" fn do_nothing() {}

/// Ends a signal's handling: what its handler returns to.
#[unsafe(naked)]
extern "C" fn return_from_signal() {
    naked_asm!("mov eax, {number}", "syscall", number = const 15) // rt_sigreturn
}

/// Returns the CPU's time-stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: every 64-bit CPU has it, and Linux lets processes read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
