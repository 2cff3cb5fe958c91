//! The answers of one VCPU, worked out beforehand.

use alloc::vec::Vec;

use arch::Cr4Flags;
use arch::cpuid::{EXTENDED, Extended1Edx, Leaf1Ecx, Leaf1Edx};

use super::{CpuIdResult, Dynamic, Limits, NONE, TscRatio, VmxSupport, features::Allowed, xsave};

/// The last basic leaf: 16H, processor frequencies. What lies beyond describes features
/// that no guest is shown.
pub(super) const MAX_BASIC: u32 = 0x16;
/// The last extended leaf: address sizes.
const MAX_EXTENDED: u32 = EXTENDED + 8;
/// The leaf that tells of the hypervisor; the only one of its range.
const HYPERVISOR: u32 = 0x4000_0000;
/// The vendor string in EBX, ECX and EDX of [`HYPERVISOR`], by which a guest knows tarpit.
const SIGNATURE: [u8; 12] = *b"TarpitTarpit";

/// The place of a VCPU in the topology of its VM. There is one thread to a core and one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    /// The number of the VM's VCPUs; at least one.
    pub(super) vcpus: u32,
    /// The APIC ID of this one, below `vcpus`.
    pub(super) apic_id: u32,
}

impl Topology {
    /// Returns how many low bits of an APIC ID tell the cores of the package apart.
    const fn core_bits(self) -> u32 {
        match self.vcpus {
            0 | 1 => 0,
            vcpus => (vcpus - 1).ilog2() + 1,
        }
    }

    /// Returns the largest APIC ID that the package could have.
    const fn last_core(self) -> u32 {
        (1 << self.core_bits()) - 1
    }
}

/// The part of a leaf's answer that is added when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Completion {
    /// An answer that is complete.
    None,
    /// Leaf 1, which shows CR4.OSXSAVE and the local APIC's enable bit.
    Features,
    /// Leaf 80000001H, which shows SYSCALL in 64-bit mode alone (SDM vol. 2A, CPUID).
    ExtendedFeatures,
    /// An answer for each sub-leaf, from `first` on in the list, and zeros after.
    Subleaves { first: u8, count: u8 },
    /// Answers as for `Subleaves`, but what is not listed still tells the sub-leaf and the APIC ID.
    Topology { first: u8, count: u8 },
    /// Answers as for `Subleaves`, the first two of which tell the size of the enabled state.
    Xsave { first: u8, count: u8 },
}

#[derive(Clone, Copy)]
struct Leaf {
    answer: CpuIdResult,
    completion: Completion,
}

impl Leaf {
    const fn plain(answer: CpuIdResult) -> Self {
        Self {
            answer,
            completion: Completion::None,
        }
    }
}

/// All that CPUID answers on one VCPU.
#[derive(Clone)]
pub(super) struct CpuidTable {
    basic: [Leaf; MAX_BASIC as usize + 1],
    extended: [Leaf; (MAX_EXTENDED - EXTENDED) as usize + 1],
    hypervisor: Leaf,
    subleaves: Vec<CpuIdResult>,
    components: xsave::Components,
    apic_id: u32,
    allowed: Allowed,
}

impl CpuidTable {
    /// Returns family, model and stepping.
    pub(super) const fn signature(&self) -> u32 {
        self.basic[1].answer.eax
    }

    /// Works out the answers for the VCPU at `topology`.
    pub(super) fn new(
        host: impl Fn(u32, u32) -> CpuIdResult,
        vmx: VmxSupport,
        topology: Topology,
        tsc: TscRatio,
    ) -> Self {
        // Intel's CPUs answer a leaf that they do not have with another one's data.
        let max_basic = host(0, 0).eax;
        let max_extended = host(EXTENDED, 0).eax;
        let host = |leaf, subleaf| match leaf {
            0..EXTENDED if leaf <= max_basic => host(leaf, subleaf),
            EXTENDED.. if leaf <= max_extended => host(leaf, subleaf),
            _ => NONE,
        };
        let allowed = Allowed::new(&host, vmx);
        let components = xsave::Components::new(&host, &allowed);
        let mut table = Self {
            basic: [Leaf::plain(NONE); _],
            extended: [Leaf::plain(NONE); _],
            hypervisor: Leaf::plain(CpuIdResult {
                eax: HYPERVISOR,
                ..text(&SIGNATURE)
            }),
            subleaves: Vec::new(),
            components,
            apic_id: topology.apic_id,
            allowed,
        };
        table.fill_basic(&host, topology, tsc);
        table.fill_extended(&host);
        table
    }

