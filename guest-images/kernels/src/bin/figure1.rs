//! The schedule of the paper's Figure 1: two processes that take turns, each for four ticks of 10 ms.
//!
//! The processes run in ring 3 in address spaces of their own and count. `timer=lapic` on the
//! command line takes the tick from the local APIC instead of the PIT. Every `report=N` slices (50)
//! a line shows the counts, and the shortest and longest slice of each process by the TSC. Ends at a
//! `q` on the serial console, or after `slices=N`.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;
use core::cell::UnsafeCell;

use arch::apic::{Register, delivery_mode, lvt};
use kernels::interrupts::{Frame, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::memory::{self, PRESENT, UNMAPPED, USER, WRITABLE};
use kernels::{Report, multiboot, pic, pit, println, segments, serial, tsc};

/// The addresses of each process's code, and of the counter that it counts in.
const CODE: u64 = UNMAPPED + 0x10_0000;
const COUNTER: u64 = CODE + 0x1000;
/// The place in its page of code where a process says which it is, for those who look for it from outside.
const MARK: usize = 64;
/// `INC QWORD PTR [RDI]`; `JMP` to it.
const LOOP: [u8; 5] = [0x48, 0xff, 0x07, 0xeb, 0xfb];

const TICKS_PER_SECOND: u64 = 100;
const TICKS_PER_SLICE: u64 = 4;
const LAPIC_VECTOR: u8 = 0x40;

/// A process.
#[derive(Clone, Copy)]
struct Process {
    name: &'static str,
    root: u64,
    /// Its counter, at its physical address.
    counter: *const u64,
    registers: Frame,
    shortest: u64,
    longest: u64,
}

struct Scheduler {
    processes: [Process; 2],
    current: usize,
    ticks: u64,
    slices: u64,
    /// The time at which the present slice began; none where printing took part of it.
    since: Option<u64>,
    tsc_hertz: u64,
    report_every: u64,
    last_slice: u64,
}

struct Global(UnsafeCell<Option<Scheduler>>);

// SAFETY: one CPU. Set before the first tick, then used by the tick's handler alone, which runs
// with interrupts off.
unsafe impl Sync for Global {}

static SCHEDULER: Global = Global(UnsafeCell::new(None));

fn new_process(name: &'static str) -> Process {
    let root = memory::new_root();
    let (code, data) = (memory::allocate(), memory::allocate());
    // SAFETY: fresh pages, mapped in a fresh address space.
    unsafe {
        code.copy_from_nonoverlapping(LOOP.as_ptr(), LOOP.len());
        let mark = "figure1: process ".bytes().chain(name.bytes());
        for (offset, byte) in mark.enumerate() {
            code.add(MARK + offset).write(byte);
        }
        memory::map(root, CODE, code as u64, PRESENT | USER);
        memory::map(root, COUNTER, data as u64, PRESENT | USER | WRITABLE);
    }
    // SAFETY: zero is a valid value for each of the numbers in it.
    let mut registers: Frame = unsafe { core::mem::zeroed() };
    registers.rip = CODE;
    registers.rdi = COUNTER;
    registers.cs = segments::USER_CODE.into();
    registers.ss = segments::USER_DATA.into();
    registers.rflags = 0x202;
    println!("figure1: process {name} cr3={root:#x}");
    Process {
        name,
        root,
        counter: data.cast(),
        registers,
        shortest: u64::MAX,
        longest: 0,
    }
}

impl Scheduler {
    /// One tick: at the end of a slice, the other process's registers take the place of `frame`.
    fn tick(&mut self, frame: &mut Frame) {
        self.ticks += 1;
        if !self.ticks.is_multiple_of(TICKS_PER_SLICE) {
            return;
        }
        let now = tsc::now();
        let slice = self.since.replace(now).map(|since| now - since);
        self.slices += 1;
        let ended = &mut self.processes[self.current];
        ended.registers = *frame;
        if let Some(slice) = slice {
            ended.shortest = ended.shortest.min(slice);
            ended.longest = ended.longest.max(slice);
        }
        self.current ^= 1;
        let next = &self.processes[self.current];
        *frame = next.registers;
        // SAFETY: an address space of `new_root`'s, which has all that the kernel needs.
        unsafe { memory::load_root(next.root) };
        let quit = serial::receive() == Some(b'q') || self.slices == self.last_slice;
        if quit || self.slices.is_multiple_of(self.report_every) {
            self.report();
            self.since = None;
        }
        if quit {
            self.finish();
        }
    }

    fn microseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000 / u128::from(self.tsc_hertz)) as u64
    }

    fn report(&self) {
        for process in &self.processes {
            // SAFETY: the counter is in the one-to-one map; the process is not running.
            let count = unsafe { process.counter.read_volatile() };
            println!(
                "figure1: slices={} process={} count={count} shortest_us={} longest_us={}",
                self.slices,
                process.name,
                self.microseconds(process.shortest.min(process.longest)),
                self.microseconds(process.longest),
            );
        }
    }

    fn finish(&self) -> ! {
        let mut report = Report::new();
        for process in &self.processes {
            // SAFETY: as above.
            let count = unsafe { process.counter.read_volatile() };
            report.holds("a process has counted", count > 0);
            report.holds("a process has had slices", process.longest > 0);
        }
        report.finish()
    }
}

