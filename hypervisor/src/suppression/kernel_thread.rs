//! Whose kernel thread runs on a target's page tables.
//!
//! That a target's root is loaded does not say that the target runs: kernels keep the last process's
//! root while a thread of their own runs, or the idle loop. The registers do not tell them apart, but
//! the stack does: at the top of the kernel stack of a thread that came from user mode lies the frame
//! with which it returns there, pushed by the processor, or in the same form by the kernel, as IRET
//! wants it. A thread of the kernel's has none.

#![forbid(unsafe_code)]

use arch::RFlags;

/// The point in user mode to which a thread in the kernel goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserFrame {
    /// The instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
}

/// The contents of a kernel's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    /// Nothing that can be read.
    Unreadable,
    /// A frame that goes back to user mode.
    Holds(UserFrame),
    /// No such frame.
    HoldsNone,
}

/// The kind of thread that runs, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Thread {
    /// A thread of unknown kind: nobody has looked, or it cannot be told.
    #[default]
    Unknown,
    /// A thread that came from user mode, and goes back there.
    User,
    /// A thread of the kernel's own.
    Kernel,
}

/// The depth to which the frame is looked for, up the stack, in bytes.
const DEPTH: u64 = 16 << 10;
/// The size of the pieces in which the stack is read, in bytes: they do not cross pages.
const PIECE: u64 = 512;
/// RFLAGS in user mode: bit 1 is always set, and so is IF; bits that have no meaning are zero.
const RFLAGS_FIXED: u64 = 1 << 1 | RFlags::INTERRUPT_FLAG.bits();
const RFLAGS_ZERO: u64 = !(RFlags::all().bits() | 1 << 1);

/// Returns whether the five words of `frame`, from the lowest address on, are what IRETQ takes to
/// return to user mode (SDM vol. 3A, 6.14.3): RIP, CS, RFLAGS, RSP, SS.
fn returns_to_user_mode(frame: [u64; 5], linear_address_bits: u32) -> bool {
    let [rip, cs, rflags, rsp, ss] = frame;
    let half = 1u64 << (linear_address_bits - 1);
    let is_user_selector = |selector: u64| selector < 0x1_0000 && selector & 3 == 3;
    rip < half
        && rsp < half
        && is_user_selector(cs)
        && is_user_selector(ss)
        && rflags & RFLAGS_FIXED == RFLAGS_FIXED
        && rflags & RFLAGS_ZERO == 0
}

/// Tells whose the thread is that runs in the kernel of a 64-bit guest with stack pointer `rsp`.
/// `read` copies a part of a page of the guest's linear memory; false if it is not mapped.
pub(crate) fn owner(
    rsp: u64,
    linear_address_bits: u32,
    read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Thread {
    match search(rsp, linear_address_bits, read) {
        Stack::Unreadable => Thread::Unknown,
        Stack::Holds(_) => Thread::User,
        Stack::HoldsNone => Thread::Kernel,
    }
}

/// Returns where in user mode the thread goes back to that runs in the kernel, by the same parameters
/// as [`owner`]; `None` if there is no such place, or it cannot be told.
pub(crate) fn user_frame(
    rsp: u64,
    linear_address_bits: u32,
    read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Option<UserFrame> {
    match search(rsp, linear_address_bits, read) {
        Stack::Holds(frame) => Some(frame),
        Stack::Unreadable | Stack::HoldsNone => None,
    }
}

/// Looks for the frame from `rsp` upwards.
fn search(
    rsp: u64,
    linear_address_bits: u32,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Stack {
    if !rsp.is_multiple_of(8) || !(33..=57).contains(&linear_address_bits) {
        return Stack::Unreadable;
    }
    // Threads are seldom deep in the kernel: the first look is a short one.
    let mut piece = [0; PIECE as usize];
    let mut last = [0; 5];
    let mut seen = 0_u32;
    let mut word_at = rsp;
    let end = rsp.saturating_add(DEPTH);
    while word_at < end {
        let Some(next) = (word_at & !(PIECE - 1)).checked_add(PIECE) else {
            break;
        };
        let piece = &mut piece[..(next - word_at) as usize];
        if !read(word_at, piece) {
            // The end of the stack, if there was one.
            break;
        }
        for word in piece.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            last = [last[1], last[2], last[3], last[4], word];
            seen += 1;
            // Few words are a selector of user mode's.
            if word < 0x1_0000
                && word & 3 == 3
                && seen >= 5
                && returns_to_user_mode(last, linear_address_bits)
            {
                let [rip, _, _, rsp, _] = last;
                return Stack::Holds(UserFrame { rip, rsp });
            }
        }
        word_at = next;
    }
    if seen == 0 {
        Stack::Unreadable
    } else {
        Stack::HoldsNone
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A stack of four pages that ends at `TOP`, with nothing mapped behind it.
    const TOP: u64 = 0xffff_c900_0010_4000;

    fn look(words: &[(u64, u64)], rsp: u64) -> Thread {
        owner(rsp, 48, reader(words))
    }

    fn reader(words: &[(u64, u64)]) -> impl FnMut(u64, &mut [u8]) -> bool {
        let memory: BTreeMap<u64, u64> = words.iter().copied().collect();
        move |base, piece| {
            if !(TOP - 0x4000..TOP).contains(&base) {
                return false;
            }
            assert!(base % 4096 + piece.len() as u64 <= 4096);
            for (index, word) in piece.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let value = memory.get(&(base + 8 * index as u64)).copied();
                *word = value.unwrap_or(0xffff_ffff_8100_0000).to_le_bytes();
            }
            true
        }
    }

    fn frame(at: u64, words: [u64; 5]) -> [(u64, u64); 5] {
        core::array::from_fn(|index| (at + 8 * index as u64, words[index]))
    }

    const USER: [u64; 5] = [0x40_1000, 0x33, 0x246, 0x7fff_1234_5678, 0x2b];

    #[test]
    fn a_thread_that_came_from_user_mode_goes_back_there() {
        let frame = frame(TOP - 40, USER);
        for depth in [40, 48, 0x400, 0x2f80] {
            assert_eq!(look(&frame, TOP - depth), Thread::User);
        }
    }

    #[test]
    fn where_it_goes_back_to_is_in_its_frame() {
        let words = frame(TOP - 40, USER);
        let expected = UserFrame {
            rip: USER[0],
            rsp: USER[3],
        };
        assert_eq!(user_frame(TOP - 0x200, 48, reader(&words)), Some(expected));
        assert_eq!(user_frame(TOP - 0x200, 48, reader(&[])), None);
    }

    #[test]
    fn a_thread_of_the_kernels_does_not() {
        assert_eq!(look(&[], TOP - 0x200), Thread::Kernel);
        // A frame of an interrupt that met the kernel.
        let nested = [0xffff_ffff_8100_1234, 0x10, 0x246, TOP - 0x100, 0x18];
        assert_eq!(
            look(&frame(TOP - 0x180, nested), TOP - 0x200),
            Thread::Kernel
        );
        for (word, value) in [(1, 0x10), (2, 0x46), (2, 0xffff_0246), (3, TOP), (4, 0x18)] {
            let mut words = USER;
            words[word] = value;
            assert_eq!(look(&frame(TOP - 40, words), TOP - 0x200), Thread::Kernel);
        }
    }

    #[test]
    fn a_stack_that_cannot_be_read_says_nothing() {
        assert_eq!(look(&[], TOP + 0x100), Thread::Unknown);
        assert_eq!(look(&[], TOP - 0x101), Thread::Unknown);
    }
}
