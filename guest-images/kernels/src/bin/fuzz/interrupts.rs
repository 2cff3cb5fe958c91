//! Interrupts: the local APIC by memory and by MSRs, messages to itself, the 8259s, the I/O APIC, timers, and
//! faults whose handlers fault.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::apic::{DEFAULT_ADDRESS, Register, delivery_mode, icr, lvt};
use arch::msr;
use kernels::dice::Dice;
use kernels::interrupts::Frame;
use kernels::lapic::{self, Lapic, Mode};
use kernels::{interrupts, ioapic, memory, mmio, pic, pit, segments, tsc};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

use crate::Action;
use crate::settle;

pub(crate) const ACTIONS: &[Action] = &[
    (register, 60),
    (x2apic, 20),
    (message, 30),
    (timer, 10),
    (halt, 8),
    (legacy, 20),
    (io_apic, 20),
    (let_in, 30),
    (software, 20),
    (faulty_table, 10),
];

/// Interrupts since the last action.
static TAKEN: AtomicU32 = AtomicU32::new(0);
/// The most of them that are let in: one whose line stays up comes again for ever.
const MOST: u32 = 100;

/// Forgets the interrupts that have been taken.
pub(crate) fn begin() {
    TAKEN.store(0, Ordering::Relaxed);
}

/// Handles every interrupt: ends it wherever it may have come from.
pub(crate) fn handle(frame: &mut Frame) {
    if TAKEN.fetch_add(1, Ordering::Relaxed) >= MOST {
        frame.rflags &= !arch::RFlags::INTERRUPT_FLAG.bits();
    }
    Lapic::current().end();
    if (u64::from(pic::BASE)..u64::from(pic::BASE) + 16).contains(&frame.vector) {
        pic::end(15);
    }
}

/// Lets interrupts in for a few instructions.
fn let_in(_: &mut Dice) {
    interrupts::let_in();
}

/// Accesses a register of the local APIC by memory, also where there is none.
fn register(dice: &mut Dice) {
    let offset = match dice.below(4) {
        0 => dice.below(0x1000),
        _ => dice.below(0x40) * 0x10,
    };
    let value = dice.value() as u32;
    // Not by chance: messages that reset the machine.
    let is_command = offset & !0xf == u64::from(Register::ICR_LOW.offset());
    // SAFETY: the page is mapped, and the APIC touches no memory.
    unsafe {
        if dice.once_in(2) || is_command {
            let _ = mmio::read32(DEFAULT_ADDRESS + offset);
        } else {
            mmio::write32(DEFAULT_ADDRESS + offset, value);
        }
    }
}

/// Goes to another mode of the local APIC, and accesses registers as MSRs.
fn x2apic(dice: &mut Dice) {
    lapic::set_base(match dice.below(8) {
        0 => dice.value() & 0xf_ffff_ffff,
        1 => DEFAULT_ADDRESS,
        _ => DEFAULT_ADDRESS | lapic::GLOBAL_ENABLE | lapic::X2APIC_ENABLE | 0x100,
    });
    for _ in 0..4 {
        let number = msr::X2APIC_FIRST + dice.below(0x40) as u32;
        let value = dice.value();
        // SAFETY: an MSR that is not there is a fault, which is caught.
        unsafe {
            if dice.once_in(2) || number == Register::ICR_LOW.msr() {
                let _ = Msr::new(number).read();
            } else {
                Msr::new(number).write(value);
            }
        }
    }
}

/// Sends itself a message of any kind but those that reset it.
fn message(dice: &mut Dice) {
    let mut lapic = settle::local_apic();
    if dice.once_in(4) {
        lapic = Lapic::enable(Mode::X2Apic);
    }
    let kind = dice.of(&[
        0,
        delivery_mode::NMI,
        0x100,
        0x200,
        0x300,
        delivery_mode::EXT_INT,
    ]);
    let destination = dice.of(&[0, icr::TO_SELF, icr::TO_ALL, icr::TO_OTHERS]);
    let vector = dice.any() as u32 & 0xff;
    let trigger = dice.of(&[0, 0, 0x8000, 0x800]);
    let to = dice.of(&[0, 1, 0xff, 7]);
    lapic.send(
        to,
        destination | kind | icr::ASSERT | trigger | vector.max(16),
    );
    if dice.once_in(2) {
        interrupts::let_in();
    }
}

