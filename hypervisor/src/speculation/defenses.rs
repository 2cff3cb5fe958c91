//! What is done about the issues that a processor has.

use core::fmt;

use arch::cpuid::{Leaf7Edx, Leaf7Sub2Edx};
use arch::msr::{ArchCapabilities as Says, McuOptCtrl, SpecCtrl};
use vmx::entry::ReturnStack;

use super::{Issue, Processor};
use crate::machine::speculation::Remedies;

/// The defenses of tenants against the issues of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Defenses {
    processor: Processor,
    remedies: Remedies,
    one_thread_a_core: bool,
    /// IA32_MCU_OPT_CTRL, as found.
    mcu_opt_ctrl: McuOptCtrl,
}

/// The status of an issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// An issue that the processor does not have.
    NotAffected,
    /// An issue for which these measures keep tenants apart.
    Mitigated(&'static str),
    /// An issue that leaves something open, for this reason.
    Vulnerable(&'static str),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAffected => f.write_str("not affected"),
            Self::Mitigated(how) => write!(f, "mitigated: {how}"),
            Self::Vulnerable(why) => write!(f, "vulnerable: {why}"),
        }
    }
}

/// The reason where nothing can be done for lack of microcode.
const NO_MICROCODE: &str = "no microcode";

impl Defenses {
    /// Decides what to do on `processor`. `one_thread_a_core` says that of the threads of a core at
    /// most one is used; `mcu_opt_ctrl` is IA32_MCU_OPT_CTRL, empty if it does not exist.
    #[must_use]
    pub(crate) fn new(
        processor: Processor,
        one_thread_a_core: bool,
        mcu_opt_ctrl: McuOptCtrl,
    ) -> Self {
        let has = |feature| processor.leaf7_edx.contains(feature);
        let needs = |issues: &[Issue]| issues.iter().any(|issue| processor.has(*issue));
        let is_enhanced = processor.says(Says::IBRS_ALL);
        let mut spec_ctrl = SpecCtrl::IBRS;
        if needs(&[Issue::BranchHistoryInjection])
            && processor.leaf7_2_edx.contains(Leaf7Sub2Edx::BHI_CTRL)
        {
            spec_ctrl |= SpecCtrl::BHI_DIS_S;
        }
        if !has(Leaf7Edx::IBRS_IBPB) {
            spec_ctrl = SpecCtrl::empty();
        }
        // Without IBRS, what a guest has taught the CPU leads the host astray anyway.
        let return_stack = if spec_ctrl.is_empty() {
            ReturnStack::Keep
        } else if !is_enhanced {
            ReturnStack::Fill
        } else if needs(&[Issue::PostBarrierReturnStack]) {
            ReturnStack::CallFirst
        } else {
            ReturnStack::Keep
        };
        let remedies = Remedies {
            spec_ctrl,
            spec_ctrl_at_exits: !spec_ctrl.is_empty() && !is_enhanced,
            return_stack,
            no_execution_in_large_pages: needs(&[Issue::ItlbMultihit]),
            disable_tsx: processor.says(Says::TSX_CTRL),
            branch_barrier: has(Leaf7Edx::IBRS_IBPB),
            clear_buffers: has(Leaf7Edx::MD_CLEAR)
                && needs(&[
                    Issue::MicroarchitecturalDataSampling,
                    Issue::TsxAsynchronousAbort,
                    Issue::MmioStaleData,
                    Issue::RegisterFileDataSampling,
                ]),
            flush_l1d: has(Leaf7Edx::L1D_FLUSH)
                && needs(&[Issue::L1TerminalFault])
                && !processor.says(Says::SKIP_L1DFL_VMENTRY),
        };
        Self {
            processor,
            remedies,
            one_thread_a_core,
            mcu_opt_ctrl,
        }
    }

    /// Returns what its CPUs are made to do.
    #[must_use]
    pub(crate) const fn remedies(&self) -> Remedies {
        self.remedies
    }