fn tick(frame: &mut Frame) {
    if frame.vector as u8 == pic::BASE {
        pic::end(0);
    } else {
        Lapic::current().end();
    }
    // SAFETY: see `Global`.
    if let Some(scheduler) = unsafe { &mut *SCHEDULER.0.get() } {
        scheduler.tick(frame);
    }
}

/// Starts the tick by the local APIC's timer, whose frequency is measured first.
fn start_lapic(lapic: Lapic, tsc_hertz: u64) {
    lapic.write(Register::DIVIDE, 0b1011);
    lapic.write(Register::LVT_TIMER, lvt::MASKED);
    lapic.write(Register::INITIAL_COUNT, u32::MAX);
    let first = lapic.read(Register::CURRENT_COUNT);
    tsc::wait(tsc_hertz / TICKS_PER_SECOND);
    let count = first - lapic.read(Register::CURRENT_COUNT);
    set_handler(LAPIC_VECTOR, tick);
    lapic.write(
        Register::LVT_TIMER,
        lvt::TIMER_PERIODIC | u32::from(LAPIC_VECTOR),
    );
    lapic.write(Register::INITIAL_COUNT, count);
}

/// Starts the tick by the PIT and the 8259.
fn start_pit(lapic: Lapic) {
    set_handler(pic::BASE, tick);
    lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    pic::unmask(0);
    pit::start(
        0,
        2,
        ((pit::HERTZ + TICKS_PER_SECOND / 2) / TICKS_PER_SECOND) as u16,
    );
}

fn run(_: &mut Report) {
    let tsc_hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let processes = [new_process("A"), new_process("B")];
    let first = processes[0];
    let scheduler = Scheduler {
        processes,
        current: 0,
        ticks: 0,
        slices: 0,
        since: None,
        tsc_hertz,
        report_every: multiboot::number("report").unwrap_or(50).max(1),
        last_slice: multiboot::number("slices").unwrap_or(u64::MAX),
    };
    // SAFETY: no tick comes yet.
    unsafe { *SCHEDULER.0.get() = Some(scheduler) };
    let stack = memory::allocate() as u64 + memory::PAGE as u64;
    // SAFETY: a fresh page.
    unsafe { segments::set_kernel_stack(stack) };
    let lapic = Lapic::enable(Mode::XApic);
    println!("figure1: ready");
    if multiboot::has_word("timer=lapic") {
        start_lapic(lapic, tsc_hertz);
    } else {
        start_pit(lapic);
    }
    // SAFETY: becomes process A, whose address space has all that the kernel needs. What is on
    // this stack is not used again.
    unsafe {
        memory::load_root(first.root);
        asm!(
            "push {ss}", "push 0", "push 0x202", "push {cs}", "push {rip}", "iretq",
            ss = in(reg) first.registers.ss,
            cs = in(reg) first.registers.cs,
            rip = in(reg) CODE,
            in("rdi") COUNTER,
            options(noreturn),
        )
    }
}

kernels::kernel!(run);
