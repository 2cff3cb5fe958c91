//! The report of an exception that tarpit did not expect: always a bug, or broken hardware.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::{ExceptionVector, PageFaultErrorCode};
use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};
use x86_64::registers::model_specific::Efer;

use super::PerCpu;
use super::trap::{TrapFrame, name};
use crate::machine::{fatal, paging};

const PAGE_FAULT: u64 = ExceptionVector::Page as u64;
const DOUBLE_FAULT: u64 = ExceptionVector::Double as u64;
/// Words of the stack that are shown.
const STACK_WORDS: u64 = 16;

/// A dump is under way; an exception within it must not start another.
static DUMPING: AtomicBool = AtomicBool::new(false);

/// Reports the exception with a register dump, as a fatal error.
pub(in crate::machine) fn fatal_trap(frame: &TrapFrame) -> ! {
    if DUMPING.swap(true, Ordering::Relaxed) {
        fatal::report(format_args!(
            "tarpit: exception {} at {:#x} while dumping another\n",
            frame.vector, frame.rip
        ))
    }
    fatal::report(format_args!("{}", Dump(frame)))
}

struct Dump<'a>(&'a TrapFrame);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.0;
        let cr2 = Cr2::read_raw();
        let cpu = PerCpu::try_current();
        writeln!(
            f,
            "tarpit: fatal: exception {} ({}), error code {:#x}, at rip {:#x}; this is a bug of \
             tarpit, please report it with these lines",
            t.vector,
            name(t.vector),
            t.error_code,
            t.rip
        )?;
        match cpu {
            Some(cpu) => writeln!(f, "  cpu {} (APIC ID {})", cpu.index, cpu.apic_id)?,
            None => writeln!(f, "  cpu not set up yet")?,
        }
        if [PAGE_FAULT, DOUBLE_FAULT].contains(&t.vector)
            && let Some(stack) = cpu.and_then(|cpu| cpu.overflowed_stack(cr2))
        {
            writeln!(f, "  the {stack} stack has overflowed")?;
        }
        if t.vector == PAGE_FAULT {
            let code = PageFaultErrorCode::from_bits_retain(t.error_code);
            let yes_or = |flag, yes, no| {
                if code.contains(flag) { yes } else { no }
            };
            writeln!(
                f,
                "  {} of {:#x}, which is {}",
                yes_or(
                    PageFaultErrorCode::INSTRUCTION_FETCH,
                    "fetch",
                    yes_or(PageFaultErrorCode::CAUSED_BY_WRITE, "write", "read")
                ),
                cr2,
                yes_or(
                    PageFaultErrorCode::PROTECTION_VIOLATION,
                    "protected",
                    "not mapped"
                ),
            )?;
        }
        for row in [
            [
                ("rax", t.rax),
                ("rbx", t.rbx),
                ("rcx", t.rcx),
                ("rdx", t.rdx),
            ],
            [
                ("rsi", t.rsi),
                ("rdi", t.rdi),
                ("rbp", t.rbp),
                ("rsp", t.rsp),
            ],
            [("r8 ", t.r8), ("r9 ", t.r9), ("r10", t.r10), ("r11", t.r11)],
            [
                ("r12", t.r12),
                ("r13", t.r13),
                ("r14", t.r14),
                ("r15", t.r15),
            ],
            [
                ("rip", t.rip),
                ("cs ", t.cs),
                ("rfl", t.rflags),
                ("ss ", t.ss),
            ],
            [
                ("cr0", Cr0::read_raw()),
                ("cr2", cr2),
                ("cr3", Cr3::read_raw().0.start_address().as_u64()),
                ("cr4", Cr4::read_raw()),
            ],
        ] {
            for (name, value) in row {
                write!(f, "  {name} {value:016x}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "  efer {:#x}", Efer::read_raw())?;
        write_words(f, "stack", t.rsp & !7, STACK_WORDS)?;
        write_code(f, t.rip)
    }
}

/// Returns the words at `address`, as far as they are mapped.
fn write_words(f: &mut fmt::Formatter<'_>, title: &str, address: u64, count: u64) -> fmt::Result {
    write!(f, "  {title}")?;
    for i in 0..count {
        let at = address.wrapping_add(i * 8);
        if !paging::is_readable(at) {
            write!(f, " (not mapped)")?;
            break;
        }
        // SAFETY: mapped, and aligned; whatever is there is shown as a number.
        let word = unsafe { (at as *const u64).read_volatile() };
        if i % 4 == 0 && i > 0 {
            write!(f, "\n       ")?;
        }
        write!(f, " {word:016x}")?;
    }
    writeln!(f)
}

/// Returns the first bytes of the instruction that failed.
fn write_code(f: &mut fmt::Formatter<'_>, rip: u64) -> fmt::Result {
    write!(f, "  code ")?;
    for i in 0..15 {
        let at = rip.wrapping_add(i);
        if !paging::is_readable(at) {
            write!(f, " (not mapped)")?;
            break;
        }
        // SAFETY: mapped; whatever is there is shown as a number.
        write!(f, " {:02x}", unsafe { (at as *const u8).read_volatile() })?;
    }
    writeln!(f)
}
