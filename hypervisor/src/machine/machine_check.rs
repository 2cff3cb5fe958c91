//! Machine checks: errors that the hardware reports (SDM vol. 3B, ch. 16). The banks are read, told and
//! cleared. One that strikes a guest ends that guest, unless the processor says that its state cannot
//! be trusted; one that strikes tarpit itself is fatal.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::ExceptionVector;
use arch::msr::{IA32_MC0_CTL, IA32_MCG_CAP, IA32_MCG_STATUS};
use vmx::msr;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::cpu::trap::{self, TrapFrame};
use super::fatal;

/// The banks that a report has room for.
const MOST_BANKS: usize = 4;

/// Bits of IA32_MCi_STATUS.
mod status {
    pub(super) const VALID: u64 = 1 << 63;
    pub(super) const UNCORRECTED: u64 = 1 << 61;
    pub(super) const MISC_VALID: u64 = 1 << 59;
    pub(super) const ADDRESS_VALID: u64 = 1 << 58;
    pub(super) const CONTEXT_CORRUPT: u64 = 1 << 57;
}

/// Bit of IA32_MCG_STATUS: what was interrupted can go on.
const RESTART_IP_VALID: u64 = 1;
/// Bits of IA32_MCG_CAP: the number of banks.
const BANKS: u64 = 0xff;

/// Errors that have been found in banks, machine checks or not.
static FOUND: AtomicU64 = AtomicU64::new(0);

/// Returns how many errors have been found in the machine-check banks since the start.
#[must_use]
pub(crate) fn found() -> u64 {
    FOUND.load(Ordering::Relaxed)
}

/// The report of a bank on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BankReport {
    number: u8,
    status: u64,
    address: Option<u64>,
    misc: Option<u64>,
}

impl fmt::Display for BankReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bank {} status {:#018x}", self.number, self.status)?;
        if let Some(address) = self.address {
            write!(f, " address {address:#x}")?;
        }
        if let Some(misc) = self.misc {
            write!(f, " misc {misc:#x}")?;
        }
        Ok(())
    }
}

/// The reports of the banks on a machine check, and its global status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MachineCheck {
    global_status: u64,
    banks: [Option<BankReport>; MOST_BANKS],
    /// Errors in all banks, those without room included.
    errors: u32,
}

impl MachineCheck {
    /// A machine check of which no bank tells anything.
    pub(crate) const NONE: Self = Self {
        global_status: 0,
        banks: [None; MOST_BANKS],
        errors: 0,
    };

    fn reports(&self) -> impl Iterator<Item = &BankReport> {
        self.banks.iter().flatten()
    }

    /// Returns whether a bank tells of an error that was not corrected. Where all CPUs get a machine check
    /// because of one of them, the others have none.
    fn is_uncorrected(&self) -> bool {
        self.reports()
            .any(|bank| bank.status & status::UNCORRECTED != 0)
    }

    /// Returns whether what was interrupted could go on, as far as the processor's own state goes.
    fn is_context_intact(&self) -> bool {
        self.reports()
            .all(|bank| bank.status & status::CONTEXT_CORRUPT == 0)
    }
}

impl fmt::Display for MachineCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine check, global status {:#x}", self.global_status)?;
        for bank in self.reports() {
            write!(f, ", {bank}")?;
        }
        let shown = self.reports().count() as u32;
        if self.errors > shown {
            write!(f, ", and {} more", self.errors - shown)?;
        }
        Ok(())
    }
}

/// The model-specific registers of machine checks.
trait Msrs {
    fn read(&mut self, msr: u32) -> u64;
    fn write(&mut self, msr: u32, value: u64);
}

/// The registers of this CPU.
struct ThisCpu;

impl Msrs for ThisCpu {
    fn read(&mut self, number: u32) -> u64 {
        // SAFETY: CPUID says that this CPU has machine checks; it has as many banks as IA32_MCG_CAP
        // says.
        unsafe { msr::read(number) }
    }

    fn write(&mut self, number: u32, value: u64) {
        // SAFETY: as for reading; a bank's control takes all ones, its status zero.
        unsafe { msr::write(number, value) };
    }
}

/// Returns the registers of bank `number`: control, status, address and misc follow each other.
const fn bank(number: u8) -> u32 {
    IA32_MC0_CTL + 4 * number as u32
}

