//! The other CPUs of the machine: starting them, and interrupting them.
//!
//! The boot CPU starts one application processor after the other: a page below 1 MiB gets the
//! trampoline, INIT and start-up IPIs make the CPU run it (SDM vol. 3A, 9.4.4), and it comes
//! out on a stack of its own, gets its per-CPU state, lets its TSC be compared with the boot
//! CPU's, and takes up the work it was started for.
//!
//! # NMIs
//! An NMI strikes anywhere, also where a lock is held. Its handler runs on a stack of its own
//! and only counts, and does what a [kick], or an [interrupt of a serial line](line_interrupts), is for: it takes no lock, sends nothing and raises no exception, so
//! that the IRET at its end is the first that unblocks NMIs. GS base is the CPU's own at all times in root
//! mode, so there is no moment at which it could find another one.

pub(crate) mod kick;
mod stop;
pub(crate) mod threads;
mod trampoline;
pub(crate) mod tsc_sync;

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::ExceptionVector;
use devices::time::Hertz;
use spin::{Mutex, Once};
use vmx::addr::PAGE_SIZE;

use super::cpu::trap::{self, TrapFrame};
use super::cpu::{PerCpu, apic_id, stack::GuardedStack};
use super::image::Trampoline;
use super::local_apic::LocalApic;
use super::memory::PhysRange;
use super::{boot_info::BootInfo, line_interrupts, paging};
use crate::machine::host_time::host_now;
use tsc_sync::{Comparison, Skew};

pub(crate) use stop::{note_task, others, stop_others};

/// The most CPUs that are used.
pub(crate) const MAX_CPUS: usize = 64;
/// The stack of an application processor: as large as the boot CPU's.
const STACK_SIZE: u64 = 128 << 10;

/// The APIC ID of each CPU, by its index.
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// NMIs that have struck, but for kicks and serial lines'.
static NMIS: AtomicU64 = AtomicU64::new(0);

/// Returns how many NMIs the host has taken that are neither kicks nor of a serial line: none is expected, all are survived.
#[must_use]
pub(crate) fn nmis() -> u64 {
    NMIS.load(Ordering::Relaxed)
}

