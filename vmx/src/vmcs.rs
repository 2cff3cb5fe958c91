//! The virtual-machine control structure: one VCPU's state (SDM vol. 3C, ch. 25).

use alloc::boxed::Box;
use core::arch::asm;

use crate::addr::HostPhysAddr;
use crate::bitmaps::{IoBitmaps, MsrBitmaps};
use crate::capabilities::Capabilities;
use crate::controls::{Entry, Exit, PinBased, Primary, Secondary};
use crate::entry::ExitAddress;
use crate::fields::{self, Field, FieldValue};
use crate::page::Page;
use crate::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

/// A VM instruction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmInstructionFailed;

/// A VMCS.
///
/// Its methods but [`Vmcs::new`], [`Vmcs::clear`] and [`Vmcs::load`] work on the VMCS that is
/// *current* on this CPU, which must be this one; the caller keeps track, debug builds check.
pub struct Vmcs {
    region: Box<Page>,
}

/// The CPU state that a VM exit loads, besides RIP and RSP.
#[derive(Clone, Copy, Debug)]
pub struct HostState {
    /// CS selector.
    pub cs: u16,
    /// Selector of the data segments: SS, DS, ES, FS, GS.
    pub data: u16,
    /// TR selector.
    pub tr: u16,
    /// GS base: the per-CPU data.
    pub gs_base: u64,
    /// Base of the TSS.
    pub tss_base: u64,
    /// Base of the GDT.
    pub gdt_base: u64,
    /// Base of the IDT.
    pub idt_base: u64,
}

/// Has the next stay in the guest of this CPU's current VMCS end as soon as it has begun: for handlers of NMIs,
/// which strike at any time. Does nothing if no VMCS is current, and until the
/// [preemption timer](fields::PREEMPTION_TIMER_VALUE) is set again.
///
/// # Safety
/// The CPU is in VMX root operation.
pub unsafe fn cut_stay_short() {
    // SAFETY: VMWRITE without a current VMCS only sets flags. The field limits a stay in the guest, and holds
    // nothing that the host relies on.
    unsafe {
        asm!(
            "vmwrite {}, {}",
            in(reg) u64::from(fields::PREEMPTION_TIMER_VALUE.0),
            in(reg) 0_u64,
            options(nostack),
        );
    }
}

impl Vmcs {
    /// Makes a VMCS in `region`, cleared, for CPUs with these capabilities.
    ///
    /// # Errors
    /// If VMCLEAR fails.
    ///
    /// # Safety
    /// This CPU is in VMX operation; `region` is mapped one to one. The VMCS is [cleared](Vmcs::clear)
    /// on the CPU that has loaded it last before it is dropped.
    pub unsafe fn new(
        capabilities: &Capabilities,
        mut region: Box<Page>,
    ) -> Result<Self, VmInstructionFailed> {
        region.0.fill(0);
        region.0[0] = u64::from(capabilities.revision);
        let mut vmcs = Self { region };
        vmcs.clear()?;
        Ok(vmcs)
    }

    /// Writes the VMCS back to memory and makes it launchable: before another CPU loads it.
    ///
    /// # Errors
    /// If VMCLEAR fails.
    pub fn clear(&mut self) -> Result<(), VmInstructionFailed> {
        let address = self.region.address().0;
        let failed: u8;
        // SAFETY: the region is an aligned page that belongs to this VMCS alone.
        unsafe {
            asm!(
                "vmclear qword ptr [{}]",
                "setna {}",
                in(reg) &raw const address,
                out(reg_byte) failed,
                options(nostack),
            );
        }
        succeeded(failed)
    }

    /// Makes this VMCS current on this CPU.
    ///
    /// # Errors
    /// If VMPTRLD fails.
    pub fn load(&mut self) -> Result<(), VmInstructionFailed> {
        let address = self.region.address().0;
        let failed: u8;
        // SAFETY: the region is a cleared or active VMCS with the right revision.
        unsafe {
            asm!(
                "vmptrld qword ptr [{}]",
                "setna {}",
                in(reg) &raw const address,
                out(reg_byte) failed,
                options(nostack),
            );
        }
        succeeded(failed)
    }

    /// Reads a field.
    ///
    /// VMREAD fails only without a current VMCS or for a field that this CPU does not have;
    /// neither depends on anything that a guest does.
    #[inline]
    #[must_use]
    pub fn read<T: FieldValue>(&self, field: Field<T>) -> T {
        let value: u64;
        // SAFETY: VMREAD to a register touches no memory that Rust knows of.
        unsafe {
            asm!(
                "vmread {}, {}",
                out(reg) value,
                in(reg) u64::from(field.0),
                options(nostack, readonly),
            );
        }
        T::from_raw(value)
    }

