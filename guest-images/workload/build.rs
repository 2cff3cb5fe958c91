//! Links the program for Linux.
//!
//! It is compiled for `x86_64-unknown-none` because that target brings `core` and the memory
//! functions without a C library. That target links position-independent executables, which would
//! have to relocate themselves; a fixed address needs no start-up code.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=--no-pie");
        println!("cargo:rustc-link-arg-bins=--image-base=0x400000");
        println!("cargo:rustc-link-arg-bins=--strip-all");
    }
}
