//! Rules of the code that neither the compiler nor clippy knows.

mod doc_comments;
mod documents;
mod imports;
mod modules;
mod spelling;
mod unsafe_code;

/// The root files of the crates to which the rules apply.
const CRATES: [&str; 9] = [
    "arch/src/lib.rs",
    "boot/src/main.rs",
    "devices/src/lib.rs",
    "guest-images/kernels/src/lib.rs",
    "guest-images/workload/src/lib.rs",
    "hypervisor/src/lib.rs",
    "tests/src/lib.rs",
    "vmx/src/lib.rs",
    "xtask/src/lib.rs",
];
