//! Which machine to use here: QEMU/KVM where KVM offers nested VMX and tarpit comes up under it, else
//! Bochs.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use arch::cpuid::Leaf1Ecx;
use clap::ValueEnum;
use kvm_ioctls::Kvm;

use crate::testbed::Setup;
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::Guest;
use crate::testbed::progress::Step;
use crate::testbed::provision::{self, Qemu};

/// The environment variable by which `cargo xtask test` tells the tests which machine those run on
/// that run on any: a word of [`Wish`].
pub const TEST_MACHINE: &str = "TARPIT_TEST_MACHINE";

/// The environment variable by which `cargo xtask test` tells the tests what exits cost: a number of
/// ticks.
pub const TEST_EXIT_COST: &str = "TARPIT_TEST_EXIT_COST";

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wish {
    /// Bochs: emulates VMX, measures in instructions, works everywhere
    Bochs,
    /// QEMU: with KVM where it has nested VMX, else QEMU's emulation, in which tarpit says what is missing
    Qemu,
}

/// The machine to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    kind: Kind,
    /// The reason, for the user.
    reason: String,
}

/// Chooses a machine, says which and why, and installs it if it is missing.
///
/// # Errors
/// When its packages are missing and cannot be installed.
pub fn pick(wish: Option<Wish>) -> Result<Kind> {
    let mut choice = choose(wish, &nested_vmx());
    ensure_installed(choice.kind)?;
    if choice.kind == Kind::QemuKvm && wish.is_none() {
        let claim = Claim::new("probe")?;
        if let Err(evidence) = comes_up(claim.name(), Kind::QemuKvm) {
            choice = instead_of_kvm(&evidence);
            ensure_installed(choice.kind)?;
        }
    }
    let Choice { kind, reason } = choice;
    eprintln!("Machine: {kind} ({reason})");
    Ok(kind)
}

/// Returns the machine of the tests that run on any: what [`TEST_MACHINE`] says, or else the best
/// here.
///
/// # Errors
/// As [`pick`], or when the variable holds no [`Wish`].
pub fn for_tests() -> Result<Kind> {
    static PICKED: OnceLock<Result<Kind, String>> = OnceLock::new();
    let find = || {
        let wish = std::env::var(TEST_MACHINE).ok();
        let wish = wish.map(|name| Wish::from_str(&name, false)).transpose();
        let wish = wish.map_err(|error| format!("{TEST_MACHINE}: {error}"))?;
        pick(wish).map_err(|error| format!("{error:#}"))
    };
    PICKED
        .get_or_init(find)
        .clone()
        .map_err(|error| anyhow!(error))
}

/// Returns how many ticks exits cost more in tests: what [`TEST_EXIT_COST`] says, or else nothing.
///
/// # Errors
/// When the variable holds no number.
pub fn exit_cost_for_tests() -> Result<u64> {
    let Ok(ticks) = std::env::var(TEST_EXIT_COST) else {
        return Ok(0);
    };
    ticks
        .parse()
        .with_context(|| format!("{TEST_EXIT_COST} is {ticks:?}"))
}

/// Returns what [`TEST_MACHINE`] has to be for the tests to run on this machine.
pub fn test_machine(kind: Kind) -> &'static str {
    match kind {
        Kind::Bochs => "bochs",
        Kind::QemuKvm | Kind::QemuTcg => "qemu",
    }
}

/// Boots tarpit with a guest of ours on such a machine.
///
/// # Errors
/// When the guest does not get to its end. The error is the evidence: tarpit's own words where it
/// found that it cannot run, or else the last lines of its console.
pub fn comes_up(name: &str, kind: Kind) -> Result<()> {
    /// The longest time that the guest may take. On a machine of today it takes a second or two.
    const PATIENCE: Duration = Duration::from_secs(60);
    const GUEST: &str = "triple_fault";
    let _step = Step::begin(format!("Trying whether tarpit comes up in {kind}"));
    let setup = Setup::new(name)
        .on(kind)
        .kernel(GUEST, &Guest::new(GUEST))?;
    let mut session = setup.boot()?.patience(PATIENCE);
    session.wait_for(&format!("vm {GUEST} ended: triple fault\n"))?;
    Ok(())
}

/// Installs what this machine takes, if it is missing.
///
/// # Errors
/// As [`provision::ensure_packages`] and [`Qemu::ensure`].
pub fn ensure_installed(kind: Kind) -> Result<()> {
    match kind {
        Kind::Bochs => provision::ensure_packages(provision::BOCHS_PACKAGES),
        Kind::QemuKvm | Kind::QemuTcg => Qemu::ensure().map(drop),
    }
}

