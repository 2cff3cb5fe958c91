//! Entering and leaving VMX operation on a CPU (SDM vol. 3C, 24.7).

use core::arch::asm;

use arch::Cr4Flags;
use arch::msr::{FeatureControl, IA32_FEATURE_CONTROL};

use crate::capabilities::Capabilities;
use crate::msr;
use crate::page::Page;

/// VMXON failed although the capabilities are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmxonFailed;

impl core::fmt::Display for VmxonFailed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("VMXON failed: is another hypervisor active on this CPU?")
    }
}

impl core::error::Error for VmxonFailed {}

/// Puts this CPU into VMX root operation, with `region` as its VMXON region.
///
/// # Errors
/// If VMXON fails.
///
/// # Safety
/// Ring 0; `capabilities` are this CPU's; `region` is mapped one to one. CR0 and CR4 get
/// the bits that VMX fixes.
pub unsafe fn enter_vmx_operation(
    capabilities: &Capabilities,
    region: &'static mut Page,
) -> Result<(), VmxonFailed> {
    // SAFETY: a CPU with VMX has this MSR; setting the VMX bit before locking it is what
    // firmware would do, and nothing else is stored there that we change.
    unsafe {
        let mut feature_control = FeatureControl::from_bits_retain(msr::read(IA32_FEATURE_CONTROL));
        if !feature_control.contains(FeatureControl::LOCK) {
            feature_control.insert(FeatureControl::VMX_OUTSIDE_SMX | FeatureControl::LOCK);
            msr::write(IA32_FEATURE_CONTROL, feature_control.bits());
        }
    }
    region.0[0] = u64::from(capabilities.revision);
    let address = region.address().0;
    let failed: u8;
    // SAFETY: the fixed bits of CR0 and CR4 (protected mode, paging, native FPU errors, VMXE)
    // hold for any 64-bit kernel or change nothing that Rust code relies on; the region is an
    // aligned page of ours for ever, and its first word is the revision.
    unsafe {
        const VMXE: u64 = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
        let cr0: u64;
        let cr4: u64;
        asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
        asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
        let cr0 = (cr0 | capabilities.cr0_fixed0) & capabilities.cr0_fixed1;
        let cr4 = (cr4 | capabilities.cr4_fixed0 | VMXE) & capabilities.cr4_fixed1;
        asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        asm!(
            "vmxon qword ptr [{address}]",
            "setna {failed}",
            address = in(reg) &raw const address,
            failed = out(reg_byte) failed,
            options(nostack),
        );
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(VmxonFailed)
    }
}