fn on_nmi(frame: &mut TrapFrame) {
    stop::stop_if_asked(frame);
    let is_kick = kick::on_nmi(frame);
    // One may be both.
    let is_of_line = line_interrupts::on_nmi(is_kick);
    if !is_kick && !is_of_line {
        NMIS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Lets NMIs, those from other CPUs above all, be handled; on the boot CPU, before others start.
pub(crate) fn init() {
    trap::set_hook(ExceptionVector::NonMaskableInterrupt as u8, Some(on_nmi));
    APIC_IDS[0].store(apic_id(), Ordering::Relaxed);
}

/// A check that the CPU that runs it can do its work; its error says why it cannot.
pub(crate) type Check = fn() -> Result<(), &'static str>;

/// The work of a CPU from its start on.
pub(crate) type Work = fn(&'static PerCpu) -> !;

/// The data that application processors need when they start.
struct Launch {
    check: Check,
    work: Work,
    stack_guard: AtomicU64,
    /// CPUs that have come up, the boot CPU included.
    running: AtomicU32,
    comparison: Comparison,
    /// The reason found by the last CPU that has come up, if it cannot be used.
    refused: Mutex<Option<Refusal>>,
}

static LAUNCH: Once<Launch> = Once::new();

/// The reason why a CPU is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No answer to INIT and start-up IPIs.
    Silent,
    /// A lack of memory for its stacks.
    OutOfMemory,
    /// A TSC that differs from the boot CPU's, and cannot be set right.
    Tsc(Skew),
    /// An inability to do its work, for this reason.
    Unfit(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("it does not answer to INIT and start-up IPIs"),
            Self::OutOfMemory => f.write_str("there is no memory for its stacks"),
            Self::Unfit(reason) => f.write_str(reason),
            Self::Tsc(skew) => write!(
                f,
                "its TSC is {skew} off the boot CPU's, and cannot be adjusted"
            ),
        }
    }
}

/// Starts the CPUs with these APIC IDs, one after the other, and has each `check` itself and do
/// `work`. Those that cannot be used are named in a warning and left halted. Returns how many CPUs run, the
/// boot CPU included.
///
/// # Safety
/// Once, on the boot CPU, after [`init`] and with its LAPIC enabled; `trampoline` is the
/// image's; the memory below 1 MiB that the memory map calls available is unused.
pub(crate) unsafe fn start_others(
    others: &[u32],
    tsc: Hertz,
    boot_info: &BootInfo,
    trampoline: &Trampoline,
    check: Check,
    work: Work,
) -> u32 {
    if others.is_empty() {
        return 1;
    }
    let modules = boot_info.modules.iter().map(|module| module.range);
    let Some(page) = trampoline::page(&boot_info.memory_map, modules) else {
        log::warn!("no free page below 1 MiB to start other CPUs from: using one CPU");
        return 1;
    };
    let Some(start_page) = trampoline::start_up_page(page) else {
        return 1;
    };
    // SAFETY: the page is available memory that nobody uses.
    if let Err(error) = unsafe { trampoline::place(trampoline, page) } {
        log::warn!("other CPUs cannot be started ({error}): using one CPU");
        return 1;
    }
    let launch = LAUNCH.call_once(|| Launch {
        check,
        work,
        stack_guard: AtomicU64::new(0),
        running: AtomicU32::new(1),
        comparison: Comparison::new(),
        refused: Mutex::new(None),
    });
    for &id in others {
        let running = launch.running.load(Ordering::Acquire);
        if running as usize == MAX_CPUS {
            log::warn!("using {MAX_CPUS} of {} CPUs", others.len() + 1);
            break;
        }
        if let Err(refusal) = start(launch, id, running, tsc, start_page, trampoline) {
            log::warn!("CPU with APIC ID {id} is not used: {refusal}");
        }
    }
    // SAFETY: all that were started have left the page.
    let _ = unsafe { paging::protect(page_range(page), Some(paging::Protection::Data)) };
    launch.running.load(Ordering::Acquire)
}

const fn page_range(page: u64) -> PhysRange {
    PhysRange::new(page, page + PAGE_SIZE)
}

/// Starts one CPU and waits until it runs or is given up.
fn start(
    launch: &Launch,
    id: u32,
    index: u32,
    tsc: Hertz,
    start_page: u8,
    trampoline: &Trampoline,
) -> Result<(), Refusal> {
    let stack = GuardedStack::new(STACK_SIZE).map_err(|_| Refusal::OutOfMemory)?;
    launch
        .stack_guard
        .store(stack.guard_address(), Ordering::Relaxed);
    trampoline
        .stack
        .store(stack.top().as_u64(), Ordering::Release);
    launch.comparison.reset();
    *launch.refused.lock() = None;
    if let Some(slot) = APIC_IDS.get(index as usize) {
        slot.store(id, Ordering::Relaxed);
    }

    let apic = LocalApic::current();
    let milliseconds = |count: u64| tsc.get() / 1000 * count;
    apic.send_init(id);
    wait(milliseconds(10));
    // The second start-up is for CPUs that missed the first, which is ignored by one that
    // has started (SDM vol. 3A, 9.4.4.1). It must not come when the CPU has been given up.
    for patience in [milliseconds(20), milliseconds(1000)] {
        apic.send_start_up(id, start_page);
        let sent = host_now();
        while host_now().since(sent) < patience {
            if launch.comparison.has_joined() {
                // Answers until the other CPU knows its skew; then it says what comes of it.
                launch.comparison.answer();
                while launch.running.load(Ordering::Acquire) == index {
                    if let Some(refusal) = launch.refused.lock().take() {
                        return Err(refusal);
                    }
                    core::hint::spin_loop();
                }
                return Ok(());
            }
            core::hint::spin_loop();
        }
    }
    // Should it wake up after all, it finds itself uncalled for: back to wait-for-start-up.
    apic.send_init(id);
    Err(Refusal::Silent)
}

/// Lets `ticks` of the TSC pass.
fn wait(ticks: u64) {
    let start = host_now();
    while host_now().since(start) < ticks {
        core::hint::spin_loop();
    }
}

/// Returns what an application processor does from the end of the trampoline on.
///
/// # Safety
/// Once on each CPU that [`start_others`] starts, from the trampoline: in 64-bit mode with
/// interrupts off, tarpit's page tables, and the stack that was made for it.
pub unsafe fn start_application_processor() -> ! {
    let Some(launch) = LAUNCH.get() else {
        super::power::halt()
    };
    let guard = launch.stack_guard.load(Ordering::Relaxed);
    // The next number: one that is given up leaves it to the next.
    let index = launch.running.load(Ordering::Acquire);
    // SAFETY: the heap and paging are set up; once on this CPU, interrupts off.
    let cpu = match unsafe { PerCpu::init(guard, index) } {
        Ok(cpu) => cpu,
        Err(_) => give_up(launch, Refusal::OutOfMemory),
    };
    let skew = launch.comparison.measure();
    if !skew.is_none() {
        // SAFETY: nothing on this CPU depends on its TSC yet.
        if !unsafe { tsc_sync::adjust(skew) } {
            give_up(launch, Refusal::Tsc(skew));
        }
        log::info!("cpu {}: TSC set right by {skew}", cpu.index);
    }
    if let Err(reason) = (launch.check)() {
        give_up(launch, Refusal::Unfit(reason));
    }
    launch.running.fetch_add(1, Ordering::Release);
    (launch.work)(cpu)
}

fn give_up(launch: &Launch, refusal: Refusal) -> ! {
    // The boot CPU waits in the comparison.
    launch.comparison.finish();
    *launch.refused.lock() = Some(refusal);
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
