//! Device memory by instructions on registers of their own: descriptor tables, tasks, segments,
//! x87 and SSE with their exceptions; and by some that a hypervisor does not do, which are #UD.

use core::arch::asm;

use arch::ExceptionVector;
use kernels::hpet::{COUNTER, Hpet};
use kernels::interrupts::{Fault, catch};
use kernels::segments::{KERNEL_DATA, TASK_STATE, load_gdt};
use kernels::{Report, ioapic, mmio, platform};
use x86_64::instructions::tables::sgdt;

/// A register of the I/O APIC, which holds a byte that is written to it.
const INDEX: u64 = ioapic::SELECT;

pub(crate) fn test(report: &mut Report) {
    const NAME: &str = "device memory by instructions on registers";
    test_selectors(report);
    let Some(hpet) = Hpet::find() else {
        report.skip(NAME, "no HPET");
        return;
    };
    // The counter stands still, and holds 8 bytes.
    hpet.stop();
    let counter = hpet.address(COUNTER);
    test_tables(report, hpet);
    test_floating_point_exceptions(report, hpet);

    if platform::is_tcg() {
        report.skip(NAME, "QEMU's own emulation does them all");
        return;
    }
    // SAFETY: faults.
    let save = catch(|| unsafe { asm!("fxsave64 [{}]", in(reg) counter) });
    // SAFETY: faults.
    let encrypt = catch(|| unsafe { asm!("aesenc xmm0, [{}]", in(reg) counter) });
    for (name, outcome) in [("FXSAVE", save), ("AESENC", encrypt)] {
        report.same(
            format_args!("{name} of device memory"),
            outcome,
            Err(Fault::INVALID_OPCODE),
        );
    }
}

fn fault(vector: ExceptionVector, error: u16) -> Result<(), Fault> {
    Err(Fault {
        vector: vector as u8,
        error: error.into(),
    })
}

fn set_index(value: u16) {
    // SAFETY: the I/O APIC's index register has no effect by itself.
    unsafe { mmio::write32(INDEX, value.into()) }
}

fn test_selectors(report: &mut Report) {
    // SAFETY: a descriptor of ours, which nobody has a reference to.
    let descriptor = (sgdt().base.as_u64() + u64::from(TASK_STATE)) as *mut u64;
    const BUSY: u64 = 1 << 41;
    // SAFETY: loads the task that is there, or faults.
    let load_task = || catch(|| unsafe { asm!("ltr word ptr [{}]", in(reg) INDEX) });
    set_index(TASK_STATE);
    report.same(
        "LTR of a busy task from a device",
        load_task(),
        fault(ExceptionVector::GeneralProtection, TASK_STATE),
    );
    // SAFETY: as above.
    unsafe { descriptor.write_volatile(descriptor.read_volatile() & !BUSY) };
    report.same("LTR from a device", load_task(), Ok(()));
    // SAFETY: as above.
    let entry = unsafe { descriptor.read_volatile() };
    report.equal("the task is busy after it", entry & BUSY, BUSY);
    set_index(0);
    // SAFETY: writes the index register.
    unsafe { asm!("str word ptr [{}]", in(reg) INDEX) };
    // SAFETY: reads it.
    let index = unsafe { mmio::read32(INDEX) };
    report.equal("STR to a device", index, TASK_STATE.into());

    // SAFETY: there is no LDT, and none after it.
    let load_table = || catch(|| unsafe { asm!("lldt word ptr [{}]", in(reg) INDEX) });
    set_index(KERNEL_DATA);
    report.same(
        "LLDT of a data segment from a device",
        load_table(),
        fault(ExceptionVector::GeneralProtection, KERNEL_DATA),
    );
    // SAFETY: data segments are flat, and their bases of no matter.
    let load_segment = || catch(|| unsafe { asm!("mov es, word ptr [{}]", in(reg) INDEX) });
    let segment = || {
        let selector: u64;
        // SAFETY: reads ES.
        unsafe { asm!("mov {:e}, es", out(reg) selector) };
        selector
    };
    set_index(0);
    report.same("LLDT of nothing from a device", load_table(), Ok(()));
    report.same("MOV to ES of nothing from a device", load_segment(), Ok(()));
    report.equal("ES after it", segment(), 0);
    set_index(KERNEL_DATA);
    report.same("MOV to ES from a device", load_segment(), Ok(()));
    report.equal("ES after it", segment(), KERNEL_DATA.into());
}

