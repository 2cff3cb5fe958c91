//! A target for fuzzing: what a guest writes to its MSRs, one after the other.

use std::vec::Vec;

use super::tests::msrs;
use super::*;

#[test]
fn writes_to_msrs() {
    fuzzing::check!()
        .with_type::<Vec<(u8, u32, u64)>>()
        .for_each(|writes| {
            let mut msrs = msrs();
            for &(kind, number, value) in writes {
                let msr = match kind {
                    // The MTRRs and what is near them.
                    0..96 => 0x200 + number % 0x110,
                    96..112 => IA32_MISC_ENABLE,
                    112..128 => IA32_MCG_STATUS,
                    128..192 => number % 0x1000,
                    _ => number,
                };
                let value = if kind & 1 == 0 {
                    value & 0xff_ffff_0fff
                } else {
                    value
                };
                let others = |msrs: &Msrs| -> Vec<_> {
                    let near = (0x200..0x310).chain([IA32_MISC_ENABLE, IA32_MCG_STATUS]);
                    near.filter(|other| *other != msr)
                        .map(|other| msrs.read(other))
                        .collect()
                };
                let (before, around) = (msrs.read(msr), others(&msrs));
                match msrs.write(msr, value) {
                    Ok(()) => assert!(msrs.read(msr).is_ok(), "{msr:#x}"),
                    Err(GeneralProtection) => assert_eq!(msrs.read(msr), before, "{msr:#x}"),
                }
                assert_eq!(others(&msrs), around, "{msr:#x} changed another");
            }
        });
}
