//! The system calls of the workload, as safe functions.

pub mod clones;
pub mod families;
pub mod files;
pub mod memory;
pub mod mover;
pub mod scheduling;
pub mod sockets;
pub mod threads;
pub mod time;
pub mod top_level;
pub mod tracing;

use core::ffi::{CStr, c_char};
use core::fmt;
use core::mem::MaybeUninit;

use linux_raw_sys::general::{
    ECHO, LINUX_REBOOT_CMD_POWER_OFF, LINUX_REBOOT_CMD_RESTART, LINUX_REBOOT_MAGIC1,
    LINUX_REBOOT_MAGIC2, POLLIN, SIGKILL, pollfd, termios,
};
use linux_raw_sys::ioctl::{TCGETS, TCSETS};
use syscalls::{Sysno, syscall};

pub use syscalls::Errno;

/// `prctl(2)`'s option for the signal that a process gets when its parent ends.
const PR_SET_PDEATHSIG: usize = 1;
/// `syslog(2)`'s request for the log, from where it was last cleared.
const SYSLOG_ACTION_READ_ALL: usize = 3;
/// The same, which clears the log: it begins anew for those who read it so.
const SYSLOG_ACTION_READ_CLEAR: usize = 4;
/// `syslog(2)`'s request for the log's size.
const SYSLOG_ACTION_SIZE_BUFFER: usize = 10;
/// `waitpid(2)`'s option not to wait.
const WNOHANG: usize = 1;

const STDIN: usize = 0;
const STDOUT: usize = 1;

/// The standard output of the program: it prints by one `write` for each piece of text.
#[derive(Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_all(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Writes all of `bytes` to the console.
///
/// # Errors
/// What `write(2)` says.
pub fn write_all(mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        // SAFETY: the kernel only reads the slice.
        let written = unsafe { syscall!(Sysno::write, STDOUT, bytes.as_ptr(), bytes.len()) }?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Reads what the console has, into `buffer`, and says how much of it. Waits if it has none.
///
/// # Errors
/// What `read(2)` says.
pub fn read_console(buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes within the slice.
    unsafe { syscall!(Sysno::read, STDIN, buffer.as_mut_ptr(), buffer.len()) }
}

/// Waits until the console has input (true) or `nanoseconds` are over (false); `None` is forever.
#[must_use]
pub fn wait_for_console(nanoseconds: Option<u64>) -> bool {
    let mut console = pollfd {
        fd: STDIN as i32,
        events: POLLIN as i16,
        revents: 0,
    };
    let timeout = nanoseconds.map(time::timespec);
    let timeout = timeout
        .as_ref()
        .map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: both structures live until the call returns, and the signal mask is absent.
    let ready = unsafe { syscall!(Sysno::ppoll, &raw mut console, 1, timeout, 0, 0) };
    ready == Ok(1)
}

/// Turns the console's echo on or off. Without effect where the console is no terminal.
pub fn set_echo(on: bool) {
    let mut settings = MaybeUninit::<termios>::zeroed();
    // SAFETY: the kernel writes one termios.
    if unsafe { syscall!(Sysno::ioctl, STDIN, TCGETS, settings.as_mut_ptr()) }.is_err() {
        return;
    }
    // SAFETY: all-zero bytes were a valid termios already.
    let mut settings = unsafe { settings.assume_init() };
    if on {
        settings.c_lflag |= ECHO;
    } else {
        settings.c_lflag &= !ECHO;
    }
    // SAFETY: the kernel reads one termios. A refusal leaves the echo as it was: no harm.
    let _ = unsafe { syscall!(Sysno::ioctl, STDIN, TCSETS, &raw const settings) };
}

/// A process's number.
pub type Pid = usize;

/// The side of a fork that the caller is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's number.
    Parent(Pid),
}

/// Makes a copy of this process, which is killed when this one ends.
///
/// # Errors
/// What `fork(2)` says.
pub fn fork() -> Result<Fork, Errno> {
    // SAFETY: the process has one thread, so its copy is whole.
    match unsafe { syscall!(Sysno::fork) }? {
        0 => {
            // SAFETY: changes nothing in memory. Only matters where this is not the first process.
            let _ = unsafe { syscall!(Sysno::prctl, PR_SET_PDEATHSIG, SIGKILL) };
            Ok(Fork::Child)
        }
        child => Ok(Fork::Parent(child)),
    }
}

/// Makes a copy of this process, which may live longer than this one.
///
/// # Errors
/// What `fork(2)` says.
pub fn fork_to_outlive() -> Result<Fork, Errno> {
    // SAFETY: the process has one thread, so its copy is whole.
    Ok(match unsafe { syscall!(Sysno::fork) }? {
        0 => Fork::Child,
        child => Fork::Parent(child),
    })
}

/// Ends this process.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: does not return.
        let _ = unsafe { syscall!(Sysno::exit_group, status) };
    }
}

/// A process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The process's number.
    pub pid: Pid,
    /// The way in which it ended, as `wait(2)` codes it: 0 is well.
    pub status: i32,
}

