//! A guest's IA32_SPEC_CTRL.
//!
//! It is the processor's, and what a guest has in it is there while that guest runs only. A
//! guest that has never written it reads zero, and may run with the host's, which does more. One that writes it now and then, as with
//! enhanced IBRS, exits for that; one that writes it at each way into its kernel and out of it, as without,
//! soon has it without exits, and each exit costs it an access more.

use arch::GeneralProtection;
use arch::msr::SpecCtrl;

/// The number of writes from which on a guest has the register without exits.
const OFTEN: u32 = 64;

/// A guest's IA32_SPEC_CTRL, as far as the VCPU keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpecCtrlMsr {
    allowed: SpecCtrl,
    writes: u32,
}

impl SpecCtrlMsr {
    /// Makes the register of a guest that may have these bits. It does not exist if there is none.
    #[must_use]
    pub(crate) const fn new(allowed: SpecCtrl) -> Self {
        Self { allowed, writes: 0 }
    }

    /// Returns whether it exists.
    #[must_use]
    pub(crate) const fn exists(&self) -> bool {
        !self.allowed.is_empty()
    }

    /// Takes note that the guest writes `value`. Returns whether it is to have the register without exits from
    /// now on.
    ///
    /// # Errors
    /// If the register does not exist, or does not take the value: [`GeneralProtection`].
    pub(crate) fn write(&mut self, value: u64) -> Result<bool, GeneralProtection> {
        if !self.exists() || value & !self.allowed.bits() != 0 {
            return Err(GeneralProtection);
        }
        self.writes = self.writes.saturating_add(1);
        Ok(self.writes >= OFTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_ctrl_takes_the_bits_that_cpuid_shows() {
        let mut none = SpecCtrlMsr::new(SpecCtrl::empty());
        assert!(!none.exists());
        assert_eq!(none.write(0), Err(GeneralProtection));
        let allowed = SpecCtrl::IBRS.union(SpecCtrl::SSBD);
        let mut some = SpecCtrlMsr::new(allowed);
        assert!(some.exists());
        for value in 0..=0b1111 {
            let is_taken = value & !allowed.bits() == 0;
            assert_eq!(some.write(value).is_ok(), is_taken, "{value:#b}");
        }
    }

    #[test]
    fn who_writes_it_often_has_it_without_exits() {
        let mut often = SpecCtrlMsr::new(SpecCtrl::IBRS);
        let exits = (0..1000).filter(|write| often.write(write & 1) == Ok(false));
        assert_eq!(exits.count() as u32, OFTEN - 1);
    }
}
