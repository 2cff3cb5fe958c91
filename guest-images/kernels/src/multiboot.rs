//! What the loader told the kernel.

#[cfg(target_os = "none")]
unsafe extern "C" {
    static multiboot_magic: u32;
    static multiboot_information: u32;
}

/// The value that a multiboot 1 loader leaves in EAX.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// Flag in the information: there is a command line.
const HAS_COMMAND_LINE: u32 = 1 << 2;

/// Returns the kernel's command line; empty if the loader gave none.
#[cfg(target_os = "none")]
#[must_use]
pub fn command_line() -> &'static str {
    // SAFETY: the entry code wrote both words before anything else ran. The information is where
    // the loader said, and so is the string, which ends with a zero byte.
    unsafe {
        if multiboot_magic != LOADER_MAGIC {
            return "";
        }
        let information = multiboot_information as usize as *const u32;
        if information.read() & HAS_COMMAND_LINE == 0 {
            return "";
        }
        let line = information.add(4).read() as usize as *const core::ffi::c_char;
        core::ffi::CStr::from_ptr(line).to_str().unwrap_or("")
    }
}

/// Returns the kernel's command line: none on a hosted target.
#[cfg(not(target_os = "none"))]
#[must_use]
pub fn command_line() -> &'static str {
    let _ = (LOADER_MAGIC, HAS_COMMAND_LINE);
    ""
}

/// Flag in the information: there is a memory map.
const HAS_MEMORY_MAP: u32 = 1 << 6;
/// A range of the memory map that is RAM to be used.
const AVAILABLE: u32 = 1;

/// Returns the ranges of RAM in the memory map, in its order; none if the loader gave no map.
#[cfg(target_os = "none")]
pub fn available_memory() -> impl Iterator<Item = core::ops::Range<u64>> {
    // SAFETY: as in `command_line`; the map is as long as the information says, and so are its
    // entries, which are preceded by their lengths.
    let (mut entry, end) = unsafe {
        let information = multiboot_information as usize as *const u32;
        let has_map = multiboot_magic == LOADER_MAGIC && information.read() & HAS_MEMORY_MAP != 0;
        if has_map {
            let length = information.add(11).read() as usize;
            let start = information.add(12).read() as usize;
            (start, start + length)
        } else {
            (0, 0)
        }
    };
    core::iter::from_fn(move || {
        if entry >= end {
            return None;
        }
        // SAFETY: within the map.
        let (size, base, length, kind) = unsafe {
            (
                (entry as *const u32).read_unaligned(),
                ((entry + 4) as *const u64).read_unaligned(),
                ((entry + 12) as *const u64).read_unaligned(),
                ((entry + 20) as *const u32).read_unaligned(),
            )
        };
        entry += 4 + size as usize;
        Some((kind, base..base.saturating_add(length)))
    })
    .filter_map(|(kind, range)| (kind == AVAILABLE).then_some(range))
}

/// Returns the ranges of RAM in the memory map: none on a hosted target.
#[cfg(not(target_os = "none"))]
pub fn available_memory() -> impl Iterator<Item = core::ops::Range<u64>> {
    let _ = (HAS_MEMORY_MAP, AVAILABLE);
    core::iter::empty()
}

/// Returns the value of the command line's word `name=value`, if it is there and a number.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    command_line()
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Returns whether the command line has the word `word`.
#[must_use]
pub fn has_word(word: &str) -> bool {
    command_line()
        .split_ascii_whitespace()
        .any(|other| other == word)
}
