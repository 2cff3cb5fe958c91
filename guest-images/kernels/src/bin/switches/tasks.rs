//! Switches to the target in 32-bit protected mode: by hardware tasks, by MOV to CR3, and with paging
//! off in between.

use core::fmt::Write;
use core::ptr::{addr_of, addr_of_mut};

use kernels::{Report, memory};

use crate::operator;

/// The address at which each address space has a page of its own, of 4 MiB.
const PRIVATE: u32 = 0x4000_0000;
/// The physical pages there, which nobody else uses: the other's, and the target's.
const PAGES: [u32; 2] = [16 << 20, 20 << 20];
const CONTENTS: [u32; 2] = [0x0bad, 0x600d];
/// Switches to the target in a round.
const SWITCHES_IN_ROUND: u64 = 4;

const FLAT_DATA: u32 = 0x10;
const FLAT_CODE: u32 = 0x18;

#[allow(missing_docs, reason = "labels of the code below")]
unsafe extern "C" {
    fn switches_run();
    fn switches_target();
    static mut switches_gdt: [u64; 6];
    static mut switches_main_tss: [u32; 26];
    static mut switches_target_tss: [u32; 26];
    static mut switches_stacks: [u8; 2 * 4096];
    static mut switches_roots: [u32; 2];
    static mut switches_rounds: u32;
    static mut switches_wrong: u32;
    static mut switches_line: [u8; LINE];
}

/// Room for a line, with the zero byte that ends it.
const LINE: usize = 64;

