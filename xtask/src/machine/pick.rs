//! Which machine to use here: QEMU/KVM where KVM offers nested VMX, else Bochs.

use anyhow::Result;
use clap::ValueEnum;
use kvm_ioctls::Kvm;

use super::Kind;
use crate::setup;

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
pub struct Choice {
    /// The machine.
    pub kind: Kind,
    /// Why, for the user.
    pub reason: String,
}

/// Chooses a machine, says which and why, and installs it if it is missing.
///
/// # Errors
/// When its packages are missing and cannot be installed.
pub fn pick(wish: Option<Wish>) -> Result<Kind> {
    let Choice { kind, reason } = choose(wish, &nested_vmx());
    eprintln!("Machine: {kind} ({reason})");
    ensure_installed(kind)?;
    Ok(kind)
}

/// The machine that a user without wishes gets, installed or not.
pub fn best() -> Choice {
    choose(None, &nested_vmx())
}

/// Installs what this machine takes, if it is missing.
///
/// # Errors
/// As [`setup::ensure_packages`].
pub fn ensure_installed(kind: Kind) -> Result<()> {
    setup::ensure_packages(match kind {
        Kind::Bochs => setup::BOCHS_PACKAGES,
        Kind::QemuKvm | Kind::QemuTcg => setup::QEMU_PACKAGES,
    })
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

/// CPUID.1:ECX bit 5 (SDM vol. 3, 25.6).
fn has_vmx(leaf: &kvm_bindings::kvm_cpuid_entry2) -> bool {
    const VMX: u32 = 1 << 5;
    leaf.function == 1 && leaf.ecx & VMX != 0
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
    fn the_reason_says_what_kvm_lacks() {
        assert!(choose(None, &missing()).reason.contains("no nested VMX"));
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
