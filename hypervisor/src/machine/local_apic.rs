//! The host's own local APICs: reaching their registers, and interrupting other CPUs (SDM
//! vol. 3A, ch. 11).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arch::ApicBaseFlags;
use arch::apic::{Register, delivery_mode, icr, lvt, svr};
use arch::msr::IA32_APIC_BASE;
use vmx::msr;

use super::cpu::PerCpu;
use super::cpu::trap::{self, TrapFrame};

/// The vector of spurious interrupts, which need no EOI.
const SPURIOUS_VECTOR: u8 = 0xff;

/// The local sources of interrupts, and how many entries a local vector table has that has them (SDM
/// vol. 3A, 11.5.1).
const LOCAL_SOURCES: [(u32, Register); 7] = [
    (1, Register::LVT_TIMER),
    (1, Register::LVT_LINT0),
    (1, Register::LVT_LINT1),
    (1, Register::LVT_ERROR),
    (5, Register::LVT_PERFORMANCE),
    (6, Register::LVT_THERMAL),
    (7, Register::LVT_CMCI),
];

/// The local APIC of this CPU; how its registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalApic {
    /// A page of registers at this address (xAPIC).
    Page(u64),
    /// Registers that are MSRs (x2APIC).
    Msrs,
}

/// The largest APIC ID that an xAPIC can address: 255 means all.
const LARGEST_XAPIC_ID: u32 = 254;

/// Whether CPUs go over to x2APIC mode when their local APIC is switched on.
static X2APIC_WANTED: AtomicBool = AtomicBool::new(false);

/// The way in which a CPU's local APIC is reached, which changes when the CPU goes over to x2APIC
/// mode.
#[derive(Debug)]
pub(super) struct LocalApicAccess(AtomicU64);

impl LocalApicAccess {
    /// The value that stands for [`LocalApic::Msrs`]: no page of registers is at null.
    const MSRS: u64 = 0;

    /// Finds out how it is reached now on the CPU that runs this.
    pub(super) fn of_this_cpu() -> Self {
        // SAFETY: every 64-bit CPU has IA32_APIC_BASE.
        let base = unsafe { msr::read(IA32_APIC_BASE) };
        let access = Self(AtomicU64::new(Self::MSRS));
        if base & ApicBaseFlags::X2APIC_ENABLE.bits() == 0 {
            access.0.store(base & arch::paging::ADDRESS, Relaxed);
        }
        access
    }

    fn get(&self) -> LocalApic {
        match self.0.load(Relaxed) {
            Self::MSRS => LocalApic::Msrs,
            address => LocalApic::Page(address),
        }
    }
}

fn on_spurious(_: &mut TrapFrame) {}

/// Lets all CPUs use x2APIC mode if one of those with the IDs `others` cannot be addressed
/// otherwise. On the boot CPU, before its local APIC is switched on. Returns how far IDs may go.
pub(crate) fn choose_mode(mut others: impl Iterator<Item = u32>) -> u32 {
    let in_use = PerCpu::current().local_apic.get() == LocalApic::Msrs;
    let wanted = in_use || others.any(|id| id > LARGEST_XAPIC_ID);
    let has_it = raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_x2apic());
    X2APIC_WANTED.store(wanted && has_it, Relaxed);
    if wanted && has_it {
        u32::MAX
    } else {
        LARGEST_XAPIC_ID
    }
}

impl LocalApic {
    /// Takes this CPU's local APIC over and switches it on: in x2APIC mode if [`choose_mode`] has
    /// found that needed, else in the mode that firmware has left it in. Whatever was armed or under
    /// way there has no effect any more.
    ///
    /// # Safety
    /// Interrupts are off; nothing else uses this CPU's LAPIC; its page is mapped one to
    /// one.
    #[must_use]
    pub(crate) unsafe fn enable() -> Self {
        trap::set_hook(SPURIOUS_VECTOR, Some(on_spurious));
        // SAFETY: every 64-bit CPU has IA32_APIC_BASE; enabling the APIC where it is changes
        // nothing else. It goes over to x2APIC mode only from xAPIC mode, and if there is one.
        unsafe {
            let base = msr::read(IA32_APIC_BASE) | ApicBaseFlags::LAPIC_ENABLE.bits();
            msr::write(IA32_APIC_BASE, base);
            if X2APIC_WANTED.load(Relaxed) {
                msr::write(IA32_APIC_BASE, base | ApicBaseFlags::X2APIC_ENABLE.bits());
                PerCpu::current()
                    .local_apic
                    .0
                    .store(LocalApicAccess::MSRS, Relaxed);
            }
        }
        let apic = Self::current();
        apic.silence();
        apic
    }

