//! A text in each process's memory by which it can be found from outside, and told from all others.
//!
//! The text for process 3 is `workload-process-3.`. It is put together in that process and nowhere
//! else: a search of all guest memory finds it in one address space only (and in those that the
//! process forks, and in the programs that go on for it).

use crate::system::memory;

/// `tag`'s text as far as it is the same for all, each byte changed by [`KEY`]: in clear, it would
/// be in the memory of all processes, as a part of the program.
const HIDDEN: [u8; 17] = {
    let mut hidden = *b"workload-process-";
    let mut at = 0;
    while at < hidden.len() {
        hidden[at] ^= KEY;
        at += 1;
    }
    hidden
};
const KEY: u8 = 0xa5;

/// Bytes that hold every text and a zero.
pub const LENGTH: usize = HIDDEN.len() + 22;

/// Writes the text of process `index` to `memory`, as far as it fits.
fn write(memory: &mut [u8], index: usize) {
    // Not known to the compiler, which would put the clear text into the program.
    let key = core::hint::black_box(KEY);
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = index;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let text = HIDDEN.iter().map(|byte| byte ^ key);
    let text = text.chain(digits[at..].iter().copied()).chain([b'.']);
    for (place, byte) in memory.iter_mut().zip(text) {
        *place = byte;
    }
}

/// Returns the text of process `index`, with zeros behind it.
#[must_use]
pub fn text(index: usize) -> [u8; LENGTH] {
    let mut text = [0; LENGTH];
    write(&mut text, index);
    text
}

/// Puts the text in the memory of this process, which is process `index`, for as long as it lives.
/// Without memory for it, it is not there.
pub fn hold(index: usize) {
    if let Ok(memory) = memory::private(memory::PAGE) {
        write(memory, index);
        core::hint::black_box(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_text_of_its_own() {
        for (index, expected) in [
            (0, &b"workload-process-0.\0"[..]),
            (7, b"workload-process-7.\0"),
            (63, b"workload-process-63.\0"),
        ] {
            let mut memory = [0; 64];
            write(&mut memory, index);
            assert!(memory.starts_with(expected), "{index}");
        }
    }

    #[test]
    fn the_program_does_not_have_the_text_in_clear() {
        assert!(HIDDEN.iter().all(|byte| !byte.is_ascii()));
    }
}