/// Starts the local APIC's timer in some mode, with any count.
fn timer(dice: &mut Dice) {
    let lapic = Lapic::current();
    let mode = dice.of(&[0, lvt::TIMER_PERIODIC, lvt::TIMER_TSC_DEADLINE, 3 << 17]);
    lapic.write(Register::DIVIDE, dice.any() as u32 & 0xb);
    lapic.write(Register::LVT_TIMER, mode | (0x20 + dice.below(0xe0) as u32));
    // Not so short a period that a handler takes longer: nothing else would come about.
    lapic.write(Register::INITIAL_COUNT, dice.value() as u32 | 0x2000);
    let deadline = tsc::now().wrapping_add(dice.value() & 0xff_ffff);
    // SAFETY: the timer only interrupts.
    unsafe { Msr::new(msr::IA32_TSC_DEADLINE).write(deadline) };
    interrupts::let_in();
}

/// Halts until a timer ends that.
fn halt(dice: &mut Dice) {
    settle::devices();
    let lapic = Lapic::current();
    lapic.write(Register::DIVIDE, 0b1011);
    lapic.write(Register::LVT_TIMER, lvt::TIMER_PERIODIC | 0x40);
    lapic.write(Register::INITIAL_COUNT, 1000 + dice.below(10_000) as u32);
    // SAFETY: the handler keeps all registers.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Programs the 8259s and the 8254.
fn legacy(dice: &mut Dice) {
    match dice.below(6) {
        0 => pit::start(dice.below(3) as u8, dice.below(8) as u8, dice.any() as u16),
        1 => pic::unmask(dice.below(16) as u8),
        2 => pic::Pic::Master.command(dice.any() as u8),
        3 => pic::Pic::Slave.command(dice.any() as u8),
        4 => pic::Pic::Slave.data(dice.any() as u8),
        _ => {
            let lapic = Lapic::current();
            lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
            interrupts::let_in();
        }
    }
}

/// Writes an entry of the I/O APIC.
fn io_apic(dice: &mut Dice) {
    let register = dice.of(&[0, 1, 2, 0x10]) + dice.below(0x30) as u32;
    if dice.once_in(2) {
        let _ = ioapic::read(register as u8);
        return;
    }
    // Not INIT: nobody would start the machine again.
    let value = dice.value() as u32;
    let mode = if value & 0x700 == 0x500 {
        0x700
    } else {
        value & 0x700
    };
    ioapic::write(register as u8, value & !0x700 | mode);
}

/// Raises an interrupt or an exception by an instruction.
fn software(dice: &mut Dice) {
    // SAFETY: all vectors have handlers, or the fault is caught.
    unsafe {
        match dice.below(5) {
            0 => asm!("int 0x55"),
            1 => asm!("int3"),
            2 => asm!(".byte 0xf1"),
            3 => asm!("int 6"),
            _ => asm!("ud2"),
        }
    }
}

/// Takes a fault by a table of whose gates some are broken: faults whose handlers fault.
fn faulty_table(dice: &mut Dice) {
    let mut old = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    let copy = crate::memory::page(0);
    // SAFETY: the copy of the table is in a page of ours. The gate of a double fault stays as it is.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut old);
        let from = old.base.as_ptr::<u8>();
        copy.copy_from_nonoverlapping(from, memory::PAGE);
        for vector in 0..32 {
            if vector != 8 && dice.once_in(2) {
                let gate = copy.add(vector * 16);
                match dice.below(5) {
                    0 => gate.add(5).write(0x0e),
                    1 => gate.add(5).write(0x85),
                    2 => gate
                        .add(2)
                        .cast::<u16>()
                        .write_unaligned(segments::KERNEL_DATA),
                    3 => gate.add(4).write(0),
                    _ => gate.add(8).cast::<u32>().write_unaligned(dice.any() as u32),
                }
            }
        }
        // The order of a fault's first handler's faults is the CPU's.
        lidt(&DescriptorTablePointer {
            limit: 0xfff,
            base: VirtAddr::new(copy as u64),
        });
    }
    software(dice);
}
