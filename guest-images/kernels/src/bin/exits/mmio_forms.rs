//! Device memory by every instruction form that compilers and kernels use for it.
//!
//! Each instruction runs twice, on RAM and on a device register that merely holds what is written
//! to it, and must do the same: to the memory, to the registers, to the flags. 32 and 64 bits go to
//! a comparator of the HPET, 8 and 16 bits to the I/O APIC's index register.

use core::arch::asm;

use kernels::hpet::{CONFIGURATION, Hpet};
use kernels::interrupts::catch;
use kernels::{Report, ioapic, mmio};

/// CF, PF, ZF, SF and OF: the flags that all these instructions define, AF being undefined for some.
const FLAGS: u64 = 0x8c5;
/// CF alone, for the bit tests.
const CARRY: u64 = arch::RFlags::CARRY_FLAG.bits();

/// HPET timer: its comparator has 64 bits.
const TIMER_64BIT: u64 = 1 << 5;

/// The effect of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Effect {
    memory: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    /// The distances that RSI and RDI moved.
    rsi: u64,
    rdi: u64,
    flags: u64,
}

/// The place that an instruction accesses, which holds what is written to it.
#[derive(Clone, Copy)]
struct Place {
    address: u64,
    /// The bits that the place holds.
    mask: u64,
    /// Whether plain moves of 64 bits set and read it; else they are of 32 bits.
    wide: bool,
}

impl Place {
    fn set(self, value: u64) {
        // SAFETY: the places are RAM of this module's, or registers without an effect.
        unsafe {
            if self.wide {
                mmio::write64(self.address, value);
            } else {
                mmio::write32(self.address, value as u32);
            }
        }
    }

    fn get(self) -> u64 {
        // SAFETY: as above.
        unsafe {
            if self.wide {
                mmio::read64(self.address)
            } else {
                u64::from(mmio::read32(self.address))
            }
        }
    }
}

/// Runs `$instruction` with RDI at the place, RSI at other memory, and the registers given.
macro_rules! run {
    ($place:expr, $memory:expr, $rax:expr, $rcx:expr, $rdx:expr, $flags:expr, $instruction:literal) => {{
        let place: Place = $place;
        let other = [0x1122_3344_5566_7788_u64, 0x99aa_bbcc_ddee_ff00];
        place.set($memory);
        let mut effect = Effect::default();
        let outcome = catch(|| {
            let source = core::hint::black_box(&other).as_ptr() as u64;
            let (rax, rcx, rdx, rsi, rdi, flags): (u64, u64, u64, u64, u64, u64);
            // SAFETY: the instructions touch the place, the other memory and the registers only;
            // FS and R8 to R15 are free.
            unsafe {
                asm!(
                    "xor r8d, r8d", // defined flags: ZF and PF
                    "mov r8, rdi",
                    "mov r9d, 2",
                    $instruction,
                    "pushfq",
                    "cld",
                    "pop r10",
                    inout("rax") $rax => rax, inout("rcx") $rcx => rcx, inout("rdx") $rdx => rdx,
                    inout("rsi") source => rsi, inout("rdi") place.address => rdi,
                    out("r8") _, out("r9") _, out("r10") flags, out("r11") _,
                );
            }
            effect = Effect {
                memory: 0,
                rax,
                rcx,
                rdx,
                rsi: rsi.wrapping_sub(source),
                rdi: rdi.wrapping_sub(place.address),
                flags: flags & $flags,
            };
        });
        effect.memory = place.get() & place.mask;
        outcome.map(|()| effect)
    }};
}

/// Compares `$instruction` on the device with the same on RAM.
macro_rules! form {
    ($report:expr, $places:expr, $instruction:literal) => {
        form!($report, $places, $instruction, FLAGS)
    };
    ($report:expr, $places:expr, $instruction:literal, $flags:expr) => {
        for (memory, rax) in $places.values {
            let [ram, device] = $places.pair.map(|place| {
                run!(
                    place,
                    memory,
                    rax,
                    1_u64,
                    0xfedc_ba98_7654_3210_u64,
                    $flags,
                    $instruction
                )
            });
            $report.same(concat!("device memory: ", $instruction), device, ram);
        }
    };
}

/// RAM and a register, and what they hold and RAX is when an instruction starts.
struct Places {
    pair: [Place; 2],
    values: [(u64, u64); 2],
}