fn choose(wish: Option<Wish>, nested_vmx: &NestedVmx) -> Choice {
    let (kind, reason) = match (wish, nested_vmx) {
        (Some(Wish::Bochs), _) => (Kind::Bochs, "as asked".to_owned()),
        (None | Some(Wish::Qemu), NestedVmx::Offered) => {
            (Kind::QemuKvm, "KVM offers nested VMX here".to_owned())
        }
        (Some(Wish::Qemu), NestedVmx::Missing(why)) => (
            Kind::QemuTcg,
            format!("as asked, but {why}; QEMU's own emulation has no VMX, and tarpit will say so"),
        ),
        (None, NestedVmx::Missing(why)) => (Kind::Bochs, format!("it emulates VMX, and {why}")),
    };
    Choice { kind, reason }
}

/// Returns where tarpit was tried under KVM and did not come up.
fn instead_of_kvm(evidence: &anyhow::Error) -> Choice {
    let reason = format!(
        "KVM offers nested VMX here, but tarpit did not come up under it; `--machine qemu` insists. \
         What was seen:\n{evidence:#}\n"
    );
    Choice {
        kind: Kind::Bochs,
        reason,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NestedVmx {
    Offered,
    Missing(String),
}

/// Asks KVM which CPU features it can give a guest. `/dev/kvm` alone says nothing, and
/// `/proc/cpuinfo` tells of the host only.
fn nested_vmx() -> NestedVmx {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return NestedVmx::Missing(format!("/dev/kvm cannot be used: {error}")),
    };
    match kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES) {
        Ok(cpuid) if cpuid.as_slice().iter().any(has_vmx) => NestedVmx::Offered,
        Ok(_) => NestedVmx::Missing("KVM offers no nested VMX here".to_owned()),
        Err(error) => NestedVmx::Missing(format!("KVM does not tell its CPU features: {error}")),
    }
}

fn has_vmx(leaf: &kvm_bindings::kvm_cpuid_entry2) -> bool {
    leaf.function == 1 && Leaf1Ecx::from_bits_retain(leaf.ecx).contains(Leaf1Ecx::VMX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> NestedVmx {
        NestedVmx::Missing("KVM offers no nested VMX here".into())
    }

    #[test]
    fn kvm_is_used_only_where_it_offers_nested_vmx() {
        assert_eq!(choose(None, &NestedVmx::Offered).kind, Kind::QemuKvm);
        assert_eq!(choose(None, &missing()).kind, Kind::Bochs);
    }

    #[test]
    fn the_users_wish_comes_first() {
        assert_eq!(
            choose(Some(Wish::Bochs), &NestedVmx::Offered).kind,
            Kind::Bochs
        );
        assert_eq!(choose(Some(Wish::Qemu), &missing()).kind, Kind::QemuTcg);
    }

    #[test]
    fn what_is_handed_down_to_the_tests_is_what_was_chosen() {
        for (kind, nested) in [
            (Kind::Bochs, &NestedVmx::Offered),
            (Kind::QemuKvm, &NestedVmx::Offered),
            (Kind::QemuTcg, &missing()),
        ] {
            let wish = Wish::from_str(test_machine(kind), false).expect("a wish");
            assert_eq!(choose(Some(wish), nested).kind, kind);
        }
    }

    #[test]
    fn the_reason_says_what_kvm_lacks() {
        assert!(choose(None, &missing()).reason.contains("no nested VMX"));
    }

    #[test]
    fn where_tarpit_does_not_come_up_under_kvm_the_evidence_is_told() {
        let fatal = anyhow!("tarpit: fatal: no VMX").context("waiting for a guest");
        let choice = instead_of_kvm(&fatal);
        assert_eq!(choice.kind, Kind::Bochs);
        assert!(
            choice.reason.contains("tarpit: fatal: no VMX"),
            "{choice:?}"
        );
    }

    #[test]
    fn vmx_is_bit_5_of_leaf_1() {
        let leaf = |function, ecx| kvm_bindings::kvm_cpuid_entry2 {
            function,
            ecx,
            ..Default::default()
        };
        assert!(has_vmx(&leaf(1, 0x20)));
        assert!(!has_vmx(&leaf(1, !0x20)));
        assert!(!has_vmx(&leaf(0x8000_0001, 0x20)));
    }
}
