//! VM entry and VM exit: the only way into the guest and back (SDM vol. 3C, ch. 27 and 28).

use core::arch::{asm, global_asm};
use core::mem::offset_of;

/// The guest's general-purpose registers, as far as the VMCS does not hold them (it holds
/// RSP), and where VM exits find their way back.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct GuestRegisters {
    /// The registers by their encoding: RAX, RCX, RDX, RBX, (unused), RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// The value of the VMCS field "host RSP" when it was last written.
    host_rsp: u64,
    /// The way into the guest and back.
    path: EntryPath,
    /// The extra cost of a round trip, in host TSC ticks: see [`GuestRegisters::new`].
    exit_cost: u64,
    /// Whether the guest has been entered since its VMCS was cleared, as a number.
    launched: u32,
}

/// The code that enters the guest and comes back after its exit, with flags that say how it was. It
/// has a calling convention of its own: see [`enter`].
type EntryPath = unsafe extern "C" fn();

/// VM entry did not happen: VMLAUNCH or VMRESUME failed. (An entry that fails in loading
/// guest state comes back as an exit instead.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFailed;

impl GuestRegisters {
    /// Zeros, of a guest whose VMCS is cleared.
    ///
    /// `exit_cost` is a model for measuring, zero otherwise. In an emulator an exit and an entry take
    /// a tick or two; on a processor they take one to two thousand, and under another hypervisor
    /// tens of thousands. With an exit cost, each round trip takes that many ticks of the host's TSC
    /// more: one half passes right before the entry, the other between the exit and the moment it
    /// is seen.
    #[must_use]
    pub fn new(exit_cost: u64) -> Self {
        Self {
            gpr: [0; 16],
            host_rsp: 0,
            path: if exit_cost == 0 {
                tarpit_vm_enter
            } else {
                tarpit_vm_enter_at_a_cost
            },
            exit_cost,
            launched: 0,
        }
    }

    /// Takes note that the VMCS has been cleared: the next entry is a launch, and writes the host's
    /// stack pointer, of whatever CPU it is.
    pub fn forget_launch(&mut self) {
        // Every entry that finds another stack pointer looks whether it is a launch. No stack is at 0.
        self.host_rsp = 0;
        self.launched = 0;
    }
}

// tarpit_vm_enter: RDI has the registers, and keeps them. After a VM exit CF and ZF are both clear,
// as VM exits load RFLAGS (SDM vol. 3C, 28.5.3) and what follows leaves flags alone; if there was no
// entry, one of them is set (SDM vol. 3C, 31.2). RBX, RBP and RSP are kept, which the compiler cannot
// be told to save; the rest is the caller's matter.
global_asm!(
    ".macro tarpit_load_guest_registers",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    ".endm",
    ".global tarpit_vm_enter",
    ".global tarpit_vm_enter_at_a_cost",
    ".global tarpit_vm_exit",
    "tarpit_vm_enter:",
    "push rbx",
    "push rbp",
    "push rdi",
    // The host's loop has a fixed depth: another stack pointer is rare, and after VMCLEAR it always is
    // another one.
    "cmp rsp, [rdi + {host_rsp}]",
    "jne 3f",
    "2:",
    "tarpit_load_guest_registers",
    "vmresume",
    "jmp 4f",
    "3:",
    "mov [rdi + {host_rsp}], rsp",
    "mov eax, 0x6c14",
    "vmwrite rax, rsp",
    "cmp dword ptr [rdi + {launched}], 0",
    "jne 2b",
    "mov dword ptr [rdi + {launched}], 1",
    "tarpit_load_guest_registers",
    "vmlaunch",
    "4:",
    "pop rdi",
    "pop rbp",
    "pop rbx",
    "ret",
    "tarpit_vm_exit:",
    "push rdi",
    "mov rdi, [rsp + 8]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pop qword ptr [rdi + 56]",
    "pop rdi",
    "pop rbp",
    "pop rbx",
    "ret",
    ".purgem tarpit_load_guest_registers",
    // The same, and each round trip takes the registers' exit cost more.
    "tarpit_vm_enter_at_a_cost:",
    "push rdi",
    "mov rdi, [rdi + {exit_cost}]",
    "shr rdi",
    "call {burn}",
    "mov rdi, [rsp]",
    "call tarpit_vm_enter",
    "pushfq",
    "sub rsp, 8",
    "mov rdi, [rdi + {exit_cost}]",
    "inc rdi",
    "shr rdi",
    "call {burn}",
    "add rsp, 8",
    "popfq",
    "pop rdi",
    "ret",
    host_rsp = const offset_of!(GuestRegisters, host_rsp),
    launched = const offset_of!(GuestRegisters, launched),
    exit_cost = const offset_of!(GuestRegisters, exit_cost),
    burn = sym burn,
);

unsafe extern "C" {
    fn tarpit_vm_enter();
    fn tarpit_vm_enter_at_a_cost();
    fn tarpit_vm_exit();
}

/// Returns where VM exits go.
pub(crate) fn vm_exit_address() -> u64 {
    tarpit_vm_exit as *const () as u64
}

/// Lets so many ticks of the TSC pass.
extern "C" fn burn(ticks: u64) {
    // SAFETY: every 64-bit CPU has RDTSC, and the host leaves CR4.TSD clear.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let start = now();
    while now().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

/// Enters the guest whose VMCS is current, and returns after its next VM exit.
///
/// # Errors
/// If VMLAUNCH or VMRESUME fails; the VMCS field "VM-instruction error" says why.
///
/// # Safety
/// The current VMCS has host state that is this CPU's, and EPT and bitmaps that keep the
/// guest to what is its own; `registers` go with this VMCS, and [know](GuestRegisters::forget_launch)
/// when it was cleared. Interrupts are disabled. The guest's floating-point, debug and syscall
/// registers are live: the host uses none of them.
#[inline]
pub unsafe fn enter(registers: &mut GuestRegisters) -> Result<(), EntryFailed> {
    // SAFETY: by the contract above. The code keeps RBX, RBP and RDI, and a VM exit restores RSP and
    // the segment registers from the host state; what else the guest leaves in registers is named
    // here. RFLAGS are cleared by a VM exit, so that the direction flag is off, as Rust expects.
    unsafe {
        asm!(
            "call qword ptr [rdi + {path}]",
            "jbe {failed}",
            path = const offset_of!(GuestRegisters, path),
            failed = label { return Err(EntryFailed) },
            in("rdi") &raw mut *registers,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_cost_takes_at_least_so_many_ticks() {
        // SAFETY: every 64-bit CPU has RDTSC.
        let now = || unsafe { core::arch::x86_64::_rdtsc() };
        let start = now();
        burn(0);
        let without = now().wrapping_sub(start);
        let start = now();
        burn(1_000_000);
        let with = now().wrapping_sub(start);
        assert!(with >= 1_000_000 && without < with, "{without}, {with}");
    }

    #[test]
    fn without_an_exit_cost_nothing_is_between_the_guest_and_its_exit() {
        let path = |cost| GuestRegisters::new(cost).path as usize;
        assert_eq!(path(0), tarpit_vm_enter as *const () as usize);
        assert_ne!(path(1), path(0));
    }
}