    fn fill_basic(
        &mut self,
        host: &impl Fn(u32, u32) -> CpuIdResult,
        topology: Topology,
        tsc: TscRatio,
    ) {
        let allowed = self.allowed;
        let mut set = |leaf: usize, answer| self.basic[leaf].answer = answer;
        set(
            0,
            CpuIdResult {
                eax: MAX_BASIC,
                ..host(0, 0)
            },
        );
        // Version, and CLFLUSH line size, brand index, core count and APIC ID.
        let version = host(1, 0);
        let mut leaf1_edx = allowed.leaf1_edx;
        leaf1_edx.set(Leaf1Edx::HTT, topology.vcpus > 1);
        set(
            1,
            CpuIdResult {
                eax: version.eax,
                ebx: version.ebx & 0xFFFF
                    | (topology.last_core() + 1) << 16
                    | topology.apic_id << 24,
                ecx: allowed.leaf1_ecx.bits(),
                edx: leaf1_edx.bits(),
            },
        );
        set(2, host(2, 0));
        // Thermal and power management: that the APIC timer runs on in deep sleep (ARAT).
        set(
            6,
            CpuIdResult {
                eax: 1 << 2,
                ..NONE
            },
        );
        set(
            0x15,
            CpuIdResult {
                eax: tsc.denominator(),
                ebx: tsc.numerator(),
                ecx: tsc.crystal_hz(),
                edx: 0,
            },
        );
        // Base and maximum frequency of the core, frequency of the bus, in MHz.
        let mhz = tsc.rounded_mhz();
        set(
            0x16,
            CpuIdResult {
                eax: mhz,
                ebx: mhz,
                ecx: 100,
                edx: 0,
            },
        );
        self.basic[1].completion = Completion::Features;

        let caches: Vec<_> = (0..8)
            .map(|subleaf| host(4, subleaf))
            .take_while(|cache| cache.eax & 0x1F != 0)
            .map(|cache| own_cache(cache, topology))
            .collect();
        let (first, count) = self.add_subleaves(&caches);
        self.basic[4].completion = Completion::Subleaves { first, count };

        let features = [
            CpuIdResult {
                eax: 1,
                ebx: allowed.leaf7_ebx.bits(),
                ecx: allowed.leaf7_ecx.bits(),
                edx: allowed.leaf7_edx.bits(),
            },
            CpuIdResult {
                eax: allowed.leaf7_1_eax.bits(),
                ..NONE
            },
        ];
        let (first, count) = self.add_subleaves(&features);
        self.basic[7].completion = Completion::Subleaves { first, count };

        let level = |subleaf: u32, kind: u32, shift, processors| CpuIdResult {
            eax: shift,
            ebx: processors,
            ecx: subleaf | kind << 8,
            edx: topology.apic_id,
        };
        let (first, count) = self.add_subleaves(&[
            level(0, 1, 0, 1),
            level(1, 2, topology.core_bits(), topology.vcpus),
        ]);
        self.basic[0xB].completion = Completion::Topology { first, count };

        if let Some(leaves) = self.components.leaves(&allowed) {
            let (first, count) = self.add_subleaves(&leaves);
            self.basic[0xD].completion = Completion::Xsave { first, count };
        }
    }

    fn fill_extended(&mut self, host: &impl Fn(u32, u32) -> CpuIdResult) {
        let allowed = self.allowed;
        let mut set = |leaf: usize, answer| self.extended[leaf].answer = answer;
        set(
            0,
            CpuIdResult {
                eax: MAX_EXTENDED,
                ..NONE
            },
        );
        set(
            1,
            CpuIdResult {
                ecx: allowed.extended1_ecx.bits(),
                edx: allowed.extended1_edx.bits(),
                ..NONE
            },
        );
        self.extended[1].completion = Completion::ExtendedFeatures;
        let mut set = |leaf: usize, answer| self.extended[leaf].answer = answer;
        for brand_string in 2..=4 {
            set(brand_string, host(EXTENDED + brand_string as u32, 0));
        }
        set(
            6,
            CpuIdResult {
                ecx: host(EXTENDED + 6, 0).ecx,
                ..NONE
            },
        );
        // The guest's TSC is invariant whatever the host's CPU says: tarpit's clock
        // keeps it so.
        set(
            7,
            CpuIdResult {
                edx: 1 << 8,
                ..NONE
            },
        );
        // Sizes of physical addresses, as the CPU checks them, and of linear ones: 48
        // bits without 5-level paging.
        let physical = host(EXTENDED + 8, 0).eax & 0xFF;
        set(
            8,
            CpuIdResult {
                eax: physical | 48 << 8,
                ..NONE
            },
        );
    }

    fn add_subleaves(&mut self, leaves: &[CpuIdResult]) -> (u8, u8) {
        let first = self.subleaves.len() as u8;
        self.subleaves.extend_from_slice(leaves);
        (first, leaves.len() as u8)
    }

