use std::boxed::Box;
use std::string::String;

use super::*;
use crate::machine::boot_info::{BootInfo, Protocol};

/// A table with header and right checksum, at a fixed address of the test's memory.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> &'static [u8] {
    let mut bytes = signature.to_vec();
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"TARPITTESTTABL\x01\0\0\0TEST\x01\0\0\0");
    bytes.extend(body);
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[9] = sum.wrapping_neg();
    Box::leak(bytes.into_boxed_slice())
}

fn boot_info(tables: &[&'static [u8]]) -> BootInfo {
    let entries: Vec<u8> = tables
        .iter()
        .flat_map(|table| (table.as_ptr() as u64).to_le_bytes())
        .collect();
    let xsdt = table(b"XSDT", 1, &entries);
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"TARPIT");
    rsdp[15] = 2;
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&(xsdt.as_ptr() as u64).to_le_bytes());
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b));
    rsdp[8] = sum(&rsdp[..20]).wrapping_neg();
    rsdp[32] = sum(&rsdp).wrapping_neg();
    BootInfo {
        protocol: Protocol::Multiboot2,
        loader: String::new(),
        command_line: String::new(),
        memory_map: Vec::new(),
        modules: Vec::new(),
        rsdp: Some(rsdp),
    }
}

fn madt() -> &'static [u8] {
    let mut body = 0xfee0_0000u32.to_le_bytes().to_vec();
    body.extend(1u32.to_le_bytes());
    body.extend([0, 8, 0, 0, 1, 0, 0, 0]); // local APIC 0, enabled
    body.extend([0, 8, 1, 2, 1, 0, 0, 0]); // local APIC 2, enabled
    body.extend([0, 8, 2, 4, 0, 0, 0, 0]); // local APIC 4, disabled
    body.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]); // I/O APIC
    body.extend([9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]); // x2APIC 2 again
    body.extend([9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]); // x2APIC 256
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]); // ISA interrupt 0 is GSI 2
    body.extend([2, 10, 0, 9, 9, 0, 0, 0, 0xf, 0]); // ISA interrupt 9 is active low, of a level
    body.extend([1, 12, 1, 0, 0, 0x10, 0xc0, 0xfe, 24, 0, 0, 0]); // I/O APIC from GSI 24 on
    table(b"APIC", 4, &body)
}