pub(crate) fn test(report: &mut Report) {
    let mut ram = [0_u64; 2];
    let ram = ram.as_mut_ptr() as u64;
    let pair = |device, mask, wide| {
        [ram, device].map(|address| Place {
            address,
            mask,
            wide,
        })
    };

    if let Some(hpet) = Hpet::find() {
        hpet.stop();
        report.equal("the HPET is stopped", hpet.read(CONFIGURATION) & 1, 0);
        let comparator = hpet.address(Hpet::comparator(1));
        longs(
            report,
            &Places {
                pair: pair(comparator, 0xffff_ffff, false),
                values: [(0x0f0f_1234, 0xaaaa_5555_8000_0001), (0xffff_ffff, 1)],
            },
        );
        if hpet.read(Hpet::timer(1)) & TIMER_64BIT != 0 {
            quads(
                report,
                &Places {
                    pair: pair(comparator, u64::MAX, true),
                    values: [
                        (0x0f0f_1234_89ab_cdef, 0x8000_0000_0000_0001),
                        (u64::MAX, 0xffff_ffff),
                    ],
                },
            );
        } else {
            report.skip("64-bit device memory", "the HPET's timer 1 has 32 bits");
        }
        hpet.write(Hpet::comparator(1), u64::MAX);
        wide_loads(report, &hpet);
    } else {
        report.skip("32-bit and 64-bit device memory", "no HPET");
    }
    bytes(
        report,
        &Places {
            pair: pair(ioapic::SELECT, 0xff, false),
            values: [(0x11, 0x2222_2222_2222_2280), (0xf3, 0x5)],
        },
    );
}

/// Moves of AVX: 32 bytes, and fewer, which clear the rest.
fn wide_loads(report: &mut Report, hpet: &Hpet) {
    const XSAVE_ENABLED_AND_AVX: u32 = 1 << 27 | 1 << 28;
    const SSE_AND_AVX: u32 = 0b110;
    let has_avx =
        core::arch::x86_64::__cpuid(1).ecx & XSAVE_ENABLED_AND_AVX == XSAVE_ENABLED_AND_AVX && {
            let xcr0: u32;
            // SAFETY: CR4.OSXSAVE is set.
            unsafe { asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _) };
            xcr0 & SSE_AND_AVX == SSE_AND_AVX
        };
    if !has_avx {
        report.skip("device memory: AVX", "not there, or not enabled");
        return;
    }
    // The registers of timer 0, which stand still.
    let place = hpet.address(Hpet::timer(0));
    let words: [u64; 4] = core::array::from_fn(|index| {
        // SAFETY: as above.
        unsafe { mmio::read64(place + 8 * index as u64) }
    });
    let mut loaded = [[0_u64; 4]; 3];
    // SAFETY: no code here uses vector registers.
    let outcome = catch(|| unsafe {
        asm!(
            "vmovdqu ymm0, [{place}]",
            "vmovdqu [{loaded}], ymm0",
            "vmovd xmm0, dword ptr [{place}]",
            "vmovdqu [{loaded} + 32], ymm0",
            place = in(reg) place,
            loaded = in(reg) loaded.as_mut_ptr(),
        );
    });
    report.same("device memory: moves of AVX", outcome, Ok(()));
    // SAFETY: as above.
    let outcome = catch(|| unsafe {
        asm!(
            "vxorps ymm1, ymm1, ymm1",
            "vorps ymm0, ymm1, [{place}]",
            "vmovdqu [{loaded}], ymm0",
            place = in(reg) place,
            loaded = in(reg) loaded[2].as_mut_ptr(),
        );
    });
    report.same("device memory: AVX", outcome, Ok(()));
    report.same("device memory: what AVX computes", loaded[2], words);
    report.same("device memory: 32 bytes", loaded[0], words);
    report.same(
        "device memory: 4 bytes to a cleared register",
        loaded[1],
        [words[0] & 0xffff_ffff, 0, 0, 0],
    );
}

