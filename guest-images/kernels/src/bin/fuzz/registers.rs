//! Control registers, debug registers and MSRs.

use core::arch::asm;

use arch::msr;
use kernels::dice::Dice;
use x86_64::registers::model_specific::Msr;

use crate::Action;

pub(crate) const ACTIONS: &[Action] = &[
    (read_msr, 60),
    (write_msr, 40),
    (cr0, 30),
    (cr3, 20),
    (cr4, 20),
    (cr8, 20),
    (status_word, 10),
    (debug, 20),
];

/// MSRs that exist, and those that say where code or data are.
const MSRS: [u32; 26] = [
    msr::IA32_TIME_STAMP_COUNTER,
    msr::IA32_APIC_BASE,
    msr::IA32_FEATURE_CONTROL,
    msr::IA32_TSC_ADJUST,
    msr::IA32_SPEC_CTRL,
    msr::IA32_PRED_CMD,
    msr::IA32_BIOS_SIGN_ID,
    msr::IA32_MTRRCAP,
    msr::IA32_ARCH_CAPABILITIES,
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_MCG_CAP,
    msr::IA32_MISC_ENABLE,
    msr::IA32_DEBUGCTL,
    msr::IA32_MTRR_PHYSBASE0,
    msr::IA32_PAT,
    msr::IA32_MTRR_DEF_TYPE,
    msr::IA32_MC0_CTL,
    msr::IA32_VMX_BASIC,
    msr::IA32_TSC_DEADLINE,
    msr::IA32_XSS,
    msr::IA32_EFER,
    msr::IA32_STAR,
    msr::IA32_FS_BASE,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_TSC_AUX,
];

/// MSRs that every processor has, and that can be read in any state.
pub(crate) const HARMLESS_MSRS: [u32; 8] = [
    msr::IA32_TIME_STAMP_COUNTER,
    msr::IA32_APIC_BASE,
    msr::IA32_TSC_ADJUST,
    msr::IA32_MTRRCAP,
    msr::IA32_SYSENTER_CS,
    msr::IA32_PAT,
    msr::IA32_MISC_ENABLE,
    msr::IA32_EFER,
];

fn number(dice: &mut Dice) -> u32 {
    match dice.below(4) {
        0 => dice.value() as u32,
        1 => dice.of(&[0, 0x4000_0000, 0xc000_0000, 0xc001_0000]) + dice.below(0x2000) as u32,
        _ => dice.of(&MSRS).wrapping_add(dice.of(&[0, 0, 1, 2])),
    }
}

fn read_msr(dice: &mut Dice) {
    // SAFETY: reading has no effect, or a fault is caught.
    let _ = unsafe { Msr::new(number(dice)).read() };
}

/// Writes an MSR, or one bit of what it has.
fn write_msr(dice: &mut Dice) {
    let number = number(dice);
    let mut value = dice.value();
    // SAFETY: what the kernel needs of them is put back, and faults are caught.
    unsafe {
        if dice.once_in(2) {
            value = Msr::new(number).read() ^ 1 << dice.below(64);
        }
        if (msr::X2APIC_FIRST..=msr::X2APIC_LAST).contains(&number) {
            return;
        }
        Msr::new(number).write(value);
    }
}

fn cr0(dice: &mut Dice) {
    let old: u64;
    // SAFETY: bits without which this code does not go on are faults to change, or left alone; the rest is
    // put back.
    unsafe {
        asm!("mov {}, cr0", out(reg) old);
        // Not PE, nor PG, which have a journey of their own, but with what cannot be.
        let bit = match dice.below(33) {
            0 | 31 => 40,
            bit => bit,
        };
        asm!("mov cr0, {}", in(reg) old ^ 1 << bit);
        asm!("mov cr0, {}", in(reg) old);
        asm!("clts");
    }
}

fn cr3(dice: &mut Dice) {
    let old: u64;
    // SAFETY: the root stays, or the value is refused.
    unsafe {
        asm!("mov {}, cr3", out(reg) old);
        let flags = dice.of(&[0, 8, 0x10, 0x18, 1 << 63, 1 << 62, 1 << 50]);
        asm!("mov cr3, {}", in(reg) old | flags);
    }
}

fn cr4(dice: &mut Dice) {
    let old: u64;
    // SAFETY: not PAE, which is a fault in long mode, nor paging of five levels, which is one, too; nor what
    // faults at the kernel's own data, which is only set for a moment.
    unsafe {
        asm!("mov {}, cr4", out(reg) old);
        asm!("mov cr4, {}", in(reg) old ^ 1 << dice.below(30));
        asm!("mov cr4, {}", in(reg) old);
    }
}

fn cr8(dice: &mut Dice) {
    let value = dice.value() & if dice.once_in(4) { u64::MAX } else { 0xf };
    // SAFETY: interrupts are off.
    unsafe {
        asm!("mov cr8, {}", in(reg) value);
        asm!("mov {}, cr8", out(reg) _);
    }
}

fn status_word(dice: &mut Dice) {
    // SAFETY: PE cannot be cleared, and the rest is put back.
    unsafe {
        asm!("smsw {0:e}", out(reg) _);
        asm!("lmsw {0:x}", in(reg) dice.any() as u16 | 1);
    }
}

fn debug(dice: &mut Dice) {
    let value = dice.value();
    // SAFETY: breakpoints are taken by a handler.
    unsafe {
        match dice.below(5) {
            0 => asm!("mov dr0, {}", in(reg) value),
            1 => asm!("mov dr3, {}", in(reg) value),
            2 => asm!("mov dr6, {}", in(reg) value),
            3 => asm!("mov dr7, {}", in(reg) value & !0x2000),
            _ => asm!("mov {}, dr4", out(reg) _),
        }
    }
}
