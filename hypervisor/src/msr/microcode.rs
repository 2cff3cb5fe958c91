//! The microcode revision that a guest is shown.
//!
//! On some CPUs the TSC-deadline mode of the local APIC's timer fails with old microcode, so
//! kernels do without it there. A guest's timer is tarpit's and does not fail: the guest
//! is shown the host's revision, or if that is older, the first one in which it is mended.

/// Models of family 6, a stepping or all, and their first revision without the erratum
/// ("APIC timer in TSC-deadline mode may not function", as in Intel's specification updates).
const FIRST_GOOD: [(u8, Option<u8>, u32); 18] = [
    (0x3C, None, 0x22),
    (0x3D, None, 0x25),
    (0x3F, Some(2), 0x3A),
    (0x3F, Some(4), 0x0F),
    (0x45, None, 0x20),
    (0x46, None, 0x17),
    (0x47, None, 0x17),
    (0x4E, None, 0xB2),
    (0x4F, None, 0x0B00_0020),
    (0x55, Some(3), 0x0100_0136),
    (0x55, Some(4), 0x0200_0014),
    (0x56, Some(2), 0x11),
    (0x56, Some(3), 0x0700_000E),
    (0x56, Some(4), 0x0F00_000C),
    (0x56, Some(5), 0x0E00_0003),
    (0x5E, None, 0xB2),
    (0x8E, None, 0x52),
    (0x9E, None, 0x52),
];

/// Returns the revision to show on a CPU with the signature of CPUID leaf 1, EAX, whose own
/// microcode is `host`.
pub(super) fn shown(signature: u32, host: u32) -> u32 {
    let family = signature >> 8 & 0xF;
    let model = (signature >> 4 & 0xF | signature >> 12 & 0xF0) as u8;
    let stepping = (signature & 0xF) as u8;
    FIRST_GOOD
        .iter()
        .filter(|_| family == 6)
        .filter(|(of_model, ..)| *of_model == model)
        .filter(|(_, of_stepping, _)| of_stepping.is_none_or(|s| s == stepping))
        .map(|(.., revision)| *revision)
        .fold(host, u32::max)
}

/// Returns whether TSC-deadline mode works on a CPU with the signature of CPUID leaf 1, EAX, whose microcode is
/// `host`. An emulated CPU has none, and no errata.
pub(super) fn deadline_mode_works(signature: u32, host: u32) -> bool {
    host == 0 || shown(signature, host) == host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_revision_is_raised_to_the_first_good_one() {
        // Skylake-X, stepping 4, as Bochs has it.
        assert_eq!(shown(0x0005_0654, 0), 0x0200_0014);
        assert_eq!(shown(0x0005_0654, 0x0200_0065), 0x0200_0065);
    }

    #[test]
    fn the_host_does_without_deadline_mode_where_it_fails() {
        assert!(!deadline_mode_works(0x0005_0654, 0x0200_0013));
        assert!(deadline_mode_works(0x0005_0654, 0x0200_0014));
        assert!(deadline_mode_works(0x0005_0655, 1));
        assert!(deadline_mode_works(0x0005_0654, 0));
    }

    #[test]
    fn a_cpu_without_the_erratum_keeps_its_own() {
        assert_eq!(shown(0x0005_0655, 7), 7);
        assert_eq!(shown(0x000A_0652, 7), 7);
        // Family 15.
        assert_eq!(shown(0x0005_0F54, 7), 7);
    }
}
