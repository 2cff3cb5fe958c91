//! Registers that the VMCS does not switch and the host does not use: they stay live in the
//! processor between exits, and are exchanged only when another VCPU comes on.
//!
//! Floating-point, SSE and AVX state with XCR0, CR2, debug registers, and the MSRs that pass
//! through. tarpit is built without floating point and has no system calls, so an exit
//! costs nothing for them.

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use core::arch::asm;
use core::ptr::NonNull;

use arch::{msr, reset};

use crate::cpuid::Limits;
use crate::emulate::{Bytes, Computation, Computed};
use crate::machine::native;

/// MSRs that guests read and write without an exit, outside the VMCS.
const MSRS: [u32; 6] = [
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_TSC_AUX,
];
const TSC_AUX_SLOT: usize = 5;

/// XSAVE's legacy region and header.
const XSAVE_MINIMUM: usize = 576;
const XSAVE_ALIGNMENT: usize = 64;

/// The live state of a VCPU that is not on a processor.
pub(super) struct LiveState {
    features: Limits,
    xsave_area: NonNull<u8>,
    /// XCR0 of the guest, also while it is live.
    xcr0: u64,
    cr2: u64,
    debug: [u64; 5],
    msrs: [u64; 6],
}

// SAFETY: the XSAVE area belongs to this state alone.
unsafe impl Send for LiveState {}

impl LiveState {
    /// Returns the state after power-up.
    #[must_use]
    pub(super) fn new(features: &Limits) -> Self {
        let size = features.xsave_bytes.max(XSAVE_MINIMUM);
        let Ok(layout) = Layout::from_size_align(size, XSAVE_ALIGNMENT) else {
            unreachable!("an XSAVE area is a few kilobytes")
        };
        // SAFETY: the layout is not empty.
        let Some(xsave_area) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        // The images of FCW and MXCSR after power-up; all else is zero.
        // SAFETY: the area holds at least the legacy region.
        unsafe {
            xsave_area.cast::<u16>().write(0x37f);
            xsave_area.byte_add(24).cast::<u32>().write(0x1f80);
            // XSTATE_BV: x87 and SSE come from the area.
            xsave_area.byte_add(512).cast::<u64>().write(3);
        }
        Self {
            features: *features,
            xsave_area,
            xcr0: reset::XCR0,
            cr2: 0,
            debug: [0, 0, 0, 0, reset::DR6],
            msrs: [0; 6],
        }
    }

    /// Puts the state into this processor.
    pub(super) fn load(&self) {
        let all = self.features.xcr0;
        // SAFETY: nothing of this state is used by the host. The area was written by
        // [`LiveState::new`] or [`LiveState::save`] with the same components, and its
        // reserved bytes are zero, so XRSTOR does not fault.
        unsafe {
            if all != 0 {
                set_xcr0(all);
                asm!(
                    "xrstor64 [{}]",
                    in(reg) self.xsave_area.as_ptr(),
                    in("eax") all as u32,
                    in("edx") (all >> 32) as u32,
                    options(nostack),
                );
                set_xcr0(self.xcr0);
            } else {
                asm!("fxrstor64 [{}]", in(reg) self.xsave_area.as_ptr(), options(nostack));
            }
            asm!("mov cr2, {}", in(reg) self.cr2, options(nomem, nostack, preserves_flags));
            asm!("mov dr0, {}", in(reg) self.debug[0], options(nomem, nostack, preserves_flags));
            asm!("mov dr1, {}", in(reg) self.debug[1], options(nomem, nostack, preserves_flags));
            asm!("mov dr2, {}", in(reg) self.debug[2], options(nomem, nostack, preserves_flags));
            asm!("mov dr3, {}", in(reg) self.debug[3], options(nomem, nostack, preserves_flags));
            asm!("mov dr6, {}", in(reg) self.debug[4], options(nomem, nostack, preserves_flags));
            for (slot, (&number, &value)) in MSRS.iter().zip(&self.msrs).enumerate() {
                if slot != TSC_AUX_SLOT || self.features.tsc_aux {
                    vmx::msr::write(number, value);
                }
            }
        }
    }

    /// Has this processor execute an instruction that computes, on the state, which is live.
    pub(super) fn compute(
        &mut self,
        computation: &mut Computation<'_>,
        operand: &mut Bytes,
    ) -> Computed {
        // SAFETY: the host uses nothing of this state. Interrupts are off from the exit to the entry.
        unsafe { native::run(computation, operand) }
    }