    /// Returns what CPUID answers for `leaf` (EAX) and `subleaf` (ECX).
    #[inline]
    pub(super) fn lookup(
        &self,
        leaf: u32,
        subleaf: u32,
        dynamic: impl FnOnce() -> Dynamic,
    ) -> CpuIdResult {
        let found = match self.basic.get(leaf as usize) {
            Some(found) => found,
            None => self.beyond_basic(leaf),
        };
        match found.completion {
            Completion::None => found.answer,
            Completion::Features => self.features(&dynamic()),
            Completion::ExtendedFeatures => self.extended_features(&dynamic()),
            completion => self.subleaf(completion, subleaf, dynamic),
        }
    }

    fn beyond_basic(&self, leaf: u32) -> &Leaf {
        match leaf {
            HYPERVISOR => &self.hypervisor,
            // A leaf that is not there reads as the last basic one (SDM vol. 2A, CPUID).
            _ => (leaf.checked_sub(EXTENDED))
                .and_then(|index| self.extended.get(index as usize))
                .unwrap_or(&self.basic[MAX_BASIC as usize]),
        }
    }

    fn features(&self, dynamic: &Dynamic) -> CpuIdResult {
        let mut answer = self.basic[1].answer;
        if dynamic.cr4 & Cr4Flags::OSXSAVE.bits() != 0 {
            answer.ecx |= Leaf1Ecx::OSXSAVE.bits();
        }
        if !dynamic.apic_enabled {
            answer.edx &= !Leaf1Edx::APIC.bits();
        }
        answer
    }

    fn extended_features(&self, dynamic: &Dynamic) -> CpuIdResult {
        let mut answer = self.extended[1].answer;
        if !dynamic.in_64_bit_mode {
            answer.edx &= !Extended1Edx::SYSCALL.bits();
        }
        answer
    }

    fn subleaf(
        &self,
        completion: Completion,
        subleaf: u32,
        dynamic: impl FnOnce() -> Dynamic,
    ) -> CpuIdResult {
        let listed = |first: u8, count: u8| {
            let index = usize::try_from(subleaf).ok()?;
            (index < usize::from(count))
                .then(|| self.subleaves.get(usize::from(first) + index).copied())
                .flatten()
        };
        match completion {
            Completion::None | Completion::Features | Completion::ExtendedFeatures => NONE,
            Completion::Subleaves { first, count } => listed(first, count).unwrap_or(NONE),
            Completion::Topology { first, count } => listed(first, count).unwrap_or(CpuIdResult {
                ecx: subleaf & 0xFF,
                edx: self.apic_id,
                ..NONE
            }),
            Completion::Xsave { first, count } => {
                let mut answer = listed(first, count).unwrap_or(NONE);
                match subleaf {
                    0 => answer.ebx = self.components.standard_size(dynamic().xcr0),
                    1 if answer.eax & xsave::COMPACTED.bits() != 0 => {
                        answer.ebx = self.components.compacted_size(dynamic().xcr0);
                    }
                    _ => {}
                }
                answer
            }
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            cr4: self.allowed.cr4().bits(),
            efer: self.allowed.efer().bits(),
            xcr0: self.components.mask(),
            xsave_bytes: self.components.standard_size(self.components.mask()) as usize,
            tsc_aux: self.allowed.has_tsc_aux(),
            arch_capabilities: self.allowed.has_arch_capabilities(),
            spec_ctrl: self.allowed.spec_ctrl(),
            pred_cmd: self.allowed.has_pred_cmd(),
            flush_cmd: self.allowed.has_flush_cmd(),
            xss: self.components.has_xsaves(&self.allowed),
            physical_address_bits: self.extended[8].answer.eax & 0xFF,
        }
    }
}

/// Returns a cache of the host, shared by all cores of the VM if it is of level 3, by none if
/// nearer.
fn own_cache(cache: CpuIdResult, topology: Topology) -> CpuIdResult {
    const KEPT: u32 = (1 << 14) - 1;
    let level = cache.eax >> 5 & 0b111;
    let others_sharing = if level >= 3 { topology.last_core() } else { 0 };
    CpuIdResult {
        eax: cache.eax & KEPT | others_sharing << 14 | topology.last_core() << 26,
        ..cache
    }
}

/// Returns twelve characters in EBX, ECX and EDX.
fn text(characters: &[u8; 12]) -> CpuIdResult {
    let register = |at: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|n| characters[at + n]);
        u32::from_le_bytes([a, b, c, d])
    };
    CpuIdResult {
        eax: 0,
        ebx: register(0),
        ecx: register(4),
        edx: register(8),
    }
}
