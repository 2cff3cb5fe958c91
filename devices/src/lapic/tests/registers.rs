//! What registers hold, and which accesses are legal.

use super::*;

const XAPIC_RESET: [(Register, u32); 22] = [
    (Register::ID, 0x0500_0000),
    (Register::VERSION, 0x0105_0014),
    (Register::TPR, 0),
    (Register::APR, 0),
    (Register::PPR, 0),
    (Register::EOI, 0),
    (Register::RRD, 0),
    (Register::LDR, 0),
    (Register::DFR, 0xffff_ffff),
    (Register::SVR, 0xff),
    (Register::ESR, 0),
    (Register::ICR_LOW, 0),
    (Register::ICR_HIGH, 0),
    (Register::LVT_TIMER, LVT_MASKED),
    (Register::LVT_THERMAL, LVT_MASKED),
    (Register::LVT_PERFORMANCE, LVT_MASKED),
    (Register::LVT_LINT0, LVT_MASKED),
    (Register::LVT_LINT1, LVT_MASKED),
    (Register::LVT_ERROR, LVT_MASKED),
    (Register::INITIAL_COUNT, 0),
    (Register::CURRENT_COUNT, 0),
    (Register::DIVIDE, 0),
];

#[test]
fn power_up_state_is_the_manuals() {
    let mut cpu = Cpu::powered_up(5);
    for (register, value) in XAPIC_RESET {
        assert_eq!(cpu.read(register), value, "{register:x?}");
    }
    for part in (0x100..0x280).step_by(16) {
        assert_eq!(cpu.apic.mmio_read(cpu.now, part, 4), 0, "{part:#x}");
    }
    assert_eq!(cpu.esr(), 0, "no access so far was illegal");
}

#[test]
fn init_resets_everything_but_mode_and_id() {
    let mut cpu = Cpu::xapic(5);
    for offset in (0..0x1000).step_by(16) {
        cpu.apic
            .mmio_write(cpu.now, offset, 4, 0x0007_31f3, &mut cpu.bus);
    }
    cpu.interrupt(0x80, true);
    cpu.apic.init_reset();
    for (register, value) in XAPIC_RESET {
        assert_eq!(cpu.read(register), value, "{register:x?}");
    }
    assert_eq!(cpu.apic.highest_irr(), None);
    assert_eq!(cpu.apic.next_deadline(), None);

    let mut cpu = Cpu::x2apic(0x123);
    cpu.apic.init_reset();
    assert_eq!(cpu.apic.mode(), Mode::X2Apic);
    assert_eq!(cpu.rdmsr(0x802), Ok(0x123));
    assert_eq!(cpu.rdmsr(0x80d), Ok(0x0012_0008));
    assert_eq!(cpu.rdmsr(0x80f), Ok(0xff));
    cpu.apic.power_up();
    assert_eq!(cpu.apic.mode(), Mode::XApic);
    assert_eq!(cpu.read(Register::ID), 0x2300_0000);
}

#[test]
fn xapic_registers_keep_only_their_defined_bits() {
    let mut cpu = Cpu::xapic(5);
    for (register, kept) in [
        (Register::ID, 0x0500_0000),
        (Register::VERSION, 0x0105_0014),
        (Register::TPR, 0xff),
        (Register::LDR, 0xff00_0000),
        (Register::DFR, 0xffff_ffff),
        (Register::SVR, 0x13ff),
        (Register::ICR_HIGH, 0xff00_0000),
        (Register::LVT_THERMAL, 0x0001_07ff),
        (Register::LVT_PERFORMANCE, 0x0001_07ff),
        (Register::LVT_LINT0, 0x0001_a7ff),
        (Register::LVT_LINT1, 0x0001_a7ff),
        (Register::LVT_ERROR, 0x0001_00ff),
        (Register::LVT_TIMER, 0x0007_00ff),
        (Register::DIVIDE, 0xb),
    ] {
        cpu.write(register, u32::MAX);
        assert_eq!(cpu.read(register), kept, "{register:x?}");
    }
    cpu.write(Register::DFR, 0);
    assert_eq!(cpu.read(Register::DFR), 0x0fff_ffff);
    // An ExtINT from here is reserved and sent to nobody.
    cpu.write(Register::ICR_LOW, u32::MAX);
    assert_eq!(cpu.read(Register::ICR_LOW), 0x000c_cfff);
    assert!(cpu.bus.messages.is_empty());
}

