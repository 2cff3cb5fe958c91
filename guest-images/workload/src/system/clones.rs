//! Processes on the same address space, one after the other.

use core::arch::asm;

use linux_raw_sys::general::{CLONE_VM, SIGCHLD};
use syscalls::Sysno;

use super::{Errno, memory};

const STACK: usize = 16 << 10;

/// Two stacks, which processes that share their memory use by turns.
#[derive(Debug)]
pub struct Stacks {
    next: *mut [u8; STACK],
    after: *mut [u8; STACK],
}

impl Stacks {
    /// Makes two stacks, of which no process uses any.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new() -> Result<Self, Errno> {
        let stack = || memory::private(STACK).map(|bytes| bytes.as_mut_ptr().cast());
        Ok(Self {
            next: stack()?,
            after: stack()?,
        })
    }
}

/// The function of a new process and its arguments, at the top of its stack.
struct Beginning<T> {
    run: fn(Stacks, T) -> !,
    stacks: Stacks,
    argument: T,
}

/// Makes a new process on the address space of this one, which calls `run` on the next of `stacks`, and ends this
/// one. Returns only if there is no new one.
pub fn hop<T: Copy + 'static>(stacks: Stacks, run: fn(Stacks, T) -> !, argument: T) -> Errno {
    const FLAGS: u32 = CLONE_VM | SIGCHLD;
    const {
        assert!(size_of::<Beginning<T>>() <= STACK / 4);
        assert!(align_of::<Beginning<T>>() <= 16);
    }
    let Stacks { next, after } = stacks;
    let at = STACK - size_of::<Beginning<T>>().next_multiple_of(16);
    let beginning = Beginning {
        run,
        stacks: Stacks {
            next: after,
            after: next,
        },
        argument,
    };
    let result: isize;
    // SAFETY: the stack is page-aligned, so that `top` is aligned to 16 and has room for the beginning above it.
    // Nobody uses it: whoever was on it has made the process that runs now, or one before, and has not touched
    // memory since, as the asm block ends a process without; and only who has `stacks`, of which there is one
    // at a time, writes to it. The new process has all registers as they are but RAX, RCX, R11 and RSP,
    // calls `begin` on its own stack, and never comes back. The old one goes on behind the asm block only
    // where there is no new one.
    unsafe {
        let top = next.cast::<u8>().add(at);
        top.cast::<Beginning<T>>().write(beginning);
        asm!(
            "syscall",
            "test rax, rax",
            "js 4f",
            "jz 3f",
            "2:",
            "xor edi, edi",
            "mov eax, {exit_group}",
            "syscall",
            "jmp 2b",
            "3:",
            "xor ebp, ebp",
            "mov rdi, rsp",
            "call r9",
            "ud2",
            "4:",
            exit_group = const Sysno::exit_group as i32,
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
    Errno::new(result.unsigned_abs() as i32)
}

extern "C" fn begin<T: Copy>(at: *const Beginning<T>) -> ! {
    // SAFETY: `hop` has put it there, for this process alone.
    let Beginning {
        run,
        stacks,
        argument,
    } = unsafe { at.read() };
    run(stacks, argument)
}
