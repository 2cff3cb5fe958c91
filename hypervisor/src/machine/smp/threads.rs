//! Which CPUs are threads of the same core.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use raw_cpuid::CpuIdResult;

/// Returns how many low bits of an APIC ID tell the threads of a core apart, by a CPU's `cpuid` (leaf,
/// sub-leaf): none if each core has one thread.
#[must_use]
pub(crate) fn thread_bits(cpuid: impl Fn(u32, u32) -> CpuIdResult) -> u32 {
    const EXTENDED_TOPOLOGY: u32 = 0xb;
    /// The type of a level of threads, in ECX.
    const THREADS: u32 = 1;
    if cpuid(0, 0).eax < EXTENDED_TOPOLOGY {
        return 0;
    }
    let level = cpuid(EXTENDED_TOPOLOGY, 0);
    let processors = level.ebx & 0xffff;
    if level.ecx >> 8 & 0xff == THREADS && processors > 1 {
        level.eax & 0x1f
    } else {
        0
    }
}

/// Returns of the CPUs with the APIC IDs `others` those that are on a core of their own: neither on the
/// core of `boot`, nor on one of an earlier one of them.
#[must_use]
pub(crate) fn one_of_each_core(boot: u32, others: &[u32], thread_bits: u32) -> Vec<u32> {
    let core = |id: u32| id.checked_shr(thread_bits).unwrap_or(0);
    let mut kept: Vec<u32> = Vec::new();
    for &id in others {
        if core(id) != core(boot) && kept.iter().all(|&it| core(it) != core(id)) {
            kept.push(id);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(eax: u32, ebx: u32, ecx: u32) -> impl Fn(u32, u32) -> CpuIdResult {
        move |leaf, _| CpuIdResult {
            eax: if leaf == 0 { 0x16 } else { eax },
            ebx,
            ecx,
            edx: 0,
        }
    }

    #[test]
    fn two_threads_a_core_take_a_bit() {
        assert_eq!(thread_bits(topology(1, 2, 0x100)), 1);
    }

    #[test]
    fn a_core_of_one_thread_takes_none_whatever_width_is_set_aside() {
        assert_eq!(thread_bits(topology(1, 1, 0x100)), 0);
        assert_eq!(thread_bits(topology(4, 8, 0x200)), 0);
        let old = |leaf, _| {
            assert_eq!(leaf, 0);
            CpuIdResult {
                eax: 0xa,
                ebx: 2,
                ecx: 0x100,
                edx: 0,
            }
        };
        assert_eq!(thread_bits(old), 0);
    }

    #[test]
    fn of_each_core_the_first_thread_is_used_and_of_the_boot_cpus_it_alone() {
        assert_eq!(one_of_each_core(0, &[1, 2, 3, 4, 5], 1), [2, 4]);
        assert_eq!(one_of_each_core(3, &[0, 1, 2], 1), [0]);
        assert_eq!(one_of_each_core(0, &[1, 2], 0), [1, 2]);
    }
}