#[test]
fn unaligned_and_odd_sized_accesses_do_no_harm() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LDR, 0x1200_0000);
    let ldr = offset(Register::LDR);
    assert_eq!(cpu.apic.mmio_read(cpu.now, ldr + 3, 1), 0x12);
    assert_eq!(cpu.apic.mmio_read(cpu.now, ldr + 2, 2), 0x1200);
    assert_eq!(cpu.apic.mmio_read(cpu.now, ldr, 8), 0x1200_0000);
    assert_eq!(cpu.apic.mmio_read(cpu.now, ldr + 4, 4), 0);
    assert_eq!(cpu.apic.mmio_read(cpu.now, ldr + 8, 4), 0);
    for (skew, size) in [(0, 1), (0, 2), (0, 8), (1, 4), (4, 4), (8, 4), (12, 4)] {
        cpu.apic
            .mmio_write(cpu.now, ldr + skew, size, u64::MAX, &mut cpu.bus);
    }
    assert_eq!(cpu.read(Register::LDR), 0x1200_0000);
    for size in 0..=255 {
        let _ = cpu.apic.mmio_read(cpu.now, u16::MAX, size);
    }
}

#[test]
fn reserved_register_addresses_are_errors() {
    let mut cpu = Cpu::xapic(0);
    for offset in [
        0x000, 0x010, 0x040, 0x070, 0x290, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0,
    ] {
        assert_eq!(cpu.apic.mmio_read(cpu.now, offset, 4), 0);
        assert_eq!(cpu.esr(), 0x80, "read of {offset:#x}");
        cpu.apic.mmio_write(cpu.now, offset, 4, 0, &mut cpu.bus);
        assert_eq!(cpu.esr(), 0x80, "write of {offset:#x}");
        assert_eq!(cpu.esr(), 0);
    }
}

#[test]
fn error_status_shows_what_happened_before_the_last_write() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_ERROR, 0xe0);
    cpu.interrupt(3, false);
    assert_eq!(cpu.read(Register::ESR), 0, "not latched yet");
    assert_eq!(cpu.apic.pending(), Some(Pending::Vector(0xe0)));
    assert_eq!(cpu.handle(), Some(0xe0));
    let _ = cpu.apic.mmio_read(cpu.now, 0x3f0, 4);
    assert_eq!(
        cpu.handle(),
        None,
        "not armed until the register is written"
    );
    assert_eq!(cpu.esr(), 0x40 | 0x80);
    assert_eq!(cpu.read(Register::ESR), 0xc0, "stays until the next write");
    let _ = cpu.apic.mmio_read(cpu.now, 0x3f0, 4);
    assert_eq!(cpu.handle(), Some(0xe0), "armed again");
    assert_eq!(cpu.esr(), 0x80);
    assert_eq!(cpu.esr(), 0);
}

#[test]
fn errors_are_collected_while_their_interrupt_is_masked() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(3, false);
    assert_eq!(cpu.apic.pending(), None);
    assert_eq!(cpu.esr(), 0x40);
}

#[test]
fn an_error_vector_that_is_illegal_itself_ends_there() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_ERROR, 0x05);
    let _ = cpu.apic.mmio_read(cpu.now, 0x3f0, 4);
    assert_eq!(cpu.apic.pending(), None);
    assert_eq!(cpu.esr(), 0xc0);
}

#[test]
fn disabling_by_software_masks_the_table_and_stops_vectors() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_ERROR, 0xe0);
    cpu.write(Register::LVT_LINT1, 0x400);
    cpu.interrupt(0x50, false);
    cpu.write(Register::SVR, 0xff);
    assert_eq!(cpu.read(Register::LVT_ERROR), 0xe0 | LVT_MASKED);
    assert_eq!(cpu.read(Register::LVT_LINT1), 0x400 | LVT_MASKED);
    cpu.write(Register::LVT_ERROR, 0xe1);
    assert_eq!(cpu.read(Register::LVT_ERROR), 0xe1 | LVT_MASKED, "forced");
    cpu.interrupt(0x60, false);
    assert_eq!(cpu.handle(), Some(0x50), "what was accepted stays");
    assert_eq!(cpu.handle(), None);
    cpu.apic
        .deliver(&message(DeliveryMode::Nmi, 0, Trigger::Edge));
    assert!(cpu.apic.take_nmi());
    cpu.write(Register::SVR, 0x1ff);
    assert_eq!(cpu.read(Register::LVT_ERROR), 0xe1 | LVT_MASKED, "stays");
    cpu.write(Register::LVT_ERROR, 0xe1);
    assert_eq!(cpu.read(Register::LVT_ERROR), 0xe1);
}

/// The accesses that an MSR of x2APIC mode allows (SDM vol. 3A, table 11-6).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    None,
    ReadOnly,
    WriteOnly { reserved: u64 },
    ReadWrite { reserved: u64 },
}

