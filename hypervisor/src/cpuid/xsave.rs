//! Leaf DH: the extended state that XSAVE manages (SDM vol. 1, chapter 13).

use super::{NONE, features::Allowed};
use alloc::{vec, vec::Vec};
use raw_cpuid::CpuIdResult;

/// XSAVEC or XSAVES, in EAX of sub-leaf 1: with them, EBX tells a size.
pub(super) const XSAVEC_OR_XSAVES: u32 = 1 << 1 | 1 << 3;
const XSAVEOPT: u32 = 1;
const XSAVEC: u32 = 1 << 1;
const XGETBV1: u32 = 1 << 2;
const XSAVES: u32 = 1 << 3;

const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// Opmask, upper halves of ZMM0-15, ZMM16-31.
const AVX512: u64 = 0b111 << 5;
/// Components from here on have a sub-leaf of their own.
const FIRST_EXTENDED: usize = 2;
/// Components from here on are not shown.
const END: usize = 8;
/// Legacy region and header.
const AREA_START: u32 = 512 + 64;

/// The state components that a guest has.
pub(super) struct Components {
    mask: u64,
    /// What sub-leaves 1 and up of the host tell.
    host: [CpuIdResult; END],
}

impl Components {
    pub(super) fn new(host: &impl Fn(u32, u32) -> CpuIdResult, allowed: &Allowed) -> Self {
        let mut mask = 0;
        if allowed.has_xsave() {
            mask |= X87 | SSE;
        }
        if allowed.has_avx() {
            mask |= AVX;
        }
        if allowed.has_avx512() {
            mask |= AVX512;
        }
        Self {
            mask,
            host: core::array::from_fn(|subleaf| host(0xD, subleaf as u32)),
        }
    }

    pub(super) const fn mask(&self) -> u64 {
        self.mask
    }

    /// Whether there are XSAVES, XRSTORS and IA32_XSS.
    pub(super) const fn has_xsaves(&self, allowed: &Allowed) -> bool {
        self.mask != 0 && allowed.xsaves && self.host[1].eax & XSAVES != 0
    }

    /// The sub-leaves, but for the sizes that follow XCR0; `None` if there is no XSAVE.
    pub(super) fn leaves(&self, allowed: &Allowed) -> Option<Vec<CpuIdResult>> {
        if self.mask == 0 {
            return None;
        }
        let mut instructions = XSAVEOPT | XSAVEC | XGETBV1;
        if allowed.xsaves {
            instructions |= XSAVES;
        }
        let mut leaves = vec![
            CpuIdResult {
                eax: self.mask as u32,
                ecx: self.standard_size(self.mask),
                ..NONE
            },
            CpuIdResult {
                eax: self.host[1].eax & instructions,
                ..NONE
            },
        ];
        leaves.extend((FIRST_EXTENDED..END).map(|component| {
            if self.mask >> component & 1 != 0 {
                self.host[component]
            } else {
                NONE
            }
        }));
        Some(leaves)
    }

    fn enabled(&self, xcr0: u64) -> impl Iterator<Item = &CpuIdResult> {
        let enabled = xcr0 & self.mask;
        (FIRST_EXTENDED..END)
            .filter(move |component| enabled >> component & 1 != 0)
            .filter_map(|component| self.host.get(component))
    }

    /// The size of the XSAVE area in standard format for the components of `xcr0`.
    pub(super) fn standard_size(&self, xcr0: u64) -> u32 {
        self.enabled(xcr0)
            .map(|component| component.ebx.saturating_add(component.eax))
            .fold(AREA_START, u32::max)
    }

    /// The size of the XSAVE area in compacted format for the components of `xcr0`.
    pub(super) fn compacted_size(&self, xcr0: u64) -> u32 {
        const ALIGN_64: u32 = 1 << 1;
        self.enabled(xcr0).fold(AREA_START, |end, component| {
            let start = if component.ecx & ALIGN_64 != 0 {
                end.next_multiple_of(64)
            } else {
                end
            };
            start.saturating_add(component.eax)
        })
    }
}