fn longs(report: &mut Report, places: &Places) {
    form!(report, places, "mov eax, [rdi]");
    form!(report, places, "mov [rdi], eax");
    form!(report, places, "mov dword ptr [rdi], 0x87654321");
    form!(report, places, "mov r11d, [rdi]; mov eax, r11d");
    form!(report, places, "movsxd rax, dword ptr [rdi]");
    form!(report, places, "add [rdi], eax");
    form!(report, places, "add eax, [rdi]");
    form!(report, places, "add dword ptr [rdi], 0x7f");
    form!(report, places, "add dword ptr [rdi], -1");
    form!(report, places, "add dword ptr [rdi], 0x12345678");
    form!(report, places, "stc; adc [rdi], eax");
    form!(report, places, "sub [rdi], eax");
    form!(report, places, "sub eax, [rdi]");
    form!(report, places, "stc; sbb [rdi], eax");
    form!(report, places, "and [rdi], eax");
    form!(report, places, "and eax, [rdi]");
    form!(report, places, "and dword ptr [rdi], 0xffff00ff");
    form!(report, places, "or [rdi], eax");
    form!(report, places, "or eax, [rdi]");
    form!(report, places, "or dword ptr [rdi], 0x10");
    form!(report, places, "xor [rdi], eax");
    form!(report, places, "xor eax, [rdi]");
    form!(report, places, "cmp [rdi], eax");
    form!(report, places, "cmp eax, [rdi]");
    form!(report, places, "cmp dword ptr [rdi], 0x0f0f1234");
    form!(report, places, "test [rdi], eax");
    form!(report, places, "test dword ptr [rdi], 0x80000000");
    form!(report, places, "inc dword ptr [rdi]");
    form!(report, places, "dec dword ptr [rdi]");
    form!(report, places, "not dword ptr [rdi]");
    form!(report, places, "neg dword ptr [rdi]");
    form!(report, places, "xchg [rdi], eax");
    form!(report, places, "lock xadd [rdi], eax");
    form!(report, places, "lock add [rdi], eax");
    form!(report, places, "lock cmpxchg [rdi], edx");
    form!(report, places, "mov eax, 0x0f0f1234; cmpxchg [rdi], edx");
    form!(report, places, "bt dword ptr [rdi], 4", CARRY);
    form!(report, places, "bts dword ptr [rdi], 31", CARRY);
    form!(report, places, "btr dword ptr [rdi], 2", CARRY);
    form!(report, places, "btc dword ptr [rdi], 3", CARRY);
    form!(report, places, "bt [rdi], ecx", CARRY);
    form!(report, places, "stosd");
    form!(report, places, "rep stosd");
    form!(report, places, "movsd");
    form!(report, places, "rep movsd");
    form!(
        report,
        places,
        "mov r11, rsi; mov rsi, rdi; lea rdi, [rsp - 64]; movsd; mov eax, [rdi - 4]; mov rsi, r11; mov rdi, r8"
    );
    form!(report, places, "xchg rsi, rdi; lodsd; xchg rsi, rdi");
    form!(report, places, "scasd");
    form!(report, places, "cmpsd");
    form!(report, places, "mov [rdi + 0], eax");
    form!(report, places, "mov eax, [rdi + r9*4 - 8]");
    form!(report, places, "mov eax, [edi]");
    form!(
        report,
        places,
        "lea r11, [rdi - 0x1000]; mov eax, [r11 + 0x1000]"
    );
    form!(
        report,
        places,
        "lea r11, [rdi + r9]; neg r9; mov eax, [r11 + r9]"
    );
    form!(report, places, "mov eax, ds:[rdi]");
    form!(report, places, "movnti [rdi], eax");
    form!(report, places, "movbe eax, [rdi]");
    form!(report, places, "movbe [rdi], eax");
    form!(report, places, "imul eax, [rdi]", CARRY);
    form!(report, places, "cmovz eax, [rdi]");
    form!(report, places, "shl dword ptr [rdi], 4", CARRY);
    form!(report, places, "shr dword ptr [rdi], 1", CARRY);
    form!(report, places, "stc; rcl dword ptr [rdi], 3", CARRY);
    form!(report, places, "stc; rcr dword ptr [rdi], 1", CARRY);
    form!(report, places, "movd xmm0, [rdi]; movd eax, xmm0");
    form!(report, places, "movd xmm0, eax; movd [rdi], xmm0");
    form!(
        report,
        places,
        "fninit; fld dword ptr [rdi]; fadd dword ptr [rdi]; fstp dword ptr [rdi]"
    );
    form!(
        report,
        places,
        "fninit; fild dword ptr [rdi]; fistp dword ptr [rdi]"
    );
    form!(
        report,
        places,
        "movd mm0, dword ptr [rdi]; paddb mm0, mm0; movd dword ptr [rdi], mm0; emms"
    );
    form!(
        report,
        places,
        "movd xmm0, eax; addss xmm0, [rdi]; movd eax, xmm0"
    );
    form!(report, places, "movd xmm0, eax; ucomiss xmm0, [rdi]");
    form!(
        report,
        places,
        "cvtsi2sd xmm0, dword ptr [rdi]; movq rax, xmm0"
    );
    form!(report, places, "cvttss2si eax, dword ptr [rdi]");
    form!(report, places, "stmxcsr [rdi]");
}

