//! Build, image, run, test.
fn main() {}
