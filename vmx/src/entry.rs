//! VM entry and VM exit: the only way into the guest and back (SDM vol. 3C, ch. 27 and 28).

use core::arch::{asm, global_asm};
use core::mem::offset_of;

/// The guest's general-purpose registers, as far as the VMCS does not hold them (it holds
/// RSP), and the ways into the guest and back.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct GuestRegisters {
    /// The registers by their encoding: RAX, RCX, RDX, RBX, (unused), RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// The value of the VMCS field "host RSP" when it was last written.
    host_rsp: u64,
    /// The way into the guest and back.
    path: EntryPath,
    /// The way that an exit cost is put around.
    path_without_cost: EntryPath,
    /// The extra cost of a round trip, in host TSC ticks.
    exit_cost: u64,
    /// The values of IA32_SPEC_CTRL: in the guest, and out of it.
    guest_spec_ctrl: u64,
    host_spec_ctrl: u64,
    guards: Guards,
    /// Whether the guest has been entered since its VMCS was cleared, as a number.
    launched: u32,
}

/// The code that enters the guest and comes back after its exit, with flags that say how it was. It
/// has a calling convention of its own: see [`enter`].
type EntryPath = unsafe extern "C" fn();

bitflags::bitflags! {
    /// What is done at entries and exits besides.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Guards: u32 {
        /// The guest has an IA32_SPEC_CTRL of its own.
        const SPEC_CTRL = 1 << 0;
        /// It writes that without exits.
        const SPEC_CTRL_IS_SHARED = 1 << 1;
        /// All entries of the return stack buffer are replaced at exits.
        const FILL_RETURN_STACK = 1 << 2;
        /// A call comes first at exits.
        const CALL_FIRST = 1 << 3;
    }
}

/// The treatment at exits of the return stack buffer, by which the CPU predicts returns: a guest may have
/// filled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnStack {
    /// Nothing.
    Keep,
    /// A call, after which nothing is executed before it is known: the CPU takes the guest's entries for valid until
    /// then, although it has IBRS (post-barrier return stack buffer predictions).
    CallFirst,
    /// All entries are to be replaced.
    Fill,
}

/// The things that are done at each entry of a guest and at each exit besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorldSwitch {
    /// The extra cost of a round trip, in host TSC ticks: a model for measuring, zero otherwise. In an emulator an
    /// exit and an entry take a tick or two; on a processor they take one to two thousand, and under another
    /// hypervisor tens of thousands. With an exit cost, each round trip takes that many ticks of the host's TSC more:
    /// one half passes right before the entry, the other between the exit and the moment it is seen.
    pub exit_cost: u64,
    /// The treatment of the return stack buffer at exits.
    pub return_stack: ReturnStack,
    /// The host's IA32_SPEC_CTRL; zero if the CPU has none.
    pub spec_ctrl: u64,
    /// Whether that is to be written at each exit, as IBRS that is not enhanced counts only then.
    pub writes_spec_ctrl: bool,
}

impl WorldSwitch {
    /// Nothing.
    pub const PLAIN: Self = Self {
        exit_cost: 0,
        return_stack: ReturnStack::Keep,
        spec_ctrl: 0,
        writes_spec_ctrl: false,
    };
}

/// The place that VM exits of a guest go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitAddress(u64);

impl ExitAddress {
    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

/// VM entry did not happen: VMLAUNCH or VMRESUME failed. (An entry that fails in loading
/// guest state comes back as an exit instead.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFailed;

impl GuestRegisters {
    /// Zeros, of a guest whose VMCS is cleared, with `switch` at its entries and exits.
    #[must_use]
    pub fn new(switch: &WorldSwitch) -> Self {
        let mut registers = Self {
            gpr: [0; 16],
            host_rsp: 0,
            path: tarpit_vm_enter,
            path_without_cost: tarpit_vm_enter,
            exit_cost: switch.exit_cost,
            guest_spec_ctrl: 0,
            host_spec_ctrl: switch.spec_ctrl,
            guards: match switch.return_stack {
                ReturnStack::Keep => Guards::empty(),
                ReturnStack::CallFirst => Guards::CALL_FIRST,
                ReturnStack::Fill => Guards::FILL_RETURN_STACK,
            },
            launched: 0,
        };
        registers
            .guards
            .set(Guards::SPEC_CTRL, switch.writes_spec_ctrl);
        registers.choose_path();
        registers
    }

    fn choose_path(&mut self) {
        self.path_without_cost = if self.guards.contains(Guards::SPEC_CTRL) {
            tarpit_vm_enter_with_spec_ctrl
        } else {
            tarpit_vm_enter
        };
        self.path = if self.exit_cost == 0 {
            self.path_without_cost
        } else {
            tarpit_vm_enter_at_a_cost
        };
    }

