//! XSETBV.

use arch::XCr0Flags;
use arch::gpr::RCX;
use vmx::event::Event;

use crate::vcpu::backend::GuestCpu;
use crate::vcpu::{StopReason, Vcpu};

impl<C: GuestCpu> Vcpu<C> {
    /// Answers XSETBV; the processor has checked CPL and CR4.OSXSAVE before the exit.
    pub(in crate::vcpu) fn handle_xsetbv(&mut self) -> Result<(), StopReason> {
        let value = self.cpu.edx_eax();
        if self.cpu.gpr(RCX) as u32 != 0 || !is_legal(value, self.vm.cpuid.limits().xcr0) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        self.cpu.set_xcr0(value);
        self.cpu.skip_instruction();
        Ok(())
    }
}

/// Returns whether XCR0 takes `value`, if it may have the components `allowed` (SDM vol. 1, 13.3).
const fn is_legal(value: u64, allowed: u64) -> bool {
    const MPX: XCr0Flags = XCr0Flags::BNDREG.union(XCr0Flags::BNDCSR);
    const AVX512: XCr0Flags = XCr0Flags::OPMASK
        .union(XCr0Flags::ZMM_HI256)
        .union(XCr0Flags::HI16_ZMM);
    let flags = XCr0Flags::from_bits_retain(value);
    flags.contains(XCr0Flags::X87)
        && value & !allowed == 0
        && (!flags.contains(XCr0Flags::AVX) || flags.contains(XCr0Flags::SSE))
        && (!flags.intersects(MPX) || flags.contains(MPX))
        && (!flags.intersects(AVX512) || flags.contains(AVX512.union(XCr0Flags::AVX)))
}

#[cfg(test)]
mod tests {
    use super::is_legal;

    #[test]
    fn xcr0_takes_only_combinations_that_the_processor_has() {
        let allowed = 0xe7;
        for legal in [0x1, 0x3, 0x7, 0xe7] {
            assert!(is_legal(legal, allowed), "{legal:#x}");
        }
        for illegal in [0x0, 0x2, 0x5, 0x6, 0x27, 0xe3, 0xb, 0x1f, 1 << 9 | 1] {
            assert!(!is_legal(illegal, allowed), "{illegal:#x}");
        }
    }
}
