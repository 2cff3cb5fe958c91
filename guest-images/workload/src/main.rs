//! The Linux workload.
fn main() {}
