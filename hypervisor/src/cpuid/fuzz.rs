//! A target for fuzzing: hosts with any CPUID, of which guests see no more than is allowed.

use std::vec::Vec;

use super::tests::{AFTER_RESET, ALL, has, skylake_x};
use super::*;

#[test]
fn hosts_of_any_kind() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, u8, [u32; 4])>, u8, [u32; 2], [u64; 2], u32)>()
        .for_each(|(leaves, vcpus, [leaf, subleaf], [cr4, xcr0], hz)| {
            let host = |number: u32, subleaf: u32| {
                let changed = leaves.iter().find(|(at, sub, _)| {
                    let at = u32::from(at & 0x7f) | u32::from(at >> 7) << 31;
                    at == number && u32::from(*sub % 8) == subleaf
                });
                match changed {
                    Some(&(_, _, [eax, ebx, ecx, edx])) => CpuIdResult { eax, ebx, ecx, edx },
                    None => skylake_x(number, subleaf),
                }
            };
            let vcpus = u32::from(vcpus % 8) + 1;
            let hz = Hertz::new(u64::from(*hz) + 1_000_000);
            let guest = GuestCpuid::new(host, ALL, vcpus, hz);
            let ask = |leaf, subleaf| guest.query(vcpus - 1, leaf, subleaf, || AFTER_RESET);
            assert!(!has(ask(1, 0).ecx, 5), "VMX");
            assert!(has(ask(1, 0).ecx, 31), "there is a hypervisor");
            assert_eq!(ask(1, 0).ebx >> 24, vcpus - 1);
            assert_eq!(ask(0xb, 0).edx, vcpus - 1);
            // Nothing is shown that the host does not have.
            for bit in 0..31 {
                // OSXSAVE follows CR4, x2APIC and the TSC-deadline timer are emulated.
                let is_own = matches!(bit, 21 | 24 | 27);
                let is_shown = has(ask(1, 0).ecx, bit);
                assert!(
                    !is_shown || is_own || has(host(1, 0).ecx, bit),
                    "leaf 1, ECX {bit}"
                );
            }
            let limits = guest.limits();
            assert_eq!(limits.xcr0 & !host(0xd, 0).eax as u64, 0);
            assert!(limits.xcr0 == 0 || limits.xcr0 & 1 == 1);
            let state = Dynamic {
                cr4: *cr4,
                xcr0: *xcr0,
                apic_enabled: cr4 & 1 != 0,
                in_64_bit_mode: cr4 & 2 != 0,
            };
            for leaf in [*leaf, leaf & 0x1f, 0x8000_0000 | leaf & 0xf] {
                for vcpu in [0, vcpus - 1] {
                    let answer = guest.query(vcpu, leaf, *subleaf, || state);
                    assert_eq!(answer, guest.query(vcpu, leaf, *subleaf, || state));
                }
                assert_eq!(
                    guest.query(vcpus, leaf, *subleaf, || state),
                    NONE,
                    "no such VCPU"
                );
            }
        });
}