fn x2apic_access(msr: u32) -> Access {
    const HIGH: u64 = 0xffff_ffff << 32;
    match msr {
        0x802 | 0x803 | 0x80a | 0x80d | 0x810..=0x827 | 0x839 => Access::ReadOnly,
        0x808 => Access::ReadWrite {
            reserved: HIGH | 0xffff_ff00,
        },
        0x80b => Access::WriteOnly { reserved: u64::MAX },
        0x80f => Access::ReadWrite {
            reserved: HIGH | 0xffff_ec00,
        },
        0x828 => Access::ReadWrite { reserved: u64::MAX },
        0x830 => Access::ReadWrite {
            reserved: 0xfff3_2000,
        },
        0x832 => Access::ReadWrite {
            reserved: HIGH | 0xfff8_ef00,
        },
        0x833 | 0x834 => Access::ReadWrite {
            reserved: HIGH | 0xfffe_e800,
        },
        0x835 | 0x836 => Access::ReadWrite {
            reserved: HIGH | 0xfffe_0800,
        },
        0x837 => Access::ReadWrite {
            reserved: HIGH | 0xfffe_ef00,
        },
        0x838 => Access::ReadWrite { reserved: HIGH },
        0x83e => Access::ReadWrite {
            reserved: HIGH | 0xffff_fff4,
        },
        0x83f => Access::WriteOnly {
            reserved: HIGH | 0xffff_ff00,
        },
        _ => Access::None,
    }
}

#[test]
fn x2apic_msrs_fault_as_the_manual_says() {
    for msr in 0x800..=0x8ff {
        let mut cpu = Cpu::x2apic(1);
        let (reads, reserved) = match x2apic_access(msr) {
            Access::None => (false, None),
            Access::ReadOnly => (true, None),
            Access::WriteOnly { reserved } => (false, Some(reserved)),
            Access::ReadWrite { reserved } => (true, Some(reserved)),
        };
        assert_eq!(cpu.rdmsr(msr).is_ok(), reads, "RDMSR {msr:#x}");
        assert_eq!(cpu.wrmsr(msr, 0).is_ok(), reserved.is_some(), "{msr:#x}");
        for bit in 0..64 {
            let legal = reserved.is_some_and(|reserved| reserved >> bit & 1 == 0);
            let result = cpu.wrmsr(msr, 1 << bit);
            assert_eq!(result.is_ok(), legal, "WRMSR {msr:#x}, bit {bit}");
        }
    }
}

#[test]
fn msrs_are_there_in_x2apic_mode_only() {
    let mut cpu = Cpu::xapic(1);
    for msr in 0x800..=0x8ff {
        assert_eq!(cpu.rdmsr(msr), Err(GeneralProtection));
        assert_eq!(cpu.wrmsr(msr, 0), Err(GeneralProtection));
    }
    let mut cpu = Cpu::x2apic(1);
    for msr in [0, 0x7ff, 0x900, 0x902, u32::MAX] {
        assert_eq!(cpu.rdmsr(msr), Err(GeneralProtection));
        assert_eq!(cpu.wrmsr(msr, 0), Err(GeneralProtection));
    }
}

#[test]
fn x2apic_icr_is_one_register_of_64_bits() {
    let mut cpu = Cpu::x2apic(1);
    cpu.wrmsr(0x830, 0xdead_beef_0000_0031).unwrap();
    assert_eq!(cpu.rdmsr(0x830), Ok(0xdead_beef_0000_0031));
}

#[test]
fn corrected_machine_checks_have_an_entry_where_there_are_any() {
    let mut cpu = Cpu::powered_up(0);
    cpu.apic = LocalApic::new(ApicConfig {
        cmci: true,
        ..config(0)
    });
    assert_eq!(cpu.read(Register::VERSION), 0x0106_0014);
    assert_eq!(cpu.read(Register::LVT_CMCI), LVT_MASKED);
    cpu.write(Register::SVR, 0x1ff);
    cpu.write(Register::LVT_CMCI, u32::MAX);
    assert_eq!(cpu.read(Register::LVT_CMCI), 0x0001_07ff);
    cpu.apic.set_apic_base(0xfee0_0c00).unwrap();
    assert_eq!(cpu.rdmsr(0x82f), Ok(0x0001_07ff));
    assert_eq!(cpu.wrmsr(0x82f, 0xf1), Ok(()));
}

#[test]
fn cr8_is_the_class_of_the_task_priority() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::TPR, 0x5a);
    assert_eq!(cpu.apic.cr8(), 5);
    cpu.apic.set_cr8(9).unwrap();
    assert_eq!(cpu.read(Register::TPR), 0x90);
    assert_eq!(cpu.read(Register::PPR), 0x90);
    assert_eq!(cpu.apic.set_cr8(16), Err(GeneralProtection));
    assert_eq!(cpu.apic.set_cr8(1 << 63), Err(GeneralProtection));
    assert_eq!(cpu.apic.cr8(), 9);
}
