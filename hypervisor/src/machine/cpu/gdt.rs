//! A CPU's GDT and TSS.

use alloc::boxed::Box;

use x86_64::PrivilegeLevel;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

/// The segment of 64-bit code. The same in the boot GDT.
pub(crate) const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
/// The segment of data and stack. The same in the boot GDT.
pub(crate) const DATA: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);
/// The task state segment.
pub(crate) const TSS: SegmentSelector = SegmentSelector::new(3, PrivilegeLevel::Ring0);

/// The stacks of the TSS's interrupt stack table, by their index in an IDT gate (from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ist {
    /// No switch of stacks: the handler runs on the current one.
    None = 0,
    /// The stack for NMI.
    Nmi = 1,
    /// The stack for #DF.
    DoubleFault = 2,
    /// The stack for #MC.
    MachineCheck = 3,
}

/// GDT and TSS of one CPU. Never freed.
#[derive(Debug)]
pub(crate) struct DescriptorTables {
    gdt: &'static GlobalDescriptorTable,
    tss: &'static TaskStateSegment,
}

impl DescriptorTables {
    /// Tables with these tops of stacks for [`Ist::Nmi`], [`Ist::DoubleFault`] and
    /// [`Ist::MachineCheck`].
    #[must_use]
    pub(crate) fn new([nmi, double_fault, machine_check]: [VirtAddr; 3]) -> Self {
        let mut tss = TaskStateSegment::new();
        for (ist, top) in [
            (Ist::Nmi, nmi),
            (Ist::DoubleFault, double_fault),
            (Ist::MachineCheck, machine_check),
        ] {
            tss.interrupt_stack_table[ist as usize - 1] = top;
        }
        let tss: &'static TaskStateSegment = Box::leak(Box::new(tss));
        let mut gdt = GlobalDescriptorTable::new();
        // In the order of the selectors above.
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        gdt.append(Descriptor::tss_segment(tss));
        Self {
            gdt: Box::leak(Box::new(gdt)),
            tss,
        }
    }

    /// Loads the tables and all segment registers on this CPU. The bases of FS and GS
    /// become zero.
    ///
    /// # Safety
    /// Each CPU needs tables of its own, as loading marks the TSS as busy. The current code
    /// must run at privilege level 0 in 64-bit mode.
    pub(crate) unsafe fn load(&self) {
        self.gdt.load();
        // SAFETY: the selectors are those of the table just loaded, and mean flat 64-bit
        // code and data as those before; the TSS is available (not busy), as it is new.
        unsafe {
            CS::set_reg(CODE);
            SS::set_reg(DATA);
            DS::set_reg(DATA);
            ES::set_reg(DATA);
            FS::set_reg(SegmentSelector::NULL);
            GS::set_reg(SegmentSelector::NULL);
            load_tss(TSS);
        }
    }

    /// Returns the linear address of the GDT.
    #[must_use]
    pub(crate) fn gdt_base(&self) -> u64 {
        self.gdt.entries().as_ptr() as u64
    }

    /// Returns the linear address of the TSS.
    #[must_use]
    pub(crate) fn tss_base(&self) -> u64 {
        core::ptr::from_ref(self.tss) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selectors_name_the_descriptors_in_the_table() {
        let tables = DescriptorTables::new([VirtAddr::new(0x1000); 3]);
        let entry =
            |selector: SegmentSelector| tables.gdt.entries()[usize::from(selector.index())].raw();
        // Access byte: present, ring 0, and the type (SDM vol. 3A, 3.4.5 and 3.5).
        assert_eq!(entry(CODE) >> 40 & 0xfe, 0x9a, "code, readable");
        assert_eq!(entry(CODE) >> 53 & 1, 1, "64-bit");
        assert_eq!(entry(DATA) >> 40 & 0xfe, 0x92, "data, writable");
        assert_eq!(entry(TSS) >> 40 & 0xff, 0x89, "available 64-bit TSS");
    }

    #[test]
    fn each_exception_with_a_stack_of_its_own_has_its_own() {
        let tops = [0x1000, 0x2000, 0x3000].map(VirtAddr::new);
        let tables = DescriptorTables::new(tops);
        let ist = |ist: Ist| tables.tss.interrupt_stack_table[ist as usize - 1];
        assert_eq!(
            [ist(Ist::Nmi), ist(Ist::DoubleFault), ist(Ist::MachineCheck)],
            tops
        );
    }
}