/// A FADT as of ACPI 3 with these fields set (offsets in the table).
fn fadt(dsdt: &'static [u8], extra: &[(usize, &[u8])]) -> &'static [u8] {
    let mut body = [0; 276 - 36];
    let mut set = |offset: usize, value: &[u8]| {
        body[offset - 36..offset - 36 + value.len()].copy_from_slice(value);
    };
    set(140, &(dsdt.as_ptr() as u64).to_le_bytes()); // X_DSDT
    set(64, &0xb004u32.to_le_bytes()); // PM1a_CNT_BLK
    set(76, &0xb008u32.to_le_bytes()); // PM_TMR_BLK
    set(89, &[2]); // PM1_CNT_LEN
    set(91, &[4]); // PM_TMR_LEN
    for (offset, value) in extra {
        set(*offset, value);
    }
    table(b"FACP", 4, &body)
}

fn discover(tables: &[&'static [u8]]) -> Acpi {
    // SAFETY: the tables are in the test's memory, at the addresses that they give.
    unsafe { Acpi::discover(&boot_info(tables)) }.unwrap()
}

#[test]
fn enabled_processors_are_listed_once() {
    let acpi = discover(&[madt()]);
    let ids: Vec<_> = acpi.cpus.iter().map(|cpu| cpu.apic_id).collect();
    assert_eq!(ids, [0, 2, 256]);
    assert_eq!(acpi.io_apics[0].address, 0xfec0_0000);
}

#[test]
fn an_isa_interrupt_goes_the_usual_way_or_another_one() {
    let acpi = discover(&[madt()]);
    let way = |irq| {
        let HostInterrupt { gsi, is_active_low } = acpi.isa_interrupt(irq);
        (gsi, is_active_low)
    };
    assert_eq!(
        [way(0), way(4), way(9)],
        [(2, false), (4, false), (9, true)]
    );
    let input = |gsi| {
        acpi.io_apic_of(gsi)
            .map(|(io_apic, input)| (io_apic.address, input))
    };
    assert_eq!(input(4), Some((0xfec0_0000, 4)));
    assert_eq!(input(25), Some((0xfec0_1000, 1)));
    assert_eq!(Acpi::default().io_apic_of(4), None);
}

#[test]
fn timers_and_power_come_from_the_fadt_and_dsdt() {
    let dsdt = table(b"DSDT", 1, b"\x08_S5_\x12\x06\x04\x0a\x05\x0a\x05");
    let flags = (1u32 << 8 | 1 << 10).to_le_bytes();
    let fadt = fadt(
        dsdt,
        &[
            (48, &0xb2u32.to_le_bytes()),
            (52, &[0xf1]),
            (112, &flags),
            (116, &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0]),
            (128, &[6]),
        ],
    );
    let mut hpet = 0x8086_a201u32.to_le_bytes().to_vec();
    hpet.extend([0, 64, 0, 0]);
    hpet.extend(0xfed0_0000u64.to_le_bytes());
    hpet.extend([0, 0x80, 0, 0]);
    let acpi = discover(&[fadt, table(b"HPET", 1, &hpet)]);
    assert_eq!(acpi.hpet, Some(0xfed0_0000));
    let pm_timer = PmTimer {
        port: 0xb008,
        bits: 32,
    };
    assert_eq!(acpi.pm_timer, Some(pm_timer));
    assert_eq!(
        acpi.soft_off,
        Some(SoftOff {
            pm1a_control: 0xb004,
            pm1b_control: None,
            sleep_type_a: 5,
            sleep_type_b: 5,
            acpi_enable: Some(AcpiEnable {
                port: 0xb2,
                value: 0xf1
            }),
        })
    );
}

#[test]
fn entries_of_no_length_or_beyond_the_table_end_the_list() {
    for last in [
        &[0, 0, 9, 9, 9, 9, 9, 9][..],
        &[0, 8, 7, 7, 1, 0, 0],
        &[1],
        &[9, 255, 0, 0],
    ] {
        let mut body = [0; 8].to_vec();
        body.extend([0, 8, 0, 3, 1, 0, 0, 0]);
        body.extend(last);
        let acpi = discover(&[table(b"APIC", 4, &body)]);
        assert_eq!(acpi.cpus, [HostCpu { apic_id: 3 }], "{last:?}");
    }
    // Too short for the address and the flags that come before entries.
    assert_eq!(discover(&[table(b"APIC", 4, &[0; 4])]), Acpi::default());
}

#[test]
fn an_entry_that_is_too_short_for_its_kind_is_left_out() {
    let mut body = [0; 8].to_vec();
    body.extend([0, 4, 0, 3]);
    body.extend([1, 8, 0, 0, 0, 0, 0xc0, 0xfe]);
    body.extend([0, 8, 0, 5, 1, 0, 0, 0]);
    let acpi = discover(&[table(b"APIC", 4, &body)]);
    assert_eq!(acpi.cpus, [HostCpu { apic_id: 5 }]);
    assert_eq!(acpi.io_apics, []);
}

#[test]
fn an_hpet_that_is_not_in_memory_is_none() {
    let mut body = 0x8086_a201u32.to_le_bytes().to_vec();
    body.extend([1, 64, 0, 0]);
    body.extend(0xfed0_0000u64.to_le_bytes());
    assert_eq!(discover(&[table(b"HPET", 1, &body)]).hpet, None);
}

/// A SPCR of revision 2, whose last field is the PCI segment, with a speed by its number.
fn spcr(kind: u8, port: u16, baud: u8) -> Vec<u8> {
    let mut body = [0; 80 - 36];
    body[0] = kind;
    body[4..8].copy_from_slice(&[1, 8, 0, 0]);
    body[8..10].copy_from_slice(&port.to_le_bytes());
    body[58 - 36] = baud;
    body.to_vec()
}

#[test]
fn the_console_of_the_firmware_has_the_speed_of_its_table_whatever_is_behind_it() {
    let line = |body: &[u8]| discover(&[table(b"SPCR", 2, body)]).console;
    assert_eq!(line(&spcr(0, 0x2f8, 3)), ConsoleLine::new(0x2f8, 9600));
    assert_eq!(
        line(&spcr(0x12, 0x3f8, 7)),
        ConsoleLine::new(0x3f8, 115_200)
    );
    assert_eq!(line(&spcr(3, 0x3f8, 7)), None, "an ARM's");
    let mut exact = spcr(0, 0x3f8, 3);
    exact.extend(38_400u32.to_le_bytes());
    assert_eq!(line(&exact), ConsoleLine::new(0x3f8, 38_400));
}

#[test]
fn a_dsdt_shorter_than_its_header_has_no_code() {
    let mut dsdt = table(b"DSDT", 1, b"").to_vec();
    dsdt[4] = 20;
    let sum = dsdt[..20]
        .iter()
        .fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    dsdt[9] = dsdt[9].wrapping_sub(sum);
    let acpi = discover(&[fadt(Box::leak(dsdt.into_boxed_slice()), &[])]);
    assert_eq!(acpi.soft_off, None);
}

#[test]
fn what_the_tables_lack_is_missing() {
    let dsdt = table(b"DSDT", 1, b"");
    let acpi = discover(&[fadt(dsdt, &[(91, &[0])])]);
    assert_eq!(acpi, Acpi::default());
}

#[test]
fn a_wrong_checksum_of_the_rsdp_is_an_error() {
    let mut info = boot_info(&[]);
    if let Some(rsdp) = &mut info.rsdp {
        rsdp[9] ^= 1;
    }
    // SAFETY: the tables are in the test's memory, at the addresses that they give.
    assert!(unsafe { Acpi::discover(&info) }.is_err());
}
