//! Guests that start in firmware: SeaBIOS as Debian builds it finds the machine that it knows, and boots
//! what is on a guest's disk.

use anyhow::{Result, ensure};
use tests::{Case, file, tarpit};
use xtask::testbed::machine::End;
use xtask::testbed::module::{Guest, Module};

/// The length of a sector.
const SECTOR: usize = 512;

/// A boot sector for address 7C00H. It reads sector 1 to 8000H, shows the text there, and waits for a
/// key: `r` resets the machine, and any other switches it off.
const BOOT_SECTOR: &[&[u8]] = &[
    &[0x31, 0xc0],                // xor ax, ax
    &[0x8e, 0xd8],                // mov ds, ax
    &[0x8e, 0xd0],                // mov ss, ax
    &[0xbc, 0x00, 0x7c],          // mov sp, 7c00h
    &[0xfb],                      // sti
    &[0xbe, 0x3e, 0x7c],          // mov si, packet
    &[0xb4, 0x42],                // mov ah, 42h
    &[0xcd, 0x13],                // int 13h: extended read; dl is the disk booted from
    &[0x72, 0x20],                // jc end
    &[0xbe, 0x00, 0x80],          // mov si, 8000h
    &[0xac],                      // next: lodsb
    &[0x84, 0xc0],                // test al, al
    &[0x74, 0x09],                // jz key
    &[0xb4, 0x0e],                // mov ah, 0eh
    &[0xbb, 0x07, 0x00],          // mov bx, 7
    &[0xcd, 0x10],                // int 10h: teletype output
    &[0xeb, 0xf2],                // jmp next
    &[0x30, 0xe4],                // key: xor ah, ah
    &[0xcd, 0x16],                // int 16h: wait for a key
    &[0x3c, b'r'],                // cmp al, 'r'
    &[0x74, 0x0a],                // je reset
    &[0xba, 0x04, 0x06],          // mov dx, 604h
    &[0xb8, 0x00, 0x34],          // mov ax, 3400h
    &[0xef],                      // out dx, ax: soft off
    &[0xf4],                      // end: hlt
    &[0xeb, 0xfd],                // jmp end
    &[0xba, 0xf9, 0x0c],          // reset: mov dx, 0cf9h
    &[0xb0, 0x06],                // mov al, 6
    &[0xee],                      // out dx, al
    &[0xeb, 0xf5],                // jmp end
    &[0x10, 0x00, 0x01, 0x00],    // packet: one sector
    &[0x00, 0x80, 0x00, 0x00],    // to 0:8000h
    &[0x01, 0, 0, 0, 0, 0, 0, 0], // from sector 1
];

/// The text in sector 1.
const TEXT: &str = "sector 1, by INT 13h and INT 10h";

/// A disk that can be booted from.
fn disk() -> Vec<u8> {
    let mut disk = BOOT_SECTOR.concat();
    disk.resize(SECTOR - 2, 0);
    disk.extend([0x55, 0xaa]);
    disk.extend(TEXT.bytes().chain(*b"\r\n\0"));
    // SeaBIOS reads by cylinders of 16 heads and 63 sectors: a disk is to have one.
    disk.resize(1 << 20, 0);
    disk
}

/// By its drivers for PCI and virtio, with its console on COM1, where keys come from, too. All
/// processors start, and the guest's reset brings it back to where it began.
pub(crate) fn boots_a_disk_and_is_there_again_after_a_reset(case: &Case) -> Result<()> {
    let guest = Guest {
        memory_mib: 64,
        vcpus: 2,
        rng: true,
        ..Guest::new("web")
    };
    let mut session = tarpit(case)?
        .options("on-end=poweroff")
        .seabios(&guest)?
        .module(Module::disk(&file(case, "disk", &disk())?, "web", ""))
        .boot()?;
    let mut said = session.wait_for(TEXT)?;
    session.send_line("attach web")?;
    session.wait_for("attached to web")?;
    session.send(b"r")?;
    said += &session.wait_for(TEXT)?;
    let versions = said.matches("SeaBIOS (version").count();
    ensure!(versions == 2, "started {versions} times:\n{said}");
    // The VM has ended in between.
    session.send_line("attach web")?;
    session.wait_for("attached to web")?;
    session.send(b"q")?;
    session.wait_for("vm web ended: ")?;
    let end = session.wait_for_end()?;
    ensure!(matches!(end, End::PoweredOff { .. }), "{end}");
    Ok(())
}
