//! Registers that a hypervisor does not save by itself survive exits.

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use arch::apic::DEFAULT_ADDRESS;
use kernels::Report;
use x86_64::registers::control::{Cr4, Cr4Flags};

/// 16 registers of up to 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(32))]
struct Registers([u64; 64]);

/// What causes exits between the load and the store: CPUID, RDMSR, IN, device memory.
macro_rules! exits {
    () => {
        "push rbx
         xor eax, eax
         cpuid
         mov ecx, 0x1b
         rdmsr
         mov dx, 0x61
         in al, dx
         mov eax, [rdi]
         pop rbx"
    };
}

pub(crate) fn test(report: &mut Report) {
    general(report);
    let pattern = Registers(core::array::from_fn(|index| {
        0x0101_0101_0101_0101 * (index as u64 + 1)
    }));
    let mut stored = Registers([0; 64]);
    // SAFETY: CR4.OSFXSR is set; no code here uses XMM registers, so none is to be kept; the
    // memory is 16 registers of 16 bytes.
    unsafe {
        asm!(
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
             movups xmm\\n, [r8 + \\n * 16]
             .endr",
            exits!(),
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
             movups [r9 + \\n * 16], xmm\\n
             .endr",
            in("r8") &raw const pattern,
            in("r9") &raw mut stored,
            in("rdi") DEFAULT_ADDRESS + 0x30,
            out("rax") _, out("rcx") _, out("rdx") _,
        );
    }
    report.same(
        "XMM registers survive exits",
        &stored.0[..32],
        &pattern.0[..32],
    );

    if __cpuid(1).ecx & 1 << 28 == 0 {
        report.skip("YMM registers survive exits", "no AVX");
        return;
    }
    // SAFETY: no code here uses extended state; XCR0 = x87, SSE and AVX is legal where AVX is.
    unsafe {
        Cr4::write(Cr4::read() | Cr4Flags::OSXSAVE);
        asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0);
        asm!(
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
             vmovups ymm\\n, [r8 + \\n * 32]
             .endr",
            exits!(),
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
             vmovups [r9 + \\n * 32], ymm\\n
             .endr",
            in("r8") &raw const pattern,
            in("r9") &raw mut stored,
            in("rdi") DEFAULT_ADDRESS + 0x30,
            out("rax") _, out("rcx") _, out("rdx") _,
        );
    }
    report.same("YMM registers survive exits", stored, pattern);
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set.
    unsafe {
        asm!(exits!(), "xor ecx, ecx", "xgetbv", in("rdi") DEFAULT_ADDRESS + 0x30, out("eax") low, out("edx") high, out("ecx") _)
    };
    report.equal(
        "XCR0 survives exits",
        u64::from(high) << 32 | u64::from(low),
        7,
    );
}

/// All general registers, RFLAGS and CR2 are as before after IN and device memory reads.
fn general(report: &mut Report) {
    let mut after = [0_u64; 14];
    let flags: u64;
    // SAFETY: all registers are put back but those declared; RBX and RBP are saved by hand.
    unsafe {
        asm!(
            "push rbx
             push rbp
             push rsi
             mov rbx, 0x1000000000000001
             mov rcx, 0x2000000000000002
             mov rbp, 0x3000000000000003
             mov rsi, 0x4000000000000004
             mov r8, 0x8000000000000008
             mov r9, 0x9000000000000009
             mov r10, 0xa00000000000000a
             mov r11, 0xb00000000000000b
             mov r12, 0xc00000000000000c
             mov r13, 0xd00000000000000d
             mov r14, 0xe00000000000000e
             mov r15, 0xf00000000000000f
             mov edx, 0x61
             mov rax, 0x08d5
             push rax
             popfq
             in al, dx
             mov eax, [rdi]
             pushfq
             pop rdx
             pop rax
             mov [rax], rbx
             mov [rax + 8], rcx
             mov [rax + 16], rbp
             mov [rax + 24], rsi
             mov [rax + 32], r8
             mov [rax + 40], r9
             mov [rax + 48], r10
             mov [rax + 56], r11
             mov [rax + 64], r12
             mov [rax + 72], r13
             mov [rax + 80], r14
             mov [rax + 88], r15
             mov [rax + 96], rdi
             mov [rax + 104], rsp
             pop rbp
             pop rbx
             sub [rax + 104], rsp",
            in("rdi") DEFAULT_ADDRESS + 0x30,
            out("rax") _, out("rcx") _, out("rdx") flags, inout("rsi") &raw mut after => _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    let numbers = [1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15_u64];
    let expected: [u64; 12] = numbers.map(|number| number << 60 | number);
    report.same(
        "general registers survive exits",
        &after[..12],
        &expected[..],
    );
    report.equal("RDI survives exits", after[12], DEFAULT_ADDRESS + 0x30);
    report.equal("RSP survives exits", after[13] as i64, -16);
    report.equal("arithmetic flags survive exits", flags & 0x0cd5, 0x08d5);
}