core::arch::global_asm!(
    r#"
.set SWITCHES_MAIN, 0x20
.set SWITCHES_TARGET, 0x28
.set PRIVATE, 0x40000000
.set COM1, 0x3f8
.set LINE_STATUS, 0x3fd

.macro check content                    # what this address space has
    cmp dword ptr [PRIVATE], \content
    je 9f
    inc dword ptr [switches_wrong]
9:
.endm
.macro far_to instruction, selector         # an offset that means nothing
    .byte \instruction
    .long 0xf4f4f4f4
    .word \selector
.endm

.pushsection .text.switches, "ax", @progbits
.code64
.global switches_run
switches_run:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    cli
    mov [rip + switches_saved_rsp], rsp
    sgdt [rip + switches_saved_gdt]
    str word ptr [rip + switches_saved_tr]
    mov rax, cr3
    mov [rip + switches_saved_cr3], rax
    mov rax, cr0
    mov [rip + switches_saved_cr0], rax
    mov rax, cr4
    mov [rip + switches_saved_cr4], rax
    lgdt [rip + switches_gdt_pointer]
    push 0x18
    lea rax, [rip + 2f]
    push rax
    retfq

.code32
2:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov esp, offset switches_stacks + 4096
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, cr4
    and eax, 0xffffffdf                 # not PAE
    or eax, 0x10                        # PSE
    mov cr4, eax
    mov eax, [switches_roots]
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, SWITCHES_MAIN
    ltr ax

    # Runs for a while before it asks, so that it is seen how it pages.
    mov ecx, 10000000
3:  dec ecx
    jnz 3b
    mov esi, offset switches_line
4:  mov dx, LINE_STATUS
    in al, dx
    test al, 0x20
    jz 4b
    mov al, [esi]
    test al, al
    jz 5f
    mov dx, COM1
    out dx, al
    inc esi
    jmp 4b
5:  mov ecx, 100000
6:  dec ecx
    jnz 6b
    mov dx, LINE_STATUS
    in al, dx
    test al, 1
    jz 5b
    mov dx, COM1
    in al, dx

    # JMP to the target's task, which jumps back
7:  check 0x0bad
    mov dword ptr [switches_is_called], 0
    far_to 0xea, SWITCHES_TARGET
    check 0x0bad
    # CALL, from which it returns
    mov dword ptr [switches_is_called], 1
    far_to 0x9a, SWITCHES_TARGET
    check 0x0bad
    # MOV to CR3
    mov eax, [switches_roots + 4]
    mov cr3, eax
    check 0x600d
    mov eax, [switches_roots]
    mov cr3, eax
    check 0x0bad
    # MOV to CR3 while paging is off
    mov ebx, cr0
    mov ecx, ebx
    and ecx, 0x7fffffff
    mov cr0, ecx
    mov eax, [switches_roots + 4]
    mov cr3, eax
    mov cr0, ebx
    check 0x600d
    mov eax, [switches_roots]
    mov cr3, eax
    dec dword ptr [switches_rounds]
    jnz 7b

    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, [switches_saved_cr4]
    mov cr4, eax
    mov eax, [switches_saved_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, [switches_saved_cr0]
    mov cr0, eax
    .byte 0xea
    .long 8f
    .word 0x08

.code64
8:  lgdt [rip + switches_saved_gdt]
    movzx eax, word ptr [rip + switches_saved_tr]
    mov rcx, [rip + switches_saved_gdt + 2]
    and byte ptr [rcx + rax + 5], 0xfd  # not busy
    ltr ax
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [rip + switches_saved_rsp]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.code32
.global switches_target
switches_target:
    check 0x600d
    cmp dword ptr [switches_is_called], 0
    je 2f
    iretd
    jmp switches_target
2:  far_to 0xea, SWITCHES_MAIN
    jmp switches_target
.code64
.popsection

.pushsection .data.switches, "aw", @progbits
.balign 8
switches_gdt_pointer:
    .word 6 * 8 - 1
    .quad switches_gdt
.popsection

.pushsection .bss.switches, "aw", @nobits
.balign 16
.global switches_gdt, switches_main_tss, switches_target_tss, switches_stacks, switches_roots
.global switches_rounds, switches_wrong, switches_line
switches_gdt: .skip 6 * 8
.balign 16
switches_main_tss: .skip 104
.balign 16
switches_target_tss: .skip 104
.balign 16
switches_stacks: .skip 2 * 4096
switches_saved_rsp: .skip 8
switches_saved_cr0: .skip 8
switches_saved_cr3: .skip 8
switches_saved_cr4: .skip 8
switches_saved_gdt: .skip 16
switches_saved_tr: .skip 8
switches_roots: .skip 8
switches_rounds: .skip 4
switches_wrong: .skip 4
switches_is_called: .skip 4
switches_line: .skip {LINE}
.popsection
"#,
    LINE = const LINE,
);

/// A line, to be printed by the code above.
struct Line {
    text: [u8; LINE],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // One byte stays zero.
        let room = self.text[..LINE - 1].get_mut(self.length..);
        let place = room.and_then(|room| room.get_mut(..text.len()));
        place
            .ok_or(core::fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

fn descriptor(base: usize, limit: u64, access: u64) -> u64 {
    let base = base as u64;
    limit | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56
}

/// A page directory that maps the first GiB and the last two one to one, and `page` at [`PRIVATE`].
fn page_directory(page: u32) -> u32 {
    /// Present, writable, 4 MiB.
    const FLAGS: u32 = 0x83;
    let table = memory::allocate().cast::<u32>();
    for entry in 0..1024_u32 {
        let address = entry << 22;
        let to = if address == PRIVATE { page } else { address };
        // SAFETY: a fresh page has room for 1024 entries.
        unsafe { table.add(entry as usize).write(to | FLAGS) };
    }
    table as u32
}

fn tss(cr3: u32, eip: usize, esp: usize) -> [u32; 26] {
    let mut tss = [0; 26];
    tss[0x1c / 4] = cr3;
    tss[0x20 / 4] = eip as u32;
    tss[0x24 / 4] = 2;
    tss[0x38 / 4] = esp as u32;
    for (offset, selector) in [
        (0x48, FLAT_DATA),
        (0x4c, FLAT_CODE),
        (0x50, FLAT_DATA),
        (0x54, FLAT_DATA),
    ] {
        tss[offset / 4] = selector;
    }
    tss[0x64 / 4] = 104 << 16;
    tss
}

/// Prepares all that the code above needs for `rounds` rounds.
fn prepare(rounds: u32) {
    const TSS_32: u64 = 0x89;
    for (page, content) in PAGES.into_iter().zip(CONTENTS) {
        // SAFETY: RAM in the one-to-one map, which nobody uses.
        unsafe { (page as usize as *mut u32).write(content) };
    }
    let roots = PAGES.map(page_directory);
    let mut line = Line {
        text: [0; LINE],
        length: 0,
    };
    // There is room for a number of eight digits.
    let _ = writeln!(line, "switches: suppress {:#x}", roots[1]);
    let stacks = addr_of!(switches_stacks) as usize;
    let target = switches_target as *const () as usize;
    // SAFETY: one CPU, and nobody looks at these before the code runs.
    unsafe {
        addr_of_mut!(switches_gdt).write([
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            descriptor(addr_of!(switches_main_tss) as usize, 103, TSS_32),
            descriptor(addr_of!(switches_target_tss) as usize, 103, TSS_32),
        ]);
        addr_of_mut!(switches_main_tss).write(tss(roots[0], 0, 0));
        addr_of_mut!(switches_target_tss).write(tss(roots[1], target, stacks + 2 * 4096));
        addr_of_mut!(switches_roots).write(roots);
        addr_of_mut!(switches_rounds).write(rounds);
        addr_of_mut!(switches_line).write(line.text);
    }
}

/// Switches to a target by tasks and the other ways of 32-bit paging, `count` times.
pub(crate) fn run(report: &mut Report, count: u64) {
    let rounds = count.div_ceil(SWITCHES_IN_ROUND).max(1);
    prepare(rounds as u32);
    operator::measure("tasks-and-32-bit-paging", || {
        // SAFETY: all is prepared; the code comes back with everything as it was.
        unsafe { switches_run() };
        rounds * SWITCHES_IN_ROUND
    });
    operator::release();
    // SAFETY: the code is over.
    let wrong = unsafe { addr_of!(switches_wrong).read() };
    report.equal(
        "32-bit: each read finds what its address space has",
        wrong,
        0,
    );
}
