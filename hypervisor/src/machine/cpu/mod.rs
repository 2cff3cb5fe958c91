//! What each physical CPU has of its own, and the handling of its exceptions and interrupts.

mod dump;
pub(crate) mod gdt;
pub(crate) mod idt;
pub(crate) mod stack;
pub(crate) mod trap;

use alloc::boxed::Box;

use vmx::addr::PAGE_SIZE;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{FsBase, GsBase};

use super::local_apic::LocalApicAccess;
use super::memory::OutOfMemory;
use super::paging::{self, OpenWindows};
use gdt::DescriptorTables;
use stack::GuardedStack;

pub(super) use dump::fatal_trap;

/// State of one physical CPU, found by its GS base. Never freed.
///
/// Aligned so that no two CPUs write to the same cache line, nor to a pair of lines that
/// the prefetcher fetches together.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct PerCpu {
    /// The address of this structure, which `gs:[0]` reads.
    this: *const PerCpu,
    /// The CPU's number: 0 for the boot CPU, then in the order in which CPUs started.
    pub index: u32,
    /// Its local APIC's ID.
    pub apic_id: u32,
    /// The access to its local APIC's registers.
    pub(super) local_apic: LocalApicAccess,
    tables: DescriptorTables,
    /// The page under the stack that this CPU normally runs on.
    stack_guard: u64,
    exception_stacks: ExceptionStacks,
    /// The windows on guests' RAM that its page tables have.
    windows: OpenWindows,
}

/// Stacks for exceptions that may strike where the CPU's own stack cannot be used.
#[derive(Debug)]
struct ExceptionStacks {
    nmi: GuardedStack,
    double_fault: GuardedStack,
    machine_check: GuardedStack,
}

impl PerCpu {
    /// Gives this CPU its per-CPU state: GDT, TSS with exception stacks, IDT, GS base and the root of its page tables.
    /// `stack_guard` is the address of the page under the stack that it runs on, `index` its
    /// number.
    ///
    /// # Errors
    /// If there is no memory for its stacks and its root.
    ///
    /// # Safety
    /// Once on each CPU, with interrupts off, when the heap and paging are set up; the CPU runs with the root that all
    /// CPUs start with.
    pub(crate) unsafe fn init(stack_guard: u64, index: u32) -> Result<&'static Self, OutOfMemory> {
        const SIZE: u64 = 16 << 10;
        let stacks = ExceptionStacks {
            nmi: GuardedStack::new(SIZE)?,
            double_fault: GuardedStack::new(SIZE)?,
            machine_check: GuardedStack::new(SIZE)?,
        };
        let per_cpu = Box::leak(Box::new(Self {
            this: core::ptr::null(),
            index,
            apic_id: apic_id(),
            local_apic: LocalApicAccess::of_this_cpu(),
            tables: DescriptorTables::new([
                stacks.nmi.top(),
                stacks.double_fault.top(),
                stacks.machine_check.top(),
            ]),
            stack_guard,
            exception_stacks: stacks,
            windows: OpenWindows::default(),
        }));
        per_cpu.this = per_cpu;
        let per_cpu: &'static Self = per_cpu;
        // SAFETY: the state lives for ever and is this CPU's; the new code and data
        // selectors mean what the old ones did. FS is not used.
        unsafe {
            per_cpu.tables.load();
            idt::load();
        }
        FsBase::write(VirtAddr::zero());
        GsBase::write(VirtAddr::from_ptr(per_cpu));
        // SAFETY: by the contract.
        unsafe { paging::use_own_root()? };
        Ok(per_cpu)
    }

    /// Returns the windows on guests' RAM that its page tables have.
    pub(super) const fn windows(&self) -> &OpenWindows {
        &self.windows
    }

    /// Returns the state of the CPU that runs this.
    ///
    /// Valid only after [`PerCpu::init`] on this CPU, which is the first thing that a CPU
    /// does when it has a heap.
    #[must_use]
    pub(crate) fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: GS base points to a PerCpu from `init` on, and its first field is its
        // own address; it lives for ever and is not changed.
        unsafe {
            core::arch::asm!("mov {}, gs:[0]", out(reg) this,
                options(nostack, preserves_flags, readonly, pure));
            &*this
        }
    }

    /// Returns what [`PerCpu::current`] does, for fault reports: `None` where it is not set up yet.
    pub(super) fn try_current() -> Option<&'static Self> {
        let base = GsBase::read();
        // SAFETY: a GS base that is not zero is one that `init` wrote.
        (!base.is_null()).then(|| unsafe { &*base.as_ptr() })
    }

    /// Returns the base address of this CPU's TSS, for the VMCS's host-state area.
    #[must_use]
    pub(crate) fn tss_base(&self) -> u64 {
        self.tables.tss_base()
    }

    /// Returns the base address of this CPU's GDT, for the VMCS's host-state area.
    #[must_use]
    pub(crate) fn gdt_base(&self) -> u64 {
        self.tables.gdt_base()
    }

    /// Returns the base address of what GS means on this CPU, for the VMCS's host-state area.
    #[must_use]
    pub(crate) fn gs_base(&self) -> u64 {
        self.this as u64
    }

    /// Returns which of this CPU's stacks overflowed, if an access to `address` faulted.
    fn overflowed_stack(&self, address: u64) -> Option<&'static str> {
        if (self.stack_guard..self.stack_guard + PAGE_SIZE).contains(&address) {
            return Some("main");
        }
        let stacks = &self.exception_stacks;
        [
            ("NMI", &stacks.nmi),
            ("double-fault", &stacks.double_fault),
            ("machine-check", &stacks.machine_check),
        ]
        .into_iter()
        .find_map(|(name, stack)| stack.guards(address).then_some(name))
    }
}

// SAFETY: `this` is the only reason why it is not automatic, and it only ever points to the
// value itself. Nothing in a PerCpu changes after `init` but atomics.
unsafe impl Sync for PerCpu {}

/// Returns the local APIC ID of the CPU that runs this: all 32 bits where CPUID tells them.
#[must_use]
pub(crate) fn apic_id() -> u32 {
    let cpuid = raw_cpuid::CpuId::new();
    let x2apic_id = cpuid
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next())
        .map(|level| level.x2apic_id());
    let initial_id = cpuid
        .get_feature_info()
        .map_or(0, |info| u32::from(info.initial_local_apic_id()));
    x2apic_id.unwrap_or(initial_id)
}

/// Lets in an interrupt that ended a guest's turn: its handler runs now.
pub(crate) fn take_pending_interrupts() {
    // SAFETY: handlers return and change nothing but the LAPIC.
    unsafe { core::arch::asm!("sti", "nop", "cli", options(nostack)) };
}

/// Handles an NMI that ended a guest's turn. The exit has taken it and left NMIs blocked: the
/// handler's IRET opens them again (SDM vol. 3C, 28.5.5).
pub(crate) fn take_pending_nmi() {
    // SAFETY: the handler of vector 2 runs as for a real NMI and returns.
    unsafe { core::arch::asm!("int 2", options(nostack)) };
}