    /// Masks all local sources, lets every priority in, and drains what was under way.
    fn silence(self) {
        /// The most interrupts that can wait: each vector twice, one in service, one requested.
        const MOST: usize = 512;
        // While the APIC is switched off by software its entries cannot be unmasked.
        self.write(Register::SVR, svr::ENABLED | u32::from(SPURIOUS_VECTOR));
        let entries = (self.read(Register::VERSION) >> 16 & 0xff) + 1;
        for (least_entries, register) in LOCAL_SOURCES {
            if entries >= least_entries {
                self.write(register, lvt::MASKED);
            }
        }
        self.write(Register::INITIAL_COUNT, 0);
        self.write(Register::TPR, 0);
        for _ in 0..MOST {
            if self.any(Register::ISR) {
                self.end_interrupt();
            } else if self.any(Register::IRR) {
                // It is delivered, counted and ended.
                super::cpu::take_pending_interrupts();
            } else {
                return;
            }
        }
        log::warn!("interrupts that nobody asked for go on; `host` counts them");
    }

    /// Returns whether any bit is set in the 256-bit register that begins with `first`.
    fn any(self, first: Register) -> bool {
        (0..8).any(|word| self.read(first.holding(word * 32)) != 0)
    }

    /// Returns whether the interrupt `vector` is in service.
    pub(super) fn is_in_service(self, vector: u8) -> bool {
        self.read(Register::ISR.holding(vector)) >> (vector % 32) & 1 != 0
    }

    /// Returns the LAPIC of the CPU that runs this.
    #[must_use]
    pub(crate) fn current() -> Self {
        PerCpu::current().local_apic.get()
    }

    /// Returns what [`LocalApic::current`] does; `None` before the CPU is set up.
    pub(super) fn try_current() -> Option<Self> {
        PerCpu::try_current().map(|cpu| cpu.local_apic.get())
    }

    pub(super) fn write(self, register: Register, value: u32) {
        // SAFETY: the registers used by this module and the timer exist on every LAPIC, and
        // none of them touches memory that Rust knows of. The page is mapped one to one.
        unsafe {
            match self {
                Self::Page(base) => {
                    let address = base + u64::from(register.offset());
                    (address as *mut u32).write_volatile(value);
                }
                Self::Msrs => msr::write(register.msr(), value.into()),
            }
        }
    }

    pub(super) fn read(self, register: Register) -> u32 {
        // SAFETY: as for writing.
        unsafe {
            match self {
                Self::Page(base) => {
                    let address = base + u64::from(register.offset());
                    (address as *const u32).read_volatile()
                }
                Self::Msrs => msr::read(register.msr()) as u32,
            }
        }
    }

    /// Signals the end of the interrupt in service.
    pub(crate) fn end_interrupt(self) {
        self.write(Register::EOI, 0);
    }

    /// Sends the CPU with the APIC ID `target` a non-maskable interrupt.
    pub(crate) fn send_nmi(self, target: u32) {
        self.send(target, delivery_mode::NMI | icr::ASSERT);
    }

    /// Resets the CPU with the APIC ID `target`, which then waits for a start-up.
    pub(crate) fn send_init(self, target: u32) {
        self.send(target, delivery_mode::INIT | icr::ASSERT);
    }

    /// Starts the CPU with the APIC ID `target` in real mode at `page` * 4096.
    pub(crate) fn send_start_up(self, target: u32, page: u8) {
        self.send(
            target,
            delivery_mode::START_UP | icr::ASSERT | u32::from(page),
        );
    }

    fn send(self, target: u32, command: u32) {
        match self {
            Self::Msrs => {
                // The write is not ordered after earlier stores, which the target is to see
                // (SDM vol. 3A, 11.12.3).
                // SAFETY: fences have no other effect; the ICR's addressee is by the caller.
                unsafe {
                    core::arch::x86_64::_mm_mfence();
                    core::arch::x86_64::_mm_lfence();
                    msr::write(
                        Register::ICR_LOW.msr(),
                        u64::from(target) << 32 | u64::from(command),
                    );
                }
            }
            Self::Page(_) => {
                // Hardware accepts within microseconds; one that does not is beyond help.
                const PATIENCE: u32 = 1_000_000;
                for _ in 0..PATIENCE {
                    if self.read(Register::ICR_LOW) & icr::DELIVERY_STATUS == 0 {
                        break;
                    }
                    core::hint::spin_loop();
                }
                self.write(Register::ICR_HIGH, target << 24);
                self.write(Register::ICR_LOW, command);
            }
        }
    }
}
