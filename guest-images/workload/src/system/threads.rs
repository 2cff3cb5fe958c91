//! Threads, without a library's.

use core::arch::asm;

use linux_raw_sys::general::{
    CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_THREAD, CLONE_VM,
};
use syscalls::{Sysno, syscall};

use super::{Errno, memory};

const STACK: usize = 16 << 10;

/// The function of a new thread and its argument, at the top of its stack.
struct Beginning<T> {
    run: fn(T) -> !,
    argument: T,
}

/// Starts a thread that calls `run` with `argument`. It lives until the process ends.
///
/// # Errors
/// What `mmap(2)` and `clone(2)` say.
pub fn spawn<T: Copy + Send + 'static>(run: fn(T) -> !, argument: T) -> Result<(), Errno> {
    const FLAGS: u32 =
        CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    const {
        assert!(size_of::<Beginning<T>>() <= STACK / 4);
        assert!(align_of::<Beginning<T>>() <= 16);
    }
    let stack = memory::private(STACK)?;
    let at = STACK - size_of::<Beginning<T>>().next_multiple_of(16);
    let top = stack[at..].as_mut_ptr();
    let result: isize;
    // SAFETY: the stack is page-aligned, so that `top` is aligned to 16 and has room for the
    // beginning above it; nobody else has either. The new thread gets all registers as they are
    // but RAX, RCX, R11 and RSP, calls `begin` on its own stack, and never comes back; the old one
    // goes on behind the asm block with its own stack untouched. Nothing here uses thread-local
    // storage, which both threads have in common.
    unsafe {
        top.cast::<Beginning<T>>()
            .write(Beginning { run, argument });
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, rsp",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") Sysno::clone as isize => result,
            in("rdi") FLAGS as usize,
            in("rsi") top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            in("r9") begin::<T> as extern "C" fn(*const Beginning<T>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match result {
        1.. => Ok(()),
        _ => Err(Errno::new(result.unsigned_abs() as i32)),
    }
}

extern "C" fn begin<T: Copy>(at: *const Beginning<T>) -> ! {
    // SAFETY: `spawn` has put it there, for this thread alone.
    let Beginning { run, argument } = unsafe { at.read() };
    run(argument)
}

/// Ends this thread. The process ends with its last.
pub fn exit() -> ! {
    loop {
        // SAFETY: does not return; the stack stays mapped.
        let _ = unsafe { syscall!(Sysno::exit, 0) };
    }
}