    /// Takes the state out of this processor, which runs no guest then.
    pub(super) fn save(&mut self) {
        let all = self.features.xcr0;
        // SAFETY: the area has room for all components, is aligned, and is ours; the MSRs
        // exist on every 64-bit CPU, TSC_AUX where the features say so.
        unsafe {
            if all != 0 {
                self.xcr0 = xcr0();
                set_xcr0(all);
                asm!(
                    "xsave64 [{}]",
                    in(reg) self.xsave_area.as_ptr(),
                    in("eax") all as u32,
                    in("edx") (all >> 32) as u32,
                    options(nostack),
                );
            } else {
                asm!("fxsave64 [{}]", in(reg) self.xsave_area.as_ptr(), options(nostack));
            }
            asm!("mov {}, cr2", out(reg) self.cr2, options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr0", out(reg) self.debug[0], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr1", out(reg) self.debug[1], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr2", out(reg) self.debug[2], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr3", out(reg) self.debug[3], options(nomem, nostack, preserves_flags));
            asm!("mov {}, dr6", out(reg) self.debug[4], options(nomem, nostack, preserves_flags));
            for (slot, (&number, value)) in MSRS.iter().zip(&mut self.msrs).enumerate() {
                if slot != TSC_AUX_SLOT || self.features.tsc_aux {
                    *value = vmx::msr::read(number);
                }
            }
        }
    }
}

impl LiveState {
    /// Returns XCR0 of the guest.
    #[inline]
    pub(super) const fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Sets XCR0 of the guest, which is live, to a legal combination of components that CPUID shows
    /// to it.
    pub(super) fn set_xcr0(&mut self, value: u64) {
        // SAFETY: this CPU has the components, and CR4.OSXSAVE of the host is set if there are any.
        unsafe { set_xcr0(value) };
        self.xcr0 = value;
    }
}

impl Drop for LiveState {
    fn drop(&mut self) {
        let size = self.features.xsave_bytes.max(XSAVE_MINIMUM);
        if let Ok(layout) = Layout::from_size_align(size, XSAVE_ALIGNMENT) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { alloc::alloc::dealloc(self.xsave_area.as_ptr(), layout) };
        }
    }
}

/// Returns XCR0 of this processor.
///
/// # Safety
/// CR4.OSXSAVE is set.
unsafe fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the contract.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Sets XCR0 of this processor.
///
/// # Safety
/// CR4.OSXSAVE is set and the processor takes the value.
unsafe fn set_xcr0(value: u64) {
    // SAFETY: by the contract; the host uses no extended state.
    unsafe {
        asm!(
            "xsetbv",
            in("ecx") 0,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nomem, nostack),
        );
    }
}

/// Puts what is live of the guest into its state after INIT (SDM vol. 3A, table 10-1): CR2 and
/// the debug registers. Floating-point state, XCR0 and MSRs stay.
pub(super) fn init_reset() {
    // SAFETY: nothing of this state is used by the host.
    unsafe {
        asm!("mov cr2, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr0, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr1, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr2, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr3, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) reset::DR6, options(nomem, nostack, preserves_flags));
    }
}

/// Sets CR2 of the guest, which is live: its page faults find there what the host has emulated.
pub(super) fn set_cr2(address: u64) {
    // SAFETY: CR2 is information for page-fault handlers; the host's reads it right after a fault.
    unsafe {
        asm!("mov cr2, {}", in(reg) address, options(nomem, nostack, preserves_flags));
    }
}

/// Returns the guest's debug register `slot`, 0 to 3, which is live.
pub(super) fn debug_address(slot: usize) -> u64 {
    let address: u64;
    // SAFETY: the host does not use the debug registers, and DR7.GD is clear since the exit.
    unsafe {
        match slot {
            0 => asm!("mov {}, dr0", out(reg) address, options(nomem, nostack, preserves_flags)),
            1 => asm!("mov {}, dr1", out(reg) address, options(nomem, nostack, preserves_flags)),
            2 => asm!("mov {}, dr2", out(reg) address, options(nomem, nostack, preserves_flags)),
            _ => asm!("mov {}, dr3", out(reg) address, options(nomem, nostack, preserves_flags)),
        }
    }
    address
}

/// Sets the guest's debug register `slot`, 0 to 3, which is live.
pub(super) fn set_debug_address(slot: usize, address: u64) {
    // SAFETY: as for reading; a breakpoint of the guest's means nothing here, where an exit has set DR7
    // to 0x400.
    unsafe {
        match slot {
            0 => asm!("mov dr0, {}", in(reg) address, options(nomem, nostack, preserves_flags)),
            1 => asm!("mov dr1, {}", in(reg) address, options(nomem, nostack, preserves_flags)),
            2 => asm!("mov dr2, {}", in(reg) address, options(nomem, nostack, preserves_flags)),
            _ => asm!("mov dr3, {}", in(reg) address, options(nomem, nostack, preserves_flags)),
        }
    }
}

/// Adds `causes` to DR6 of the guest, which is live, as the delivery of a #DB does: bits 3:0
/// are replaced, the others set (SDM vol. 3B, 18.2.3).
pub(super) fn add_to_dr6(causes: u64) {
    let mut dr6: u64;
    // SAFETY: the host has no breakpoints; DR6 is the guest's.
    unsafe {
        asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags));
        dr6 = dr6 & !0xf | causes;
        asm!("mov dr6, {}", in(reg) dr6, options(nomem, nostack, preserves_flags));
    }
}
