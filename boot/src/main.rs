//! The bootable image. Built for `x86_64-unknown-none` by `cargo xtask build`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare_metal;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("tarpit runs on bare metal: build and boot it with `cargo xtask run`");
    std::process::exit(1);
}