fn quads(report: &mut Report, places: &Places) {
    form!(report, places, "mov rax, [rdi]");
    form!(report, places, "mov [rdi], rax");
    form!(report, places, "mov qword ptr [rdi], -2");
    form!(report, places, "mov qword ptr [rdi], 0x7abbccdd");
    form!(report, places, "mov r10, [r8]; mov rax, r10");
    form!(report, places, "add [rdi], rax");
    form!(report, places, "add qword ptr [rdi], 1");
    form!(report, places, "and [rdi], rax");
    form!(report, places, "or qword ptr [rdi], -0x80000000");
    form!(report, places, "xor rax, [rdi]");
    form!(report, places, "cmp [rdi], rax");
    form!(report, places, "cmp qword ptr [rdi], -1");
    form!(report, places, "test [rdi], rax");
    form!(report, places, "xchg [rdi], rax");
    form!(report, places, "lock xadd [rdi], rax");
    form!(report, places, "lock cmpxchg [rdi], rdx");
    form!(report, places, "mov rax, -1; lock cmpxchg [rdi], rdx");
    form!(report, places, "bts qword ptr [rdi], 63", CARRY);
    form!(report, places, "inc qword ptr [rdi]");
    form!(report, places, "stosq");
    form!(report, places, "movsq");
    form!(report, places, "push qword ptr [rdi]; pop rax");
    form!(report, places, "push rax; pop qword ptr [rdi]");
    form!(report, places, "movnti [rdi], rax");
    form!(report, places, "movq xmm0, qword ptr [rdi]; movq rax, xmm0");
    form!(report, places, "movq xmm0, rax; movq qword ptr [rdi], xmm0");
    form!(
        report,
        places,
        "fninit; fld qword ptr [rdi]; fadd qword ptr [rdi]; fstp qword ptr [rdi]"
    );
    form!(
        report,
        places,
        "movq mm0, [rdi]; paddw mm0, [rdi]; movq [rdi], mm0; emms"
    );
    form!(
        report,
        places,
        "movq xmm0, rax; mulsd xmm0, [rdi]; movlps [rdi], xmm0"
    );
    form!(
        report,
        places,
        "movups xmm0, [rdi]; movhlps xmm1, xmm0; movq rax, xmm0"
    );
    form!(report, places, "mov eax, [rdi + 4]");
    form!(report, places, "mov [rdi + 4], eax");
    form!(report, places, "mov ecx, 2; rep stosd");
    form!(report, places, "mov ecx, 2; rep movsd");
    form!(
        report,
        places,
        "lea rdi, [rdi + 4]; std; mov ecx, 2; rep stosd"
    );
}

fn bytes(report: &mut Report, places: &Places) {
    form!(report, places, "mov al, [rdi]");
    form!(report, places, "mov ah, [rdi]");
    form!(report, places, "mov [rdi], al");
    form!(report, places, "mov [rdi], ah");
    form!(report, places, "mov byte ptr [rdi], 0x77");
    form!(report, places, "movzx eax, byte ptr [rdi]");
    form!(report, places, "movzx rax, byte ptr [rdi]");
    form!(report, places, "movsx eax, byte ptr [rdi]");
    form!(report, places, "movsx rax, byte ptr [rdi]");
    form!(report, places, "movsx ax, byte ptr [rdi]");
    form!(report, places, "movzx eax, word ptr [rdi]");
    form!(report, places, "movsx rax, word ptr [rdi]");
    form!(report, places, "mov ax, [rdi]");
    form!(report, places, "mov [rdi], ax");
    form!(report, places, "mov word ptr [rdi], 0x44");
    form!(report, places, "add [rdi], al");
    form!(report, places, "and byte ptr [rdi], 0xf0");
    form!(report, places, "or [rdi], al");
    form!(report, places, "cmp byte ptr [rdi], 0x11");
    form!(report, places, "cmp al, [rdi]");
    form!(report, places, "test byte ptr [rdi], 0x80");
    form!(report, places, "xchg [rdi], al");
    form!(report, places, "stosb");
    form!(report, places, "movsb");
    form!(report, places, "xchg rsi, rdi; lodsb; xchg rsi, rdi");
    form!(report, places, "scasb");
    form!(report, places, "fninit; fnstcw word ptr [rdi]");
    form!(report, places, "setz byte ptr [rdi]");
    form!(report, places, "sete byte ptr [rdi]");
}