fn wait(which: isize, options: usize) -> Option<Ended> {
    let mut status = 0_i32;
    // SAFETY: the kernel writes one status.
    match unsafe { syscall!(Sysno::wait4, which, &raw mut status, options, 0) } {
        Ok(0) | Err(_) => None,
        Ok(pid) => Some(Ended { pid, status }),
    }
}

/// Returns a child that has ended and was not told of yet.
#[must_use]
pub fn ended_child() -> Option<Ended> {
    wait(-1, WNOHANG)
}

/// Returns how `child` has ended, if it has.
#[must_use]
pub fn ended(child: Pid) -> Option<Ended> {
    wait(child as isize, WNOHANG)
}

/// Waits until `child` has ended.
pub fn wait_for(child: Pid) {
    while wait(child as isize, 0).is_none_or(|ended| ended.pid != child) {
        // SAFETY: no memory is involved: only asks whether the process is there.
        if unsafe { syscall!(Sysno::kill, child, 0) }.is_err() {
            return;
        }
    }
}

/// Ends `child` at once, whatever it does.
///
/// # Errors
/// What `kill(2)` says.
pub fn kill(child: Pid) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { syscall!(Sysno::kill, child, SIGKILL) }.map(drop)
}

/// Becomes the program `arguments[0]`. Returns only if that fails.
pub fn execute<const N: usize>(arguments: [&CStr; N]) -> Errno {
    let mut pointers = [core::ptr::null::<c_char>(); 9];
    const { assert!(N < 9, "the list of arguments ends with a null") };
    for (pointer, argument) in pointers.iter_mut().zip(arguments) {
        *pointer = argument.as_ptr();
    }
    let environment = [c"PATH=/bin:/sbin:/usr/bin".as_ptr(), core::ptr::null()];
    // SAFETY: strings end with zero bytes, both lists with a null.
    let outcome = unsafe {
        syscall!(
            Sysno::execve,
            pointers[0],
            pointers.as_ptr(),
            environment.as_ptr()
        )
    };
    outcome.err().unwrap_or(Errno::ENOEXEC)
}

/// Returns the process's own number.
#[must_use]
pub fn own_pid() -> Pid {
    // SAFETY: no memory is involved.
    unsafe { syscall!(Sysno::getpid) }.unwrap_or(0)
}

/// Returns the number of the process that has made this one.
#[must_use]
pub fn parent_pid() -> Pid {
    // SAFETY: no memory is involved.
    unsafe { syscall!(Sysno::getppid) }.unwrap_or(0)
}

/// Hands `reader` the kernel's log, from where it was last cleared, in memory that is there for so
/// long only; and clears it from there on if `clear`.
///
/// # Errors
/// What `syslog(2)` and `mmap(2)` say.
pub fn with_kernel_log(clear: bool, reader: impl FnOnce(&[u8])) -> Result<(), Errno> {
    let action = if clear {
        SYSLOG_ACTION_READ_CLEAR
    } else {
        SYSLOG_ACTION_READ_ALL
    };
    // SAFETY: no memory is involved.
    let size = unsafe { syscall!(Sysno::syslog, SYSLOG_ACTION_SIZE_BUFFER, 0, 0) }?;
    memory::with_private(size, |log| {
        // SAFETY: the kernel writes within the slice.
        let length = unsafe { syscall!(Sysno::syslog, action, log.as_mut_ptr(), log.len()) }?;
        reader(log.get(..length).unwrap_or_default());
        Ok(())
    })?
}

/// The way in which the machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Power off.
    Off,
    /// Reset and boot again.
    Restart,
}

/// Takes the machine down. Returns only if that is refused.
pub fn take_down(how: Down) -> Errno {
    let command = match how {
        Down::Off => LINUX_REBOOT_CMD_POWER_OFF,
        Down::Restart => LINUX_REBOOT_CMD_RESTART,
    };
    // SAFETY: no memory is involved.
    let outcome = unsafe {
        let _ = syscall!(Sysno::sync);
        syscall!(
            Sysno::reboot,
            LINUX_REBOOT_MAGIC1,
            LINUX_REBOOT_MAGIC2,
            command,
            0
        )
    };
    outcome.err().unwrap_or(Errno::EPERM)
}

/// The arguments that the kernel gave the program.
#[derive(Clone, Debug)]
pub struct Arguments {
    next: *const *const c_char,
    left: usize,
}

impl Arguments {
    /// Returns the arguments that the initial stack holds.
    ///
    /// # Safety
    /// `stack` must be the stack pointer as it was when the kernel started the program.
    #[must_use]
    pub unsafe fn from_initial_stack(stack: *const usize) -> Self {
        // SAFETY: the stack begins with the count, and the pointers follow it.
        unsafe {
            Self {
                left: *stack,
                next: stack.add(1).cast(),
            }
        }
    }
}

impl Iterator for Arguments {
    type Item = &'static CStr;

    fn next(&mut self) -> Option<&'static CStr> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: `left` counted one more pointer to a string, which lives as long as the process.
        unsafe {
            let argument = CStr::from_ptr(*self.next);
            self.next = self.next.add(1);
            Some(argument)
        }
    }
}
