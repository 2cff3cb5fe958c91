//! Is all RAM there that the memory map shows, and each byte of it at one address only?
//!
//! A word in each 64 KiB of it gets its own address, then all are read back. RAM above 4 GiB is
//! looked at through a window. With `mib=N` on the command line the map must amount to that, less the
//! legacy hole under 1 MiB.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::ops::Range;
use core::ptr;

use kernels::memory::{PAGE, PRESENT, UNMAPPED, WRITABLE, map, root};
use kernels::{Report, multiboot, println};

/// The distance between the words, in bytes.
const STEP: usize = 64 << 10;
/// The end of the memory that is mapped one to one at start.
const MAPPED: u64 = 4 << 30;
/// The start of free memory: below, there are the kernel and what the loader told it.
const FREE_FROM: u64 = 16 << 20;

/// Calls `access` with each word, and the address that it has.
fn words(range: &Range<u64>, mut access: impl FnMut(*mut u64, u64)) {
    let page = PAGE as u64;
    for address in (range.start.max(FREE_FROM)..range.end & !(page - 1)).step_by(STEP) {
        let address = address.next_multiple_of(8);
        if address < MAPPED {
            access(address as *mut u64, address);
        } else {
            // SAFETY: the window is not in the one-to-one map, and what was seen through it before
            // is flushed.
            unsafe {
                map(root(), UNMAPPED, address, PRESENT | WRITABLE);
                core::arch::asm!("invlpg [{}]", in(reg) UNMAPPED, options(nostack));
            }
            access((UNMAPPED + address % page) as *mut u64, address);
        }
    }
}

fn kernel(report: &mut Report) {
    let ranges = || multiboot::available_memory();
    let mut total = 0;
    for range in ranges() {
        println!("RAM {:#x}..{:#x}", range.start, range.end);
        total += range.end - range.start;
    }
    let mut written = 0u64;
    for range in ranges() {
        words(&range, |word, address| {
            written += 1;
            // SAFETY: RAM that nothing else uses.
            unsafe { ptr::write_volatile(word, address) };
        });
    }
    let mut wrong = 0u64;
    for range in ranges() {
        words(&range, |word, address| {
            // SAFETY: as above.
            if unsafe { ptr::read_volatile(word) } != address {
                wrong += 1;
            }
        });
    }
    println!("{written} words in {} MiB", total >> 20);
    report.equal("words that another has overwritten", wrong, 0);
    if let Some(mib) = multiboot::number("mib") {
        // The holes under 1 MiB are counted as RAM that is not there.
        report.equal("MiB of RAM", total.div_ceil(1 << 20), mib);
    }
}

kernels::kernel!(kernel);
