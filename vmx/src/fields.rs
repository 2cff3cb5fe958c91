//! VMCS field encodings (SDM vol. 3D, app. B), each with the width of its value.
//!
//! Fields that hold host state, physical addresses or control vectors can break memory
//! safety and are private to the crate: [`crate::vmcs::Vmcs`] has typed setters for them.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

/// The encoding of a VMCS field whose value is a `T`.
pub struct Field<T>(pub(crate) u32, PhantomData<T>);

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Field<T> {}

impl<T> Field<T> {
    const fn new(encoding: u32) -> Self {
        Self(encoding, PhantomData)
    }
}

/// A value that a VMCS field can hold.
pub trait FieldValue: Copy {
    /// Returns the value of the low bits of `raw`.
    fn from_raw(raw: u64) -> Self;
    /// Returns the value, zero-extended.
    fn into_raw(self) -> u64;
}

macro_rules! field_value {
    ($($type:ty),*) => {$(
        impl FieldValue for $type {
            #[inline]
            fn from_raw(raw: u64) -> Self {
                raw as $type
            }

            #[inline]
            fn into_raw(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}

field_value!(u16, u32, u64);

// 16-bit control fields

/// Virtual-processor identifier.
pub const VPID: Field<u16> = Field::new(0x0000);
/// Posted-interrupt notification vector.
pub const POSTED_INTERRUPT_VECTOR: Field<u16> = Field::new(0x0002);

// 16-bit guest-state fields

/// Guest interrupt status: RVI in the low byte, SVI in the high one.
pub const GUEST_INTERRUPT_STATUS: Field<u16> = Field::new(0x0810);

// 16-bit host-state fields

/// Host ES selector.
pub const HOST_ES: Field<u16> = Field::new(0x0c00);
/// Host CS selector.
pub const HOST_CS: Field<u16> = Field::new(0x0c02);
/// Host SS selector.
pub const HOST_SS: Field<u16> = Field::new(0x0c04);
/// Host DS selector.
pub const HOST_DS: Field<u16> = Field::new(0x0c06);
/// Host FS selector.
pub const HOST_FS: Field<u16> = Field::new(0x0c08);
/// Host GS selector.
pub const HOST_GS: Field<u16> = Field::new(0x0c0a);
/// Host TR selector.
pub const HOST_TR: Field<u16> = Field::new(0x0c0c);

// 64-bit control fields

/// Address of I/O bitmap A.
pub(crate) const IO_BITMAP_A: Field<u64> = Field::new(0x2000);
/// Address of I/O bitmap B.
pub(crate) const IO_BITMAP_B: Field<u64> = Field::new(0x2002);
/// Address of the MSR bitmaps.
pub(crate) const MSR_BITMAP: Field<u64> = Field::new(0x2004);
/// TSC offset.
pub const TSC_OFFSET: Field<u64> = Field::new(0x2010);
/// Virtual-APIC address.
pub(crate) const VIRTUAL_APIC_ADDRESS: Field<u64> = Field::new(0x2012);
/// APIC-access address.
pub(crate) const APIC_ACCESS_ADDRESS: Field<u64> = Field::new(0x2014);
/// EPT pointer.
pub(crate) const EPT_POINTER: Field<u64> = Field::new(0x201a);
/// EOI-exit bitmap 0 (the other three follow).
pub const EOI_EXIT_BITMAP_0: Field<u64> = Field::new(0x201c);
/// EOI-exit bitmap 1.
pub const EOI_EXIT_BITMAP_1: Field<u64> = Field::new(0x201e);
/// EOI-exit bitmap 2.
pub const EOI_EXIT_BITMAP_2: Field<u64> = Field::new(0x2020);
/// EOI-exit bitmap 3.
pub const EOI_EXIT_BITMAP_3: Field<u64> = Field::new(0x2022);
/// XSS-exiting bitmap.
pub const XSS_EXITING_BITMAP: Field<u64> = Field::new(0x202c);
/// TSC multiplier, 16.48 fixed point.
pub const TSC_MULTIPLIER: Field<u64> = Field::new(0x2032);

// 64-bit read-only fields

/// Guest-physical address of an EPT violation or misconfiguration.
pub const GUEST_PHYSICAL_ADDRESS: Field<u64> = Field::new(0x2400);

// 64-bit guest-state fields

/// VMCS link pointer.
pub const VMCS_LINK_POINTER: Field<u64> = Field::new(0x2800);
/// Guest IA32_DEBUGCTL.
pub const GUEST_DEBUGCTL: Field<u64> = Field::new(0x2802);
/// Guest IA32_PAT.
pub const GUEST_PAT: Field<u64> = Field::new(0x2804);
/// Guest IA32_EFER.
pub const GUEST_EFER: Field<u64> = Field::new(0x2806);
/// Guest PDPTE 0.
pub const GUEST_PDPTE0: Field<u64> = Field::new(0x280a);
/// Guest PDPTE 1.
pub const GUEST_PDPTE1: Field<u64> = Field::new(0x280c);
/// Guest PDPTE 2.
pub const GUEST_PDPTE2: Field<u64> = Field::new(0x280e);
/// Guest PDPTE 3.
pub const GUEST_PDPTE3: Field<u64> = Field::new(0x2810);

// 64-bit host-state fields

/// Host IA32_PAT.
pub(crate) const HOST_PAT: Field<u64> = Field::new(0x2c00);
/// Host IA32_EFER.
pub(crate) const HOST_EFER: Field<u64> = Field::new(0x2c02);

// 32-bit control fields

/// Pin-based VM-execution controls.
pub(crate) const PIN_BASED_CONTROLS: Field<u32> = Field::new(0x4000);
/// Primary processor-based VM-execution controls.
pub(crate) const PRIMARY_CONTROLS: Field<u32> = Field::new(0x4002);
/// Exception bitmap.
pub const EXCEPTION_BITMAP: Field<u32> = Field::new(0x4004);
/// Page-fault error-code mask.
pub const PAGE_FAULT_ERROR_CODE_MASK: Field<u32> = Field::new(0x4006);
/// Page-fault error-code match.
pub const PAGE_FAULT_ERROR_CODE_MATCH: Field<u32> = Field::new(0x4008);
/// CR3-target count.
pub const CR3_TARGET_COUNT: Field<u32> = Field::new(0x400a);
/// VM-exit controls.
pub(crate) const EXIT_CONTROLS: Field<u32> = Field::new(0x400c);
/// VM-exit MSR-store count.
pub(crate) const EXIT_MSR_STORE_COUNT: Field<u32> = Field::new(0x400e);
/// VM-exit MSR-load count.
pub(crate) const EXIT_MSR_LOAD_COUNT: Field<u32> = Field::new(0x4010);
/// VM-entry controls.
pub(crate) const ENTRY_CONTROLS: Field<u32> = Field::new(0x4012);
/// VM-entry MSR-load count.
pub(crate) const ENTRY_MSR_LOAD_COUNT: Field<u32> = Field::new(0x4014);
/// VM-entry interruption-information field.
pub const ENTRY_INTERRUPTION_INFORMATION: Field<u32> = Field::new(0x4016);
/// VM-entry exception error code.
pub const ENTRY_EXCEPTION_ERROR_CODE: Field<u32> = Field::new(0x4018);
/// VM-entry instruction length.
pub const ENTRY_INSTRUCTION_LENGTH: Field<u32> = Field::new(0x401a);
/// TPR threshold.
pub const TPR_THRESHOLD: Field<u32> = Field::new(0x401c);
/// Secondary processor-based VM-execution controls.
pub(crate) const SECONDARY_CONTROLS: Field<u32> = Field::new(0x401e);
/// PAUSE-loop exiting: gap.
pub const PLE_GAP: Field<u32> = Field::new(0x4020);
/// PAUSE-loop exiting: window.
pub const PLE_WINDOW: Field<u32> = Field::new(0x4022);

// 32-bit read-only fields

/// VM-instruction error.
pub const INSTRUCTION_ERROR: Field<u32> = Field::new(0x4400);
/// Exit reason.
pub const EXIT_REASON: Field<u32> = Field::new(0x4402);
/// VM-exit interruption information.
pub const EXIT_INTERRUPTION_INFORMATION: Field<u32> = Field::new(0x4404);
/// VM-exit interruption error code.
pub const EXIT_INTERRUPTION_ERROR_CODE: Field<u32> = Field::new(0x4406);
/// IDT-vectoring information.
pub const IDT_VECTORING_INFORMATION: Field<u32> = Field::new(0x4408);
/// IDT-vectoring error code.
pub const IDT_VECTORING_ERROR_CODE: Field<u32> = Field::new(0x440a);
/// VM-exit instruction length.
pub const EXIT_INSTRUCTION_LENGTH: Field<u32> = Field::new(0x440c);
/// VM-exit instruction information.
pub const EXIT_INSTRUCTION_INFORMATION: Field<u32> = Field::new(0x440e);

// 32-bit guest-state fields

/// Guest interruptibility state.
pub const GUEST_INTERRUPTIBILITY: Field<u32> = Field::new(0x4824);
/// Guest activity state.
pub const GUEST_ACTIVITY_STATE: Field<u32> = Field::new(0x4826);
/// Guest IA32_SYSENTER_CS.
pub const GUEST_SYSENTER_CS: Field<u32> = Field::new(0x482a);
/// VMX-preemption timer value.
pub const PREEMPTION_TIMER_VALUE: Field<u32> = Field::new(0x482e);

// 32-bit host-state fields

/// Host IA32_SYSENTER_CS.
pub(crate) const HOST_SYSENTER_CS: Field<u32> = Field::new(0x4c00);

// natural-width control fields

/// CR0 guest/host mask.
pub const CR0_GUEST_HOST_MASK: Field<u64> = Field::new(0x6000);
/// CR4 guest/host mask.
pub const CR4_GUEST_HOST_MASK: Field<u64> = Field::new(0x6002);
/// CR0 read shadow.
pub const CR0_READ_SHADOW: Field<u64> = Field::new(0x6004);
/// CR4 read shadow.
pub const CR4_READ_SHADOW: Field<u64> = Field::new(0x6006);
/// CR3-target value 0.
pub const CR3_TARGET_0: Field<u64> = Field::new(0x6008);
/// CR3-target value 1.
pub const CR3_TARGET_1: Field<u64> = Field::new(0x600a);
/// CR3-target value 2.
pub const CR3_TARGET_2: Field<u64> = Field::new(0x600c);
/// CR3-target value 3.
pub const CR3_TARGET_3: Field<u64> = Field::new(0x600e);

// natural-width read-only fields

/// Exit qualification.
pub const EXIT_QUALIFICATION: Field<u64> = Field::new(0x6400);
/// I/O RCX.
pub const IO_RCX: Field<u64> = Field::new(0x6402);
/// I/O RSI.
pub const IO_RSI: Field<u64> = Field::new(0x6404);
/// I/O RDI.
pub const IO_RDI: Field<u64> = Field::new(0x6406);
/// I/O RIP.
pub const IO_RIP: Field<u64> = Field::new(0x6408);
/// Guest-linear address.
pub const GUEST_LINEAR_ADDRESS: Field<u64> = Field::new(0x640a);

// natural-width guest-state fields

/// Guest CR0.
pub const GUEST_CR0: Field<u64> = Field::new(0x6800);
/// Guest CR3.
pub const GUEST_CR3: Field<u64> = Field::new(0x6802);
/// Guest CR4.
pub const GUEST_CR4: Field<u64> = Field::new(0x6804);
/// Guest GDTR base.
pub const GUEST_GDTR_BASE: Field<u64> = Field::new(0x6816);
/// Guest IDTR base.
pub const GUEST_IDTR_BASE: Field<u64> = Field::new(0x6818);
/// Guest DR7.
pub const GUEST_DR7: Field<u64> = Field::new(0x681a);
/// Guest RSP.
pub const GUEST_RSP: Field<u64> = Field::new(0x681c);
/// Guest RIP.
pub const GUEST_RIP: Field<u64> = Field::new(0x681e);
/// Guest RFLAGS.
pub const GUEST_RFLAGS: Field<u64> = Field::new(0x6820);
/// Guest pending debug exceptions.
pub const GUEST_PENDING_DEBUG: Field<u64> = Field::new(0x6822);
/// Guest IA32_SYSENTER_ESP.
pub const GUEST_SYSENTER_ESP: Field<u64> = Field::new(0x6824);
/// Guest IA32_SYSENTER_EIP.
pub const GUEST_SYSENTER_EIP: Field<u64> = Field::new(0x6826);

// natural-width host-state fields

/// Host CR0.
pub(crate) const HOST_CR0: Field<u64> = Field::new(0x6c00);
/// Host CR3.
pub(crate) const HOST_CR3: Field<u64> = Field::new(0x6c02);
/// Host CR4.
pub(crate) const HOST_CR4: Field<u64> = Field::new(0x6c04);
/// Host FS base.
pub(crate) const HOST_FS_BASE: Field<u64> = Field::new(0x6c06);
/// Host GS base.
pub(crate) const HOST_GS_BASE: Field<u64> = Field::new(0x6c08);
/// Host TR base.
pub(crate) const HOST_TR_BASE: Field<u64> = Field::new(0x6c0a);
/// Host GDTR base.
pub(crate) const HOST_GDTR_BASE: Field<u64> = Field::new(0x6c0c);
/// Host IDTR base.
pub(crate) const HOST_IDTR_BASE: Field<u64> = Field::new(0x6c0e);
/// Host IA32_SYSENTER_ESP.
pub(crate) const HOST_SYSENTER_ESP: Field<u64> = Field::new(0x6c10);
/// Host IA32_SYSENTER_EIP.
pub(crate) const HOST_SYSENTER_EIP: Field<u64> = Field::new(0x6c12);
/// Host RIP.
pub(crate) const HOST_RIP: Field<u64> = Field::new(0x6c16);

/// Returns the guest's selector of a segment register.
#[must_use]
pub const fn guest_selector(register: crate::segment::SegmentRegister) -> Field<u16> {
    Field::new(0x0800 + 2 * register as u32)
}

/// Returns the guest's limit of a segment register.
#[must_use]
pub const fn guest_limit(register: crate::segment::SegmentRegister) -> Field<u32> {
    Field::new(0x4800 + 2 * register as u32)
}

/// Returns the guest's access rights of a segment register.
#[must_use]
pub const fn guest_access_rights(register: crate::segment::SegmentRegister) -> Field<u32> {
    Field::new(0x4814 + 2 * register as u32)
}

/// Returns the guest's base of a segment register.
#[must_use]
pub const fn guest_base(register: crate::segment::SegmentRegister) -> Field<u64> {
    Field::new(0x6806 + 2 * register as u32)
}

/// Guest GDTR limit.
pub const GUEST_GDTR_LIMIT: Field<u32> = Field::new(0x4810);
/// Guest IDTR limit.
pub const GUEST_IDTR_LIMIT: Field<u32> = Field::new(0x4812);