/// Takes what the banks hold out of them, and ends the machine check, if there is one.
fn take_banks(msrs: &mut impl Msrs) -> MachineCheck {
    let mut check = MachineCheck {
        global_status: msrs.read(IA32_MCG_STATUS),
        ..MachineCheck::NONE
    };
    let count = (msrs.read(IA32_MCG_CAP) & BANKS) as u8;
    for number in 0..count {
        let first = bank(number);
        let status = msrs.read(first + 1);
        if status & status::VALID == 0 {
            continue;
        }
        let mut read_if = |flag, msr| (status & flag != 0).then(|| msrs.read(msr));
        let report = BankReport {
            number,
            status,
            address: read_if(status::ADDRESS_VALID, first + 2),
            misc: read_if(status::MISC_VALID, first + 3),
        };
        if let Some(slot) = check.banks.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(report);
        }
        check.errors += 1;
        msrs.write(first + 1, 0);
    }
    msrs.write(IA32_MCG_STATUS, 0);
    FOUND.fetch_add(check.errors.into(), Ordering::Relaxed);
    check
}

/// Lets this CPU report machine checks, in the host and under guests. Errors from before are told in
/// the log.
///
/// # Safety
/// On each CPU once, with an IDT that has a stack for machine checks.
pub(crate) unsafe fn enable() {
    let has_them = raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_mce() && features.has_mca());
    if !has_them {
        return;
    }
    trap::set_hook(ExceptionVector::MachineCheck as u8, Some(on_machine_check));
    let old = take_banks(&mut ThisCpu);
    for report in old.reports() {
        log::warn!("a hardware error from before the start: {report}");
    }
    let count = (ThisCpu.read(IA32_MCG_CAP) & BANKS) as u8;
    for number in 0..count {
        ThisCpu.write(bank(number), u64::MAX);
    }
    // SAFETY: the handler is there.
    unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
}

/// Takes the machine check that has ended a guest's turn, and tells what it was.
pub(crate) fn take_from_guest() -> MachineCheck {
    let check = take_banks(&mut ThisCpu);
    if !check.is_context_intact() {
        fatal::fatal(format_args!("{check}; the hardware is failing"))
    }
    check
}

fn on_machine_check(frame: &mut TrapFrame) {
    let check = take_banks(&mut ThisCpu);
    // Another CPU's: they all get it.
    if !check.is_uncorrected() && check.global_status & RESTART_IP_VALID != 0 {
        return;
    }
    fatal::fatal(format_args!(
        "{check}, at rip {:#x}; the hardware is failing",
        frame.rip
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::string::ToString;

    use super::*;

    #[derive(Default)]
    struct Fake(BTreeMap<u32, u64>);

    impl Msrs for Fake {
        fn read(&mut self, msr: u32) -> u64 {
            *self
                .0
                .get(&msr)
                .unwrap_or_else(|| panic!("no MSR {msr:#x}"))
        }

        fn write(&mut self, msr: u32, value: u64) {
            self.0.insert(msr, value);
        }
    }

    /// A CPU with these values of banks' status registers. Address and misc exist only where they are
    /// valid.
    fn cpu(global: u64, banks: &[u64]) -> Fake {
        let mut fake = Fake::default();
        fake.write(IA32_MCG_CAP, 0x1000 | banks.len() as u64);
        fake.write(IA32_MCG_STATUS, global);
        for (number, &status) in (0..).zip(banks) {
            fake.write(bank(number) + 1, status);
            if status & status::ADDRESS_VALID != 0 {
                fake.write(bank(number) + 2, 0x1234_5000);
            }
            if status & status::MISC_VALID != 0 {
                fake.write(bank(number) + 3, 0x8c);
            }
        }
        fake
    }

    const MEMORY_ERROR: u64 =
        status::VALID | status::UNCORRECTED | status::ADDRESS_VALID | status::MISC_VALID | 0x9f;

    #[test]
    fn a_bank_tells_what_is_valid_in_it_and_is_cleared() {
        let mut cpu = cpu(5, &[0, 0x9f, MEMORY_ERROR]);
        let check = take_banks(&mut cpu);
        assert_eq!(
            check.to_string(),
            "machine check, global status 0x5, bank 2 status 0xac0000000000009f address 0x12345000 \
             misc 0x8c"
        );
        assert!(check.is_uncorrected() && check.is_context_intact());
        assert_eq!(cpu.read(bank(2) + 1), 0);
        assert_eq!(cpu.read(IA32_MCG_STATUS), 0);
        let again = take_banks(&mut cpu);
        assert!(!again.is_uncorrected());
    }

    #[test]
    fn a_corrupt_context_is_told_from_one_that_is_intact() {
        let corrupt = MEMORY_ERROR | status::CONTEXT_CORRUPT;
        assert!(!take_banks(&mut cpu(4, &[corrupt])).is_context_intact());
        // What is not valid says nothing.
        let stale = corrupt & !status::VALID;
        assert!(take_banks(&mut cpu(4, &[stale])).is_context_intact());
    }

    #[test]
    fn banks_without_room_in_the_report_are_counted_and_cleared() {
        let mut cpu = cpu(0, &[status::VALID; 7]);
        let check = take_banks(&mut cpu);
        assert!(check.to_string().ends_with(", and 3 more"));
        assert_eq!(take_banks(&mut cpu).errors, 0);
    }
}