    /// Writes a field. Failing as [`Vmcs::read`] does.
    #[inline]
    pub fn write<T: FieldValue>(&mut self, field: Field<T>, value: T) {
        // SAFETY: the fields that are visible outside the crate hold guest state or control
        // only what the guest sees; those inside have typed setters that vouch for them.
        unsafe {
            asm!(
                "vmwrite {}, {}",
                in(reg) u64::from(field.0),
                in(reg) value.into_raw(),
                options(nostack),
            );
        }
    }

    /// Sets where VM exits go.
    pub fn set_exit_address(&mut self, address: ExitAddress) {
        self.write(fields::HOST_RIP, address.get());
    }

    /// Sets the state that VM exits load, but for [where they go](Self::set_exit_address): this CPU's control
    /// registers and MSRs as they are now, and `host`.
    ///
    /// # Safety
    /// `host` describes this CPU's own, static descriptor tables.
    pub unsafe fn set_host_state(&mut self, host: &HostState) {
        use x86_64::registers::control::{Cr0, Cr3, Cr4, Efer};
        let (cr3, flags) = Cr3::read();
        self.write(fields::HOST_CR0, Cr0::read_raw());
        self.write(
            fields::HOST_CR3,
            cr3.start_address().as_u64() | flags.bits(),
        );
        self.write(fields::HOST_CR4, Cr4::read_raw());
        self.write(fields::HOST_EFER, Efer::read_raw());
        // SAFETY: every CPU with VMX has IA32_PAT.
        self.write(fields::HOST_PAT, unsafe {
            crate::msr::read(arch::msr::IA32_PAT)
        });
        self.write(fields::HOST_CS, host.cs);
        for field in [
            fields::HOST_SS,
            fields::HOST_DS,
            fields::HOST_ES,
            fields::HOST_FS,
            fields::HOST_GS,
        ] {
            self.write(field, host.data);
        }
        self.write(fields::HOST_TR, host.tr);
        self.write(fields::HOST_FS_BASE, 0);
        self.write(fields::HOST_GS_BASE, host.gs_base);
        self.write(fields::HOST_TR_BASE, host.tss_base);
        self.write(fields::HOST_GDTR_BASE, host.gdt_base);
        self.write(fields::HOST_IDTR_BASE, host.idt_base);
        self.write(fields::HOST_SYSENTER_CS, 0);
        self.write(fields::HOST_SYSENTER_ESP, 0);
        self.write(fields::HOST_SYSENTER_EIP, 0);
        // Unused MSR areas and the link pointer that says "no shadow VMCS".
        self.write(fields::EXIT_MSR_STORE_COUNT, 0);
        self.write(fields::EXIT_MSR_LOAD_COUNT, 0);
        self.write(fields::ENTRY_MSR_LOAD_COUNT, 0);
        self.write(fields::VMCS_LINK_POINTER, u64::MAX);
    }

    /// Sets the control vectors to `wanted` as far as the CPU allows, with what it demands.
    pub fn set_controls(&mut self, capabilities: &Capabilities, wanted: &Controls) {
        let pin = capabilities.pin.adjust(wanted.pin.bits());
        self.write(fields::PIN_BASED_CONTROLS, pin);
        self.set_primary(capabilities, wanted.primary);
        self.set_secondary(capabilities, wanted.secondary);
        // Host state in 64-bit mode with its own EFER and PAT is what memory safety rests on.
        let exit = wanted.exit
            | Exit::HOST_64_BIT
            | Exit::LOAD_EFER
            | Exit::SAVE_EFER
            | Exit::LOAD_PAT
            | Exit::SAVE_PAT;
        self.write(fields::EXIT_CONTROLS, capabilities.exit.adjust(exit.bits()));
        let entry = wanted.entry | Entry::LOAD_EFER | Entry::LOAD_PAT;
        self.write(
            fields::ENTRY_CONTROLS,
            capabilities.entry.adjust(entry.bits()),
        );
    }

    /// Sets the primary processor-based controls.
    #[inline]
    pub fn set_primary(&mut self, capabilities: &Capabilities, wanted: Primary) {
        let wanted = wanted | Primary::SECONDARY;
        self.write(
            fields::PRIMARY_CONTROLS,
            capabilities.primary.adjust(wanted.bits()),
        );
    }

    /// Sets the secondary processor-based controls; EPT, unrestricted guest and VPID are
    /// always on.
    pub fn set_secondary(&mut self, capabilities: &Capabilities, wanted: Secondary) {
        let wanted = wanted | Secondary::EPT | Secondary::UNRESTRICTED_GUEST | Secondary::VPID;
        self.write(
            fields::SECONDARY_CONTROLS,
            capabilities.secondary.adjust(wanted.bits()),
        );
    }

