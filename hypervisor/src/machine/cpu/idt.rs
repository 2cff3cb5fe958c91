//! The interrupt descriptor table and its entry stubs, one for all CPUs.

use core::cell::UnsafeCell;

use x86_64::structures::DescriptorTablePointer;
use x86_64::{VirtAddr, instructions::tables::lidt};

use super::gdt::{CODE, Ist};
use super::trap;

/// The number of vectors.
pub(super) const VECTORS: usize = 256;
/// Bytes from one stub to the next.
const STUB_SIZE: u64 = 16;

// A stub brings every vector to the same stack layout, `trap::TrapFrame`: the error code (0
// for those without), the vector, all registers. The CPU has aligned RSP to 16 before it
// pushed SS (SDM vol. 3A, 6.14.2), and 22 quadwords are a multiple of 16, so the call is
// made with the stack that the ABI wants.
//
// No swapgs: tarpit never leaves ring 0, and GS base is its own at all times in root mode.
core::arch::global_asm!(
    ".text",
    ".balign 16",
    ".global tarpit_trap_stubs",
    "tarpit_trap_stubs:",
    ".set tarpit_vector, 0",
    ".rept 256",
    ".balign 16",
    // #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC, #SX push an error code themselves.
    ".if (tarpit_vector == 8) || ((tarpit_vector >= 10) && (tarpit_vector <= 14)) || (tarpit_vector == 17) || (tarpit_vector == 21) || (tarpit_vector == 29) || (tarpit_vector == 30)",
    ".else",
    "push 0",
    ".endif",
    ".byte 0x68", // push imm32
    ".long tarpit_vector",
    "jmp tarpit_trap_common",
    ".set tarpit_vector, tarpit_vector + 1",
    ".endr",
    ".balign 16",
    "tarpit_trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handle}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16", // vector, error code
    "iretq",
    handle = sym trap::handle,
);

unsafe extern "C" {
    #[link_name = "tarpit_trap_stubs"]
    static TRAP_STUBS: u8;
}

/// A 64-bit interrupt gate (SDM vol. 3A, 6.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
struct Gate(u64, u64);

impl Gate {
    const EMPTY: Self = Self(0, 0);

    /// Makes a present gate of ring 0 that turns interrupts off.
    const fn interrupt(handler: u64, selector: u16, ist: Ist) -> Self {
        const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
        Self(
            (handler & 0xffff)
                | (selector as u64) << 16
                | (ist as u64) << 32
                | PRESENT_INTERRUPT_GATE
                | (handler >> 16 & 0xffff) << 48,
            handler >> 32,
        )
    }
}

struct Table(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: written by `init` only, when the boot CPU is alone, and read by CPUs only.
unsafe impl Sync for Table {}

static IDT: Table = Table(UnsafeCell::new([Gate::EMPTY; VECTORS]));

/// Whether NMI, #DF and #MC have stacks of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExceptionStacks {
    /// No stacks yet: there is no TSS.
    Absent,
    /// Stacks in the TSS of each CPU.
    InTss,
}

fn gate(vector: usize, stacks: ExceptionStacks) -> Gate {
    let ist = match (vector, stacks) {
        (2, ExceptionStacks::InTss) => Ist::Nmi,
        (8, ExceptionStacks::InTss) => Ist::DoubleFault,
        (18, ExceptionStacks::InTss) => Ist::MachineCheck,
        _ => Ist::None,
    };
    let stub = &raw const TRAP_STUBS as u64 + vector as u64 * STUB_SIZE;
    Gate::interrupt(stub, CODE.0, ist)
}

/// Fills in the table.
///
/// # Safety
/// On the boot CPU, before any other CPU uses the table. With [`ExceptionStacks::InTss`]
/// every CPU that uses the table from then on must have such a TSS.
pub(crate) unsafe fn init(stacks: ExceptionStacks) {
    let gates = core::array::from_fn(|vector| gate(vector, stacks));
    // SAFETY: nobody else uses the table.
    unsafe { IDT.0.get().write(gates) };
}

/// Makes this CPU use the table.
///
/// # Safety
/// After [`init`], with the boot GDT or a [`super::gdt`] one.
pub(crate) unsafe fn load() {
    let pointer = DescriptorTablePointer {
        limit: (size_of::<[Gate; VECTORS]>() - 1) as u16,
        base: VirtAddr::from_ptr(IDT.0.get()),
    };
    // SAFETY: the table is static and filled in.
    unsafe { lidt(&pointer) };
}

/// Returns the linear address of the table, for the VMCS's host-state area.
#[must_use]
pub(crate) fn base() -> u64 {
    IDT.0.get() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_has_its_fields_where_the_manual_says() {
        let gate = Gate::interrupt(0x1122_3344_5566_7788, 0x0008, Ist::MachineCheck);
        assert_eq!(gate, Gate(0x5566_8e03_0008_7788, 0x1122_3344));
    }

    /// The stub of `vector`, as instructions: what it pushes before it jumps.
    fn pushes(vector: usize) -> (bool, u32) {
        let stub = &raw const TRAP_STUBS;
        // SAFETY: the stubs are that long.
        let code = unsafe {
            core::slice::from_raw_parts(stub.add(vector * STUB_SIZE as usize), STUB_SIZE as usize)
        };
        let (dummy_error, code) = match code.strip_prefix(&[0x6a, 0x00]) {
            Some(rest) => (true, rest),
            None => (false, code),
        };
        assert_eq!(code[0], 0x68, "push imm32");
        (
            dummy_error,
            u32::from_le_bytes([code[1], code[2], code[3], code[4]]),
        )
    }

    #[test]
    fn every_stub_pushes_its_vector_and_an_error_code_where_the_cpu_pushes_none() {
        for vector in 0..VECTORS {
            let by_cpu = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30].contains(&vector);
            assert_eq!(pushes(vector), (!by_cpu, vector as u32));
        }
    }

    #[test]
    fn nmi_double_fault_and_machine_check_alone_switch_stacks() {
        let ist = |vector| gate(vector, ExceptionStacks::InTss).0 >> 32 & 7;
        let switching: std::vec::Vec<_> = (0..VECTORS).filter(|&v| ist(v) != 0).collect();
        assert_eq!(switching, [2, 8, 18]);
        assert!((0..VECTORS).all(|v| gate(v, ExceptionStacks::Absent).0 >> 32 & 7 == 0));
    }
}
