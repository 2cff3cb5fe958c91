//! A target for fuzzing: a guest that reads and writes its local APIC at will, while interrupts come.

use super::*;

#[test]
fn registers_and_interrupts() {
    fuzzing::check!()
        .with_type::<Vec<(u8, u16, u64)>>()
        .for_each(|acts| {
            let mut cpu = Cpu::xapic(0);
            for &(kind, place, value) in acts {
                let register = place & 0xff0 | place >> 12;
                match kind % 16 {
                    0..4 => {
                        let size = [1, 2, 4, 8][usize::from(kind >> 4 & 3)];
                        let (now, bus) = (cpu.now, &mut cpu.bus);
                        cpu.apic.mmio_write(now, register & 0xfff, size, value, bus);
                    }
                    4 | 5 => {
                        cpu.apic.mmio_read(cpu.now, register & 0xfff, 4);
                    }
                    6 | 7 => {
                        // The x2APIC's registers, and the deadline.
                        let msr = if kind & 0x10 == 0 {
                            0x800 + u32::from(register >> 4)
                        } else {
                            0x6e0
                        };
                        if cpu.wrmsr(msr, value).is_ok() {
                            let _ = cpu.rdmsr(msr);
                        }
                    }
                    8 => {
                        let before = cpu.apic.apic_base();
                        if cpu.apic.set_apic_base(value & 0xd00 | 0xfee0_0000).is_err() {
                            assert_eq!(cpu.apic.apic_base(), before);
                        }
                    }
                    9 | 10 => cpu.interrupt(value as u8, kind & 0x10 != 0),
                    11 => {
                        let priority = cpu.apic.processor_priority() >> 4;
                        if let Some(Pending::Vector(vector)) = cpu.apic.pending() {
                            assert!(vector >> 4 > priority, "{vector:#x} at priority {priority}");
                            assert_eq!(cpu.apic.acknowledge(), vector);
                            assert!(cpu.apic.processor_priority() >> 4 >= vector >> 4);
                        }
                    }
                    12 => cpu.apic.end_of_interrupt(&mut cpu.bus),
                    13 => {
                        let priority = value & 0xf;
                        cpu.apic.set_cr8(priority).unwrap();
                        assert_eq!(cpu.apic.cr8(), priority);
                    }
                    14 => cpu.apic.init_reset(),
                    _ => cpu.wait(if kind & 0x10 == 0 {
                        value % 1000
                    } else {
                        value % (1 << 40)
                    }),
                }
                if let Some(deadline) = cpu.apic.next_deadline() {
                    cpu.apic.expire(cpu.now);
                    let later = cpu.apic.next_deadline();
                    assert!(
                        later.is_none_or(|it| it > cpu.now.timer),
                        "{deadline:?} is over"
                    );
                }
                // Vectors below 16 are illegal, and never reach the processor.
                if let Some(Pending::Vector(vector)) = cpu.apic.pending() {
                    assert!(vector >= 16);
                }
            }
        });
}
