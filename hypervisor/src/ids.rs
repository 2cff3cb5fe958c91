//! The numbers by which VMs and VCPUs are known.
#![forbid(unsafe_code)]

/// The most VCPUs that a VM can have.
pub(crate) const MAX_VCPUS: usize = 8;

/// The number of a VM: its place in the VM table, for as long as the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmId(pub usize);

/// A VCPU, by its VM and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VcpuId {
    /// Its VM.
    pub vm: VmId,
    /// Its number in the VM, below [`MAX_VCPUS`].
    pub index: u32,
}
