//! What the kernel lives on, put back after each action.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::apic::{DEFAULT_ADDRESS, Register};
use arch::msr::IA32_EFER;
use arch::{ApicBaseFlags, Cr4Flags, reset};
use kernels::interrupts::{self, DEBUG, set_handler};
use kernels::lapic::{self, Lapic, Mode};
use kernels::{pic, pit, segments};
use x86_64::registers::model_specific::Msr;

/// The registers as they are to be.
static CR0: AtomicU64 = AtomicU64::new(0);
static CR3: AtomicU64 = AtomicU64::new(0);
static CR4: AtomicU64 = AtomicU64::new(0);
static EFER: AtomicU64 = AtomicU64::new(0);
/// Actions since the devices were last put back.
static SINCE: AtomicU64 = AtomicU64::new(0);
/// Devices are put back so often, in actions: it takes some exits.
const OFTEN: u64 = 16;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; 16384]>);

// SAFETY: only the CPU writes to it.
unsafe impl Sync for Stack {}

/// The stack that all interrupts and faults come in on.
static STACK: Stack = Stack(UnsafeCell::new([0; 16384]));

/// Memory below 1 MiB without what a journey between modes has there. What the kernel was started with is in it,
/// too.
const LOW_MEMORY: [core::ops::Range<u64>; 2] = [0..0x4000, 0xa000..0x9_0000];

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading has no effect.
        unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack)) }
        value
    }};
}

macro_rules! write {
    ($register:literal, $value:expr) => {
        // SAFETY: the value that the kernel began with.
        unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) $value, options(nostack)) }
    };
}

/// Remembers how everything is, and gives faults a stack of their own. The kernel's command line is gone after
/// it.
pub(crate) fn prepare() {
    set_handler(DEBUG, |frame| {
        frame.rflags &= !arch::RFlags::TRAP_FLAG.bits()
    });
    // SAFETY: the stack is in no other use.
    unsafe { segments::set_fault_stack(STACK.0.get() as u64 + 16384) };
    interrupts::use_fault_stack();
    let mut cr4 = read!("cr4");
    if has_xsave() {
        cr4 |= Cr4Flags::OSXSAVE.bits();
        write!("cr4", cr4);
        // SAFETY: x87, SSE and AVX, or the fault is caught.
        let _ = interrupts::catch(|| unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0);
        });
    }
    // Whoever goes astray finds breakpoints.
    for address in LOW_MEMORY.into_iter().flatten() {
        // SAFETY: memory that nothing else uses.
        unsafe { (address as *mut u8).write_volatile(0xcc) };
    }
    CR0.store(read!("cr0"), Ordering::Relaxed);
    CR3.store(read!("cr3"), Ordering::Relaxed);
    CR4.store(cr4, Ordering::Relaxed);
    // SAFETY: every 64-bit CPU has the MSR.
    EFER.store(unsafe { Msr::new(IA32_EFER).read() }, Ordering::Relaxed);
    devices();
}

fn has_xsave() -> bool {
    core::arch::x86_64::__cpuid(1).ecx >> 26 & 1 != 0
}

/// Puts registers back, and devices now and then.
pub(crate) fn restore() {
    // SAFETY: no interrupt is wanted between actions, and no segment with a base.
    unsafe { asm!("cli", "cld", "mov fs, {0:e}", "mov gs, {0:e}", in(reg) 0) };
    interrupts::load();
    segments::init();
    let [cr0, cr3, cr4, efer] = [&CR0, &CR3, &CR4, &EFER].map(|it| it.load(Ordering::Relaxed));
    if read!("cr4") != cr4 {
        write!("cr4", cr4);
    }
    if read!("cr0") != cr0 {
        write!("cr0", cr0);
    }
    if read!("cr3") != cr3 {
        write!("cr3", cr3);
    }
    write!("dr7", reset::DR7);
    // SAFETY: the value that it had before.
    unsafe {
        if Msr::new(IA32_EFER).read() != efer {
            Msr::new(IA32_EFER).write(efer);
        }
    }
    if SINCE.fetch_add(1, Ordering::Relaxed) >= OFTEN {
        devices();
    }
}

/// Puts the local APIC back where it belongs, in xAPIC mode.
pub(crate) fn local_apic() -> Lapic {
    let plain = DEFAULT_ADDRESS | ApicBaseFlags::BSP.bits();
    if lapic::base() != plain | lapic::GLOBAL_ENABLE {
        // Switched off, as the way from x2APIC mode is.
        lapic::set_base(plain);
    }
    Lapic::enable(Mode::XApic)
}

/// Puts the interrupt controllers back, and stops timers.
pub(crate) fn devices() {
    SINCE.store(0, Ordering::Relaxed);
    let lapic = local_apic();
    lapic.write(Register::TPR, 0);
    lapic.write(Register::LVT_TIMER, arch::apic::lvt::MASKED);
    lapic.write(Register::LVT_LINT0, arch::apic::lvt::MASKED);
    lapic.write(Register::INITIAL_COUNT, 0);
    for word in 0..8_u16 {
        let in_service = Register::at(Register::ISR.offset() + 0x10 * word);
        for _ in 0..lapic.read(in_service).count_ones() {
            lapic.end();
        }
    }
    pic::init();
    pit::control(0x30);
}