/// LGDT and SGDT of 10 bytes, of which the last two are behind the counter, and zero.
fn test_tables(report: &mut Report, hpet: Hpet) {
    let address = hpet.address(COUNTER);
    let old = sgdt();
    // One entry more than there is.
    let limit = old.limit + 8;
    let image = u64::from(limit) | old.base.as_u64() << 16;
    hpet.write(COUNTER, image);
    // SAFETY: nobody uses the entry.
    let outcome = catch(|| unsafe { asm!("lgdt [{}]", in(reg) address) });
    report.same("LGDT from a device", outcome, Ok(()));
    let new = sgdt();
    report.equal("its base", new.base.as_u64(), old.base.as_u64());
    report.equal("its limit", new.limit, limit);
    hpet.write(COUNTER, 0);
    // SAFETY: writes the counter.
    let outcome = catch(|| unsafe { asm!("sgdt [{}]", in(reg) address) });
    report.same("SGDT to a device", outcome, Ok(()));
    report.equal("the counter after it", hpet.read(COUNTER), image);
    load_gdt();
}

/// Division by zero, which a device reads as.
fn test_floating_point_exceptions(report: &mut Report, hpet: Hpet) {
    const FRESH: u32 = 0x1f80;
    const DIVISION_BY_ZERO: u32 = 1 << 2;
    let address = hpet.address(COUNTER);
    hpet.write(COUNTER, 0);
    let raising = FRESH & !(DIVISION_BY_ZERO << 7);
    let mut one = [1.0_f32.to_bits(); 4];
    let mut mxcsr = 0_u32;
    // SAFETY: no code here uses vector registers.
    let outcome = catch(|| unsafe {
        asm!(
            "ldmxcsr [{raising}]",
            "movups xmm0, [{one}]",
            "divss xmm0, dword ptr [{address}]",
            raising = in(reg) &raw const raising,
            one = in(reg) &raw const one,
            address = in(reg) address,
        );
    });
    // SAFETY: as above; MXCSR is put back.
    unsafe {
        asm!(
            "stmxcsr [{mxcsr}]",
            "movups [{one}], xmm0",
            "ldmxcsr [{fresh}]",
            mxcsr = in(reg) &raw mut mxcsr,
            one = in(reg) &raw mut one,
            fresh = in(reg) &FRESH,
        );
    }
    report.same(
        "DIVSS by a device that reads as zero",
        outcome,
        fault(ExceptionVector::SimdFloatingPoint, 0),
    );
    report.equal("MXCSR after it", mxcsr, raising | DIVISION_BY_ZERO);
    report.equal("XMM0 after it", one[0], 1.0_f32.to_bits());

    /// FXSAVE's area, with FSW at 2 and FIP at 8.
    #[repr(C, align(16))]
    struct Image([u8; 512]);
    let mut image = Image([0; 512]);
    let control = 0x37f_u16 & !(DIVISION_BY_ZERO as u16);
    let (mut divisor, mut dividing) = (1_u64, 0_u64);
    // SAFETY: no code here uses the x87 FPU.
    let outcome = catch(|| unsafe {
        asm!(
            "fninit",
            "fldcw [{control}]",
            "fld1",
            "lea {dividing}, [rip + 22f]",
            "mov [{dividing_at}], {dividing}",
            "22:",
            "fdiv dword ptr [{address}]",
            "fxsave64 [{image}]",
            "fld dword ptr [{address}]",
            "mov dword ptr [{divisor}], 0",
            control = in(reg) &raw const control,
            dividing = out(reg) _,
            dividing_at = in(reg) &raw mut dividing,
            address = in(reg) address,
            image = in(reg) &raw mut image,
            divisor = in(reg) &raw mut divisor,
        );
    });
    // SAFETY: as above.
    unsafe { asm!("fninit") };
    report.same(
        "x87 after a division by a device that reads as zero",
        outcome,
        fault(ExceptionVector::X87FloatingPoint, 0),
    );
    let status = u16::from_le_bytes([image.0[2], image.0[3]]);
    report.equal("FSW: division by zero, and a summary", status & 0x84, 0x84);
    let pointer: [u8; 8] = core::array::from_fn(|index| image.0[8 + index]);
    report.equal("FIP", u64::from_le_bytes(pointer), dividing);
    report.equal("the instruction behind #MF is not run", divisor, 1);
}