    /// Sets whether the guest is in IA-32e mode, as VM entry demands it to be told.
    pub fn set_ia32e_mode(&mut self, on: bool) {
        let controls = Entry::from_bits_retain(self.read(fields::ENTRY_CONTROLS));
        let mut new = controls;
        new.set(Entry::IA32E_MODE_GUEST, on);
        if new != controls {
            self.write(fields::ENTRY_CONTROLS, new.bits());
        }
    }

    /// Sets the EPT pointer.
    ///
    /// # Safety
    /// `pointer` comes from [`crate::ept::Ept::pointer`] of tables that live as long as the
    /// VMCS is used and map only memory that is the guest's.
    pub unsafe fn set_ept_pointer(&mut self, pointer: u64) {
        self.write(fields::EPT_POINTER, pointer);
    }

    /// Sets the I/O bitmaps, which must be mapped one to one.
    pub fn set_io_bitmaps(&mut self, bitmaps: &'static IoBitmaps) {
        let (a, b) = bitmaps.addresses();
        self.write(fields::IO_BITMAP_A, a.0);
        self.write(fields::IO_BITMAP_B, b.0);
    }

    /// Sets the MSR bitmaps.
    ///
    /// # Safety
    /// The bitmaps are mapped one to one, stay where they are, and outlive the VMCS.
    pub unsafe fn set_msr_bitmaps(&mut self, bitmaps: &MsrBitmaps) {
        self.write(fields::MSR_BITMAP, bitmaps.address().0);
    }

    /// Sets the virtual-APIC page.
    ///
    /// # Safety
    /// `page` is a page for this VCPU alone that outlives the VMCS and is only accessed
    /// atomically.
    pub unsafe fn set_virtual_apic_page(&mut self, page: HostPhysAddr) {
        self.write(fields::VIRTUAL_APIC_ADDRESS, page.0);
    }

    /// Sets the APIC-access page: the host page to which EPT maps the guest's APIC. Its
    /// content is never used.
    pub fn set_apic_access_page(&mut self, page: HostPhysAddr) {
        self.write(fields::APIC_ACCESS_ADDRESS, page.0);
    }

    /// Returns a segment register of the guest.
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        Segment {
            selector: self.read(fields::guest_selector(register)),
            base: self.read(fields::guest_base(register)),
            limit: self.read(fields::guest_limit(register)),
            rights: AccessRights::from_bits_retain(
                self.read(fields::guest_access_rights(register)),
            ),
        }
    }

    /// Sets a segment register of the guest.
    pub fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.write(fields::guest_selector(register), segment.selector);
        self.write(fields::guest_base(register), segment.base);
        self.write(fields::guest_limit(register), segment.limit);
        self.write(fields::guest_access_rights(register), segment.rights.bits());
    }

    /// Returns the guest's GDTR.
    #[must_use]
    pub fn gdtr(&self) -> DescriptorTable {
        DescriptorTable {
            base: self.read(fields::GUEST_GDTR_BASE),
            limit: self.read(fields::GUEST_GDTR_LIMIT),
        }
    }

    /// Sets the guest's GDTR.
    pub fn set_gdtr(&mut self, table: DescriptorTable) {
        self.write(fields::GUEST_GDTR_BASE, table.base);
        self.write(fields::GUEST_GDTR_LIMIT, table.limit);
    }

    /// Returns the guest's IDTR.
    #[must_use]
    pub fn idtr(&self) -> DescriptorTable {
        DescriptorTable {
            base: self.read(fields::GUEST_IDTR_BASE),
            limit: self.read(fields::GUEST_IDTR_LIMIT),
        }
    }

    /// Sets the guest's IDTR.
    pub fn set_idtr(&mut self, table: DescriptorTable) {
        self.write(fields::GUEST_IDTR_BASE, table.base);
        self.write(fields::GUEST_IDTR_LIMIT, table.limit);
    }
}

/// Returns the outcome of a VM instruction: `failed` is what SETNA has made of CF and ZF.
const fn succeeded(failed: u8) -> Result<(), VmInstructionFailed> {
    if failed == 0 {
        Ok(())
    } else {
        Err(VmInstructionFailed)
    }
}

/// The control vectors that a VCPU wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based.
    pub pin: PinBased,
    /// Primary processor-based.
    pub primary: Primary,
    /// Secondary processor-based.
    pub secondary: Secondary,
    /// VM-exit.
    pub exit: Exit,
    /// VM-entry.
    pub entry: Entry,
}
