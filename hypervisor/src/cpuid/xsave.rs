//! Leaf DH: the extended state that XSAVE manages (SDM vol. 1, chapter 13).

use alloc::{vec, vec::Vec};

use arch::XCr0Flags;
use arch::cpuid::LeafDSub1Eax;
use raw_cpuid::CpuIdResult;

use super::{NONE, features::Allowed};

/// The features of sub-leaf 1, with one of which its EBX tells the size of the compacted area.
pub(super) const COMPACTED: LeafDSub1Eax = LeafDSub1Eax::XSAVEC.union(LeafDSub1Eax::XSAVES);

/// The components that AVX-512 needs beyond those of AVX.
pub(super) const AVX512: XCr0Flags = XCr0Flags::OPMASK
    .union(XCr0Flags::ZMM_HI256)
    .union(XCr0Flags::HI16_ZMM);
/// Components from here on have a sub-leaf of their own.
const FIRST_EXTENDED: usize = 2;
/// Components from here on are not shown.
const END: usize = 8;
/// Legacy region and header.
const AREA_START: u32 = 512 + 64;

/// The state components that a guest has.
#[derive(Clone)]
pub(super) struct Components {
    mask: XCr0Flags,
    /// The host's answers, by sub-leaf; those of sub-leaves 1 and up are used.
    host: [CpuIdResult; END],
}

impl Components {
    pub(super) fn new(host: &impl Fn(u32, u32) -> CpuIdResult, allowed: &Allowed) -> Self {
        let mut mask = XCr0Flags::empty();
        if allowed.has_xsave() {
            mask |= XCr0Flags::X87 | XCr0Flags::SSE;
        }
        if allowed.has_avx() {
            mask |= XCr0Flags::AVX;
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
        self.mask.bits()
    }

    /// Returns whether there are XSAVES, XRSTORS and IA32_XSS.
    pub(super) const fn has_xsaves(&self, allowed: &Allowed) -> bool {
        !self.mask.is_empty()
            && allowed.xsaves
            && self.host[1].eax & LeafDSub1Eax::XSAVES.bits() != 0
    }

    /// Returns the sub-leaves, but for the sizes that follow XCR0; `None` if there is no XSAVE.
    pub(super) fn leaves(&self, allowed: &Allowed) -> Option<Vec<CpuIdResult>> {
        if self.mask.is_empty() {
            return None;
        }
        let mut instructions =
            LeafDSub1Eax::XSAVEOPT | LeafDSub1Eax::XSAVEC | LeafDSub1Eax::XGETBV1;
        if allowed.xsaves {
            instructions |= LeafDSub1Eax::XSAVES;
        }
        let mut leaves = vec![
            CpuIdResult {
                eax: self.mask() as u32,
                ecx: self.standard_size(self.mask()),
                ..NONE
            },
            CpuIdResult {
                eax: self.host[1].eax & instructions.bits(),
                ..NONE
            },
        ];
        leaves.extend((FIRST_EXTENDED..END).map(|component| {
            if self.mask() >> component & 1 != 0 {
                self.host[component]
            } else {
                NONE
            }
        }));
        Some(leaves)
    }

    fn enabled(&self, xcr0: u64) -> impl Iterator<Item = &CpuIdResult> {
        let enabled = xcr0 & self.mask();
        (FIRST_EXTENDED..END)
            .filter(move |component| enabled >> component & 1 != 0)
            .filter_map(|component| self.host.get(component))
    }

    /// Returns the size of the XSAVE area in standard format for the components of `xcr0`.
    pub(super) fn standard_size(&self, xcr0: u64) -> u32 {
        self.enabled(xcr0)
            .map(|component| component.ebx.saturating_add(component.eax))
            .fold(AREA_START, u32::max)
    }

    /// Returns the size of the XSAVE area in compacted format for the components of `xcr0`.
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