    /// Has IA32_SPEC_CTRL be `guest` while the guest runs, and the host's as soon as it has exited. `is_shared`: the
    /// guest writes it without exits.
    ///
    /// From now on VM exits may have to go [elsewhere](Self::exit_address).
    ///
    /// # Safety
    /// The CPU has the register, and it takes the value.
    pub unsafe fn set_spec_ctrl(&mut self, guest: u64, is_shared: bool) {
        self.guest_spec_ctrl = guest;
        self.guards |= Guards::SPEC_CTRL;
        self.guards.set(Guards::SPEC_CTRL_IS_SHARED, is_shared);
        self.choose_path();
    }

    /// Returns the guest's IA32_SPEC_CTRL, if it has one of its own.
    #[must_use]
    pub fn spec_ctrl(&self) -> Option<u64> {
        self.guards
            .contains(Guards::SPEC_CTRL)
            .then_some(self.guest_spec_ctrl)
    }

    /// Returns where VM exits are to go, according to what is to be done then.
    #[must_use]
    pub fn exit_address(&self) -> ExitAddress {
        let code: EntryPath = if self.guards.is_empty() {
            tarpit_vm_exit
        } else {
            tarpit_guarded_vm_exit
        };
        ExitAddress(code as *const () as u64)
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
    // The registers are found where the entry has left their address, and RDI is on the stack.
    ".macro tarpit_save_guest_registers",
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
    ".endm",
    // RDI has the registers; changes RAX, RCX and RDX.
    ".macro tarpit_write_spec_ctrl value",
    "mov ecx, {IA32_SPEC_CTRL}",
    "mov eax, [rdi + \\value]",
    "mov edx, [rdi + \\value + 4]",
    "wrmsr",
    ".endm",
    ".global tarpit_vm_enter",
    ".global tarpit_vm_enter_with_spec_ctrl",
    ".global tarpit_vm_enter_at_a_cost",
    ".global tarpit_vm_exit",
    ".global tarpit_guarded_vm_exit",
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
    "tarpit_save_guest_registers",
    "pop rdi",
    "pop rbp",
    "pop rbx",
    "ret",
    // The same, where something has to be done before the host executes an indirect branch or a return.
    "tarpit_guarded_vm_exit:",
    "tarpit_save_guest_registers",
    "mov rdi, [rsp]",
    "test dword ptr [rdi + {guards}], {FILL_RETURN_STACK}",
    "jz 5f",
    // 32 calls, two a round. What is predicted to return to behind them stays there.
    "mov eax, 16",
    "6:",
    "call 8f",
    "7:",
    "pause",
    "lfence",
    "jmp 7b",
    "8:",
    "call 9f",
    "20:",
    "pause",
    "lfence",
    "jmp 20b",
    "9:",
    "dec eax",
    "jnz 6b",
    "add rsp, 32 * 8",
    "5:",
    "test dword ptr [rdi + {guards}], {CALL_FIRST}",
    "jz 21f",
    "call 22f",
    "int3",
    "22:",
    "add rsp, 8",
    "21:",
    "test dword ptr [rdi + {guards}], {SPEC_CTRL}",
    "jz 23f",
    "test dword ptr [rdi + {guards}], {SPEC_CTRL_IS_SHARED}",
    "jz 24f",
    "mov ecx, {IA32_SPEC_CTRL}",
    "rdmsr",
    "mov [rdi + {guest_spec_ctrl}], eax",
    "mov [rdi + {guest_spec_ctrl} + 4], edx",
    "24:",
    "tarpit_write_spec_ctrl {host_spec_ctrl}",
    "23:",
    // Nothing goes on by a prediction of what was tested.
    "lfence",
    // It was an exit: CF and ZF are clear.
    "test rsp, rsp",
    "pop rdi",
    "pop rbp",
    "pop rbx",
    "ret",
    // With the guest's IA32_SPEC_CTRL. If there was no entry, the host's comes back here.
    "tarpit_vm_enter_with_spec_ctrl:",
    "tarpit_write_spec_ctrl {guest_spec_ctrl}",
    "call tarpit_vm_enter",
    "ja 25f",
    "pushfq",
    "tarpit_write_spec_ctrl {host_spec_ctrl}",
    "popfq",
    "25:",
    "ret",
    // The same, and each round trip takes the registers' exit cost more.
    "tarpit_vm_enter_at_a_cost:",
    "push rdi",
    "mov rdi, [rdi + {exit_cost}]",
    "shr rdi",
    "call {burn}",
    "mov rdi, [rsp]",
    "call qword ptr [rdi + {path_without_cost}]",
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
    ".purgem tarpit_load_guest_registers",
    ".purgem tarpit_save_guest_registers",
    ".purgem tarpit_write_spec_ctrl",
    host_rsp = const offset_of!(GuestRegisters, host_rsp),
    launched = const offset_of!(GuestRegisters, launched),
    path_without_cost = const offset_of!(GuestRegisters, path_without_cost),
    exit_cost = const offset_of!(GuestRegisters, exit_cost),
    guest_spec_ctrl = const offset_of!(GuestRegisters, guest_spec_ctrl),
    host_spec_ctrl = const offset_of!(GuestRegisters, host_spec_ctrl),
    guards = const offset_of!(GuestRegisters, guards),
    SPEC_CTRL = const Guards::SPEC_CTRL.bits(),
    SPEC_CTRL_IS_SHARED = const Guards::SPEC_CTRL_IS_SHARED.bits(),
    FILL_RETURN_STACK = const Guards::FILL_RETURN_STACK.bits(),
    CALL_FIRST = const Guards::CALL_FIRST.bits(),
    IA32_SPEC_CTRL = const arch::msr::IA32_SPEC_CTRL,
    burn = sym burn,
);

unsafe extern "C" {
    fn tarpit_vm_enter();
    fn tarpit_vm_enter_with_spec_ctrl();
    fn tarpit_vm_enter_at_a_cost();
    fn tarpit_vm_exit();
    fn tarpit_guarded_vm_exit();
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
/// registers are live: the host uses none of them. The CPU has IA32_SPEC_CTRL, with the host's bits, if the
/// registers' [`WorldSwitch`] has it written.
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

    fn guarded(return_stack: ReturnStack) -> GuestRegisters {
        GuestRegisters::new(&WorldSwitch {
            return_stack,
            ..WorldSwitch::PLAIN
        })
    }

    #[test]
    fn nothing_is_between_the_guest_and_its_exit_where_nothing_is_asked_for() {
        let plain = GuestRegisters::new(&WorldSwitch::PLAIN);
        assert_eq!(plain.path as usize, tarpit_vm_enter as *const () as usize);
        assert_eq!(
            plain.exit_address().get(),
            tarpit_vm_exit as *const () as u64
        );
        let at_a_cost = GuestRegisters::new(&WorldSwitch {
            exit_cost: 1,
            ..WorldSwitch::PLAIN
        });
        assert_ne!(at_a_cost.path as usize, plain.path as usize);
        assert_eq!(at_a_cost.exit_address(), plain.exit_address());
        for return_stack in [ReturnStack::CallFirst, ReturnStack::Fill] {
            let registers = guarded(return_stack);
            assert_ne!(registers.exit_address(), plain.exit_address());
            assert_eq!(registers.path as usize, plain.path as usize);
        }
    }

    /// Lets the code at exits run as after an exit of a guest with these registers, of which RDI is their address, and
    /// returns whether it left flags that tell of an exit, and the registers that it must restore.
    fn exit_with(registers: &mut GuestRegisters) -> bool {
        let flags: u64;
        let address = registers.exit_address().get();
        // SAFETY: the stack is as the entry leaves it, with RBX, RBP and the registers' address, and the code returns.
        // It touches no MSR, as the guest has no IA32_SPEC_CTRL of its own.
        unsafe {
            asm!(
                "lea r15, [rip + 2f]",
                "push r15",
                "push rbx",
                "push rbp",
                "push rdi",
                // As an entry that has failed leaves them.
                "stc",
                "mov r15, 15",
                "jmp rsi",
                "2:",
                "pushfq",
                "pop rax",
                in("rdi") &raw mut *registers,
                in("rsi") address,
                out("rax") flags, out("rcx") _, out("rdx") _, out("r15") _,
            );
        }
        flags & 0x41 == 0
    }

    #[test]
    fn whatever_is_done_at_exits_saves_the_guests_registers_and_tells_of_an_exit() {
        for return_stack in [ReturnStack::CallFirst, ReturnStack::Fill] {
            let mut registers = guarded(return_stack);
            assert!(exit_with(&mut registers), "{return_stack:?}");
            let address = &raw const registers as u64;
            assert_eq!(registers.gpr[7], address, "{return_stack:?}");
            assert_eq!(registers.gpr[6], registers.exit_address().get());
            assert_eq!(registers.gpr[15], 15);
        }
    }

    #[test]
    fn a_guest_with_controls_of_its_own_has_them_only_on_its_own_way() {
        for exit_cost in [0, 1] {
            let mut registers = GuestRegisters::new(&WorldSwitch {
                exit_cost,
                spec_ctrl: 1,
                ..WorldSwitch::PLAIN
            });
            let before = (registers.path as usize, registers.exit_address());
            assert_eq!(registers.spec_ctrl(), None);
            // SAFETY: it is never entered.
            unsafe { registers.set_spec_ctrl(4, false) };
            assert_eq!(registers.spec_ctrl(), Some(4));
            assert_ne!(registers.exit_address(), before.1);
            assert_eq!(
                registers.path_without_cost as usize,
                tarpit_vm_enter_with_spec_ctrl as *const () as usize
            );
            assert_eq!(registers.path as usize == before.0, exit_cost != 0);
        }
    }

    #[test]
    fn a_host_that_writes_its_controls_at_exits_does_so_from_the_first_one_on() {
        let registers = GuestRegisters::new(&WorldSwitch {
            spec_ctrl: 1,
            writes_spec_ctrl: true,
            ..WorldSwitch::PLAIN
        });
        assert_eq!(registers.spec_ctrl(), Some(0));
        assert_ne!(
            registers.exit_address().get(),
            tarpit_vm_exit as *const () as u64
        );
    }
}