    /// Returns what there is to say of `issue`.
    #[must_use]
    pub(crate) fn status(&self, issue: Issue) -> Status {
        if !self.processor.has(issue) {
            return Status::NotAffected;
        }
        let says = |what| self.processor.says(what);
        let remedies = self.remedies;
        match issue {
            Issue::SpectreV1 => Status::Vulnerable("bounds checks do not hold speculation back"),
            Issue::SpectreV2 if !remedies.branch_barrier => Status::Vulnerable(NO_MICROCODE),
            Issue::SpectreV2 if remedies.spec_ctrl_at_exits => {
                Status::Mitigated("IBRS and a filled return stack at exits; IBPB at a change of VM")
            }
            Issue::SpectreV2 => {
                Status::Mitigated("enhanced IBRS in the host; IBPB at a change of VM")
            }
            Issue::Meltdown => Status::Mitigated("guests share no page tables with the host"),
            Issue::SpeculativeStoreBypass => {
                if self.processor.leaf7_edx.contains(Leaf7Edx::SSBD) {
                    Status::Mitigated("guests can switch it off for their processes")
                } else {
                    Status::Vulnerable(NO_MICROCODE)
                }
            }
            Issue::L1TerminalFault => {
                let flushed = match (remedies.flush_l1d, says(Says::SKIP_L1DFL_VMENTRY)) {
                    (true, _) => "L1D flush at a change of VM",
                    (false, true) => "L1D flush by the hypervisor below",
                    (false, false) => return Status::Vulnerable(NO_MICROCODE),
                };
                self.if_one_thread_a_core(flushed)
            }
            Issue::MicroarchitecturalDataSampling => self.buffers_cleared(),
            Issue::TsxAsynchronousAbort if remedies.disable_tsx => {
                Status::Mitigated("TSX switched off")
            }
            Issue::TsxAsynchronousAbort => self.buffers_cleared(),
            Issue::ItlbMultihit => Status::Mitigated("guests do not execute in large pages"),
            Issue::SpecialRegisterBufferDataSampling => {
                if remedies.disable_tsx && says(Says::MDS_NO) {
                    return Status::Mitigated("TSX switched off");
                }
                let mended = self.processor.leaf7_edx.contains(Leaf7Edx::SRBDS_CTRL)
                    && !self.mcu_opt_ctrl.contains(McuOptCtrl::RNGDS_MITG_DIS);
                by_microcode(mended)
            }
            Issue::MmioStaleData => Status::Mitigated("guests reach no device of the machine"),
            Issue::Retbleed if remedies.spec_ctrl.is_empty() => Status::Vulnerable(NO_MICROCODE),
            Issue::Retbleed if remedies.spec_ctrl_at_exits => Status::Mitigated("IBRS at exits"),
            Issue::Retbleed => Status::Mitigated("enhanced IBRS in the host"),
            Issue::RegisterFileDataSampling => {
                if says(Says::RFDS_CLEAR) {
                    self.buffers_cleared()
                } else {
                    Status::Vulnerable(NO_MICROCODE)
                }
            }
            Issue::GatherDataSampling => {
                let mended =
                    says(Says::GDS_CTRL) && !self.mcu_opt_ctrl.contains(McuOptCtrl::GDS_MITG_DIS);
                by_microcode(mended)
            }
            Issue::BranchHistoryInjection => {
                if remedies.spec_ctrl.contains(SpecCtrl::BHI_DIS_S) {
                    Status::Mitigated("BHI_DIS_S in the host")
                } else {
                    Status::Vulnerable("the processor has no BHI_DIS_S")
                }
            }
            Issue::PostBarrierReturnStack => match remedies.return_stack {
                ReturnStack::CallFirst => Status::Mitigated("a call and LFENCE at exits"),
                ReturnStack::Keep | ReturnStack::Fill => Status::Vulnerable(NO_MICROCODE),
            },
            Issue::IndirectTargetSelection => {
                if self.processor.keeps_targets_of_guests_apart() && remedies.branch_barrier {
                    Status::Mitigated("guests do not reach the host; IBPB at a change of VM")
                } else {
                    Status::Vulnerable("indirect branches of the host are not aligned")
                }
            }
        }
    }

    fn buffers_cleared(&self) -> Status {
        if self.remedies.clear_buffers {
            self.if_one_thread_a_core("VERW at a change of VM")
        } else {
            Status::Vulnerable(NO_MICROCODE)
        }
    }

    /// Returns `mitigated` if no other tenant uses what a core's threads share at the same time.
    const fn if_one_thread_a_core(&self, mitigated: &'static str) -> Status {
        if self.one_thread_a_core {
            Status::Mitigated(mitigated)
        } else {
            Status::Vulnerable("the threads of a core run different VMs")
        }
    }
}

const fn by_microcode(mended: bool) -> Status {
    if mended {
        Status::Mitigated("by microcode")
    } else {
        Status::Vulnerable(NO_MICROCODE)
    }
}
