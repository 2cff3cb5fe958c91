//! VM entry and VM exit: the only way into the guest and back (SDM vol. 3C, ch. 27 and 28).

use core::arch::global_asm;

use arch::gpr;

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
}

/// A function that enters the guest and returns after its exit: 0 then, 1 if there was no entry.
type EntryPath = unsafe extern "C" fn(registers: *mut GuestRegisters, launched: bool) -> u32;

/// VM entry did not happen: VMLAUNCH or VMRESUME failed. (An entry that fails in loading
/// guest state comes back as an exit instead.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFailed;

impl GuestRegisters {
    /// Zeros.
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
                enter_at_a_cost
            },
            exit_cost,
        }
    }

    /// Forgets that the VMCS holds the host's stack pointer: after VMCLEAR, or when another
    /// CPU takes the VCPU over.
    pub fn forget_host(&mut self) {
        self.host_rsp = 0;
    }

    /// Returns the low 64 bits of EDX:EAX.
    #[inline]
    #[must_use]
    pub fn edx_eax(&self) -> u64 {
        self.gpr[gpr::RDX] << 32 | self.gpr[gpr::RAX] & 0xffff_ffff
    }

    /// Sets EDX:EAX, which clears the high halves of RDX and RAX.
    #[inline]
    pub fn set_edx_eax(&mut self, value: u64) {
        self.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.gpr[gpr::RDX] = value >> 32;
    }
}

global_asm!(
    // fn tarpit_vm_enter(registers: rdi, launched: rsi) -> eax: 0 after a VM exit, else 1.
    ".global tarpit_vm_enter",
    ".global tarpit_vm_exit",
    "tarpit_vm_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    // VMWRITE of the host's RSP only when it is another one: the host loop's depth is fixed.
    "cmp rsp, [rdi + 128]",
    "je 2f",
    "mov [rdi + 128], rsp",
    "mov eax, 0x6c14",
    "vmwrite rax, rsp",
    "2:",
    "test esi, esi",
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
    "jz 3f",
    "vmresume",
    "jmp 4f",
    "3:",
    "vmlaunch",
    "4:",
    "mov eax, 1",
    "pop rdi",
    "jmp 5f",
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
    "pop rax",
    "mov [rdi + 56], rax",
    "xor eax, eax",
    "pop rdi",
    "5:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn tarpit_vm_enter(registers: *mut GuestRegisters, launched: bool) -> u32;
    fn tarpit_vm_exit();
}

/// Returns where VM exits go.
pub(crate) fn vm_exit_address() -> u64 {
    tarpit_vm_exit as *const () as u64
}

/// Does what `tarpit_vm_enter` does, and each round trip takes the registers' exit cost more.
unsafe extern "C" fn enter_at_a_cost(registers: *mut GuestRegisters, launched: bool) -> u32 {
    // SAFETY: the caller's registers.
    let cost = unsafe { (*registers).exit_cost };
    burn(cost / 2);
    // SAFETY: by the caller.
    let failed = unsafe { tarpit_vm_enter(registers, launched) };
    burn(cost - cost / 2);
    failed
}

/// Lets so many ticks of the TSC pass.
fn burn(ticks: u64) {
    // SAFETY: every 64-bit CPU has RDTSC, and the host leaves CR4.TSD clear.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let start = now();
    while now().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}

/// Enters the guest whose VMCS is current, and returns after its next VM exit. `launched`
/// says whether it has been entered since its VMCS was cleared.
///
/// # Errors
/// If VMLAUNCH or VMRESUME fails; the VMCS field "VM-instruction error" says why.
///
/// # Safety
/// The current VMCS has host state that is this CPU's, and EPT and bitmaps that keep the
/// guest to what is its own; `registers` go with this VMCS. Interrupts are disabled. The
/// guest's floating-point, debug and syscall registers are live: the host uses none of
/// them.
#[inline]
pub unsafe fn enter(registers: &mut GuestRegisters, launched: bool) -> Result<(), EntryFailed> {
    // SAFETY: by the contract above. The assembly saves what the C calling convention
    // demands; a VM exit restores RSP and the segment registers from the host state, and
    // clears RFLAGS (so that the direction flag is off, as Rust expects).
    if unsafe { (registers.path)(registers, launched) } == 0 {
        Ok(())
    } else {
        Err(EntryFailed)
    }
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
