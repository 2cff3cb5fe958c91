//! Instructions of a guest, run by the processor itself on a copy of their memory operand.
//!
//! Hundreds of instructions read or write memory beside registers of x87, MMX, SSE and AVX. The emulator
//! reads and writes the memory, and the processor does the rest: the instruction is written to a page of
//! ours, with its operand changed to 32 bytes at the beginning of the next page, addressed by RIP, and called.
//!
//! The other way would be to let the guest itself do it, by a second EPT mapping of the device's page and the
//! monitor trap flag. It needs no code of ours to be executable, and would do for all instructions; but
//! an entry for one instruction is an entry like any other, with events, other exits and requests of other
//! CPUs in the middle of an access to a device, and nothing of it could be tested on the host.
//!
//! There is one pair of pages for all CPUs, behind a lock, as hardly any guest does this. The page of
//! the code is never writable and executable at the same time: it is data, is written, becomes code
//! and is called, each by a change of the page tables.

use alloc::alloc::{Layout, alloc_zeroed};
use core::arch::{asm, naked_asm};
use core::ptr::NonNull;

use iced_x86::CpuidFeature;
use raw_cpuid::{CpuId, CpuIdReader};
use spin::Mutex;
use vmx::addr::PAGE_SIZE;

use super::memory::{OutOfMemory, PhysRange};
use super::paging::{self, Protection};
use crate::emulate::{Computation, Computed};

/// The distance in bytes from the first byte of an instruction to its memory operand.
const OPERAND_DISTANCE: u32 = crate::emulate::OPERAND_DISTANCE;
const _: () = assert!(OPERAND_DISTANCE as u64 == PAGE_SIZE, "the next page");
/// The size in bytes of the largest memory operand.
pub(crate) const OPERAND_SIZE: usize = 32;
/// RET, near.
const RET: u8 = 0xc3;
/// The offset in the second page of an area for FXSAVE.
const FXSAVE_OFFSET: usize = 1024;
/// The bits of an MXCSR that are flags of exceptions.
pub(crate) const MXCSR_FLAGS: u32 = 0x3f;

/// The pages.
struct Pages(NonNull<u8>);

// SAFETY: the pages are reached through the lock only.
unsafe impl Send for Pages {}

static PAGES: Mutex<Option<Pages>> = Mutex::new(None);

/// The registers that an instruction works on, and what becomes of them. All others are live.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Registers {
    /// The general-purpose registers. RSP stays the host's.
    pub gprs: [u64; 16],
    /// RFLAGS; only status flags may be set before.
    pub rflags: u64,
    /// MXCSR before the instruction, if it is a SIMD instruction. The register has it afterwards, too, with
    /// the flags that were raised.
    pub mxcsr: u32,
    mxcsr_during: u32,
    /// 1 to have all SIMD floating-point exceptions masked for the instruction.
    pub masks_simd: u32,
    /// The flags of SIMD floating-point exceptions that the instruction has raised, if they were masked.
    pub raised: u32,
    /// FSW after the instruction.
    pub fsw: u16,
    /// FCW after the instruction.
    pub fcw: u16,
    fop_padding: u16,
    /// FOP, the opcode that an x87 instruction leaves.
    pub fop: u16,
    fxsave_area: u64,
    code: u64,
    /// The address of an x87 instruction, for the guest.
    pub fip: u64,
    /// The address of its operand.
    pub fdp: u64,
    /// Whether it is an x87 instruction.
    pub has_x87_pointers: bool,
}

impl Registers {
    /// Makes the registers for `computation`.
    #[must_use]
    pub(crate) fn new(computation: &Computation<'_>) -> Self {
        let pointers = computation.x87;
        Self {
            gprs: computation.gprs,
            // Interrupts are off, and the one bit is always one.
            rflags: computation.rflags | 2,
            masks_simd: computation.is_simd.into(),
            fip: pointers.map_or(0, |it| it.instruction),
            fdp: pointers.map_or(0, |it| it.operand),
            fop: pointers.map_or(0, |it| it.opcode),
            has_x87_pointers: pointers.is_some(),
            ..Self::default()
        }
    }

    /// Returns what the registers say of how the instruction went.
    #[must_use]
    pub(crate) const fn outcome(&self) -> Computed {
        /// The exceptions with which an x87 instruction stores nothing: all but that of precision.
        const STORES_NOTHING: u16 = 0x1f;
        if self.masks_simd != 0 && self.raised & unmasked_simd_exceptions(self.mxcsr) != 0 {
            return Computed::SimdException;
        }
        if self.has_x87_pointers && self.fsw & !self.fcw & STORES_NOTHING != 0 {
            return Computed::X87Exception;
        }
        Computed::Done
    }

    /// Returns the flags that an exception of SIMD leaves in MXCSR: if one is not masked that is found before
    /// anything is computed, those that are found afterwards are not looked for (SDM vol. 1, 11.5.2).
    #[must_use]
    pub(crate) const fn simd_flags(&self) -> u32 {
        /// Invalid operation, denormal operand, division by zero.
        const BEFORE: u32 = 7;
        if self.raised & unmasked_simd_exceptions(self.mxcsr) & BEFORE != 0 {
            self.raised & BEFORE
        } else {
            self.raised
        }
    }
}

/// Returns the exceptions that this MXCSR does not mask, as its flags have them.
#[must_use]
pub(crate) const fn unmasked_simd_exceptions(mxcsr: u32) -> u32 {
    !mxcsr >> 7 & MXCSR_FLAGS
}

/// A failure to run an instruction: there was no memory for the pages when tarpit started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoPages;

/// Makes the pages. To be called once, before guests run.
///
/// # Errors
/// If there is no memory for them: no instruction can be run then.
pub(crate) fn prepare() -> Result<(), OutOfMemory> {
    let mut pages = PAGES.lock();
    if pages.is_none() {
        let size = 2 * PAGE_SIZE as usize;
        let Ok(layout) = Layout::from_size_align(size, PAGE_SIZE as usize) else {
            unreachable!("two pages are a layout")
        };
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(OutOfMemory {
            size: layout.size() as u64,
            alignment: PAGE_SIZE,
        })?;
        let made = Pages(memory);
        // From now on the page has an entry of its own in the tables, and changing it needs no memory.
        made.protect(Protection::Data)?;
        *pages = Some(made);
    }
    Ok(())
}

impl Pages {
    /// Sets what may be done with the page of the code.
    #[cfg(not(test))]
    fn protect(&self, protection: Protection) -> Result<(), OutOfMemory> {
        let start = self.0.as_ptr() as u64;
        let range = PhysRange::new(start, start + PAGE_SIZE);
        // SAFETY: the page is ours alone, and used under the lock by this CPU only, whose translations are
        // flushed; another CPU does the same before it uses the page.
        unsafe { paging::protect(range, Some(protection)) }
    }

    /// Does the same under the operating system that tests run on.
    #[cfg(test)]
    fn protect(&self, protection: Protection) -> Result<(), OutOfMemory> {
        unsafe extern "C" {
            fn mprotect(address: *mut u8, length: usize, protection: i32) -> i32;
        }
        let _ = (paging::protect, PhysRange::new);
        let rights = match protection {
            Protection::Code => 5,
            _ => 3,
        };
        // SAFETY: the page was allocated, is whole, and used under the lock only.
        let result = unsafe { mprotect(self.0.as_ptr(), PAGE_SIZE as usize, rights) };
        if result == 0 {
            Ok(())
        } else {
            Err(OutOfMemory {
                size: 0,
                alignment: PAGE_SIZE,
            })
        }
    }

    /// Runs `code` by `call`, which is given the registers and the address of the code.
    fn run(
        &self,
        code: &[u8],
        operand: &mut [u8; OPERAND_SIZE],
        registers: &mut Registers,
        call: impl FnOnce(&mut Registers, *const u8),
    ) -> Result<(), OutOfMemory> {
        let page = self.0.as_ptr();
        // SAFETY: the second page follows the first.
        let second = unsafe { page.add(PAGE_SIZE as usize) };
        self.protect(Protection::Data)?;
        let length = code.len().min(16);
        // SAFETY: the pages are ours, both can be written now, and what is written fits: 16 bytes and one
        // on the first, 32 on the second. Nobody else has references to them.
        unsafe {
            page.copy_from_nonoverlapping(code.as_ptr(), length);
            page.add(length).write(RET);
            second.copy_from_nonoverlapping(operand.as_ptr(), OPERAND_SIZE);
        }
        self.protect(Protection::Code)?;
        registers.code = page as u64;
        registers.fxsave_area = if registers.has_x87_pointers {
            second as u64 + FXSAVE_OFFSET as u64
        } else {
            0
        };
        call(registers, page);
        // SAFETY: as for writing.
        unsafe { second.copy_to_nonoverlapping(operand.as_mut_ptr(), OPERAND_SIZE) };
        Ok(())
    }
}

/// Runs `code` on `registers` and `operand`, and on the registers of x87, MMX, SSE and AVX that are live.
///
/// # Errors
/// If there are no pages; nothing has happened then.
///
/// # Safety
/// `code` is one instruction, which this CPU has and has enabled, that changes nothing but `operand`, which
/// it reaches `OPERAND_DISTANCE` bytes behind its first byte, general-purpose registers other than RSP, status
/// flags, and registers of x87, MMX, SSE and AVX, of which nothing is the host's. It raises no
/// exceptions but SIMD floating-point exceptions, which are masked. Interrupts are off.
pub(crate) unsafe fn run(
    code: &[u8],
    operand: &mut [u8; OPERAND_SIZE],
    registers: &mut Registers,
) -> Result<(), NoPages> {
    let pages = PAGES.lock();
    let pages = pages.as_ref().ok_or(NoPages)?;
    let call = |registers: &mut Registers, code| {
        // SAFETY: by the contract; behind the code is a RET.
        unsafe { call(registers, code) }
    };
    pages
        .run(code, operand, registers, call)
        .map_err(|_| NoPages)
}

/// Calls `code` with the registers of its argument, as `masks_simd` and `fip` want it.
///
/// # Safety
/// As for [`run`]; `code` returns.
#[unsafe(naked)]
unsafe extern "sysv64" fn call(registers: *mut Registers, code: *const u8) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rsi",
        "cmp dword ptr [rdi + {masks_simd}], 0",
        "je 2f",
        "stmxcsr [rdi + {mxcsr}]",
        "mov eax, [rdi + {mxcsr}]",
        "or eax, 0x1f80",
        "and eax, 0xffffffc0",
        "mov [rdi + {mxcsr_during}], eax",
        "ldmxcsr [rdi + {mxcsr_during}]",
        "2:",
        "push qword ptr [rdi + {rflags}]",
        "popfq",
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
        "call qword ptr [rsp]",
        "push rdi",
        "mov rdi, [rsp + 16]",
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
        "pushfq",
        "pop qword ptr [rdi + {rflags}]",
        "cld",
        "fnstsw [rdi + {fsw}]",
        "fnstcw [rdi + {fcw}]",
        "cmp dword ptr [rdi + {masks_simd}], 0",
        "je 3f",
        "stmxcsr [rdi + {mxcsr_during}]",
        "mov eax, [rdi + {mxcsr_during}]",
        "and eax, 0x3f",
        "mov [rdi + {raised}], eax",
        "or eax, [rdi + {mxcsr}]",
        "mov [rdi + {mxcsr_during}], eax",
        "ldmxcsr [rdi + {mxcsr_during}]",
        "3:",
        // What an x87 instruction leaves of its address is the guest's, not ours. The processor may keep it
        // back if there is no exception.
        "mov rax, [rdi + {fxsave_area}]",
        "test rax, rax",
        "jz 4f",
        "mov qword ptr [rax + 8], 0",
        "fxsave64 [rax]",
        "mov rcx, [rax + 8]",
        "sub rcx, [rdi + {code}]",
        "cmp rcx, 4096",
        "jae 4f",
        "mov rcx, [rdi + {fip}]",
        "mov [rax + 8], rcx",
        "mov rcx, [rdi + {fdp}]",
        "mov [rax + 16], rcx",
        "movzx ecx, word ptr [rdi + {fop}]",
        "mov [rax + 6], cx",
        "fxrstor64 [rax]",
        "4:",
        "pop rsi",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rflags = const core::mem::offset_of!(Registers, rflags),
        mxcsr = const core::mem::offset_of!(Registers, mxcsr),
        mxcsr_during = const core::mem::offset_of!(Registers, mxcsr_during),
        masks_simd = const core::mem::offset_of!(Registers, masks_simd),
        raised = const core::mem::offset_of!(Registers, raised),
        fsw = const core::mem::offset_of!(Registers, fsw),
        fcw = const core::mem::offset_of!(Registers, fcw),
        fop = const core::mem::offset_of!(Registers, fop),
        fxsave_area = const core::mem::offset_of!(Registers, fxsave_area),
        code = const core::mem::offset_of!(Registers, code),
        fip = const core::mem::offset_of!(Registers, fip),
        fdp = const core::mem::offset_of!(Registers, fdp),
    )
}

/// Returns MXCSR, which is live.
pub(crate) fn mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: four bytes of ours; CR4.OSFXSR is set.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags));
    }
    value
}

/// Sets MXCSR, which is live and the guest's, to a value that it had with other flags.
pub(crate) fn set_mxcsr(value: u32) {
    // SAFETY: as for reading; the host computes nothing with it.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags));
    }
}

/// Returns whether the x87 FPU, which is live, has an exception that its next instruction raises.
pub(crate) fn has_x87_error() -> bool {
    let status: u16;
    // SAFETY: reads a register.
    unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack, preserves_flags)) };
    status & 1 << 7 != 0
}

/// Returns whether this CPU has the instructions of `feature`, and they can be [run](run).
pub(crate) fn supports(feature: CpuidFeature) -> bool {
    let id = CpuId::new();
    let basic = |has: fn(&raw_cpuid::FeatureInfo) -> bool| {
        id.get_feature_info().is_some_and(|info| has(&info))
    };
    match feature {
        CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => {
            basic(|info| info.has_fpu())
        }
        CpuidFeature::MMX => basic(|info| info.has_mmx()),
        CpuidFeature::SSE => basic(|info| info.has_sse()),
        CpuidFeature::SSE2 => basic(|info| info.has_sse2()),
        CpuidFeature::SSE3 => basic(|info| info.has_sse3()),
        CpuidFeature::SSSE3 => basic(|info| info.has_ssse3()),
        CpuidFeature::SSE4_1 => basic(|info| info.has_sse41()),
        CpuidFeature::SSE4_2 => basic(|info| info.has_sse42()),
        CpuidFeature::AES => basic(|info| info.has_aesni()),
        CpuidFeature::PCLMULQDQ => basic(|info| info.has_pclmulqdq()),
        CpuidFeature::AVX => basic(|info| info.has_avx()),
        CpuidFeature::FMA => basic(|info| info.has_fma()),
        CpuidFeature::F16C => basic(|info| info.has_f16c()),
        _ => supports_extended(&id, feature),
    }
}

fn supports_extended<R: CpuIdReader>(id: &CpuId<R>, feature: CpuidFeature) -> bool {
    id.get_extended_feature_info()
        .is_some_and(|info| match feature {
            CpuidFeature::AVX2 => info.has_avx2(),
            CpuidFeature::BMI1 => info.has_bmi1(),
            CpuidFeature::BMI2 => info.has_bmi2(),
            CpuidFeature::ADX => info.has_adx(),
            CpuidFeature::SHA => info.has_sha(),
            CpuidFeature::GFNI => info.has_gfni(),
            CpuidFeature::VAES => info.has_vaes(),
            CpuidFeature::VPCLMULQDQ => info.has_vpclmulqdq(),
            _ => false,
        })
}

/// A guest's registers of x87, SSE and AVX where they are not live: for tests, whose own are.
#[cfg(test)]
pub(crate) mod saved {
    use super::*;

    /// An area for XSAVE: the legacy region, the header, and the high halves of YMM registers.
    #[derive(Clone, Debug, PartialEq)]
    #[repr(C, align(64))]
    pub(crate) struct Area(pub(crate) [u8; 1024]);

    /// Does what [`run`](super::run) does with the registers of `area` in place of those that are live.
    ///
    /// # Safety
    /// As for [`run`](super::run); the CPU has AVX, and `area` is one that XRSTOR takes.
    pub(crate) unsafe fn run(
        code: &[u8],
        operand: &mut [u8; OPERAND_SIZE],
        registers: &mut Registers,
        area: &mut Area,
    ) {
        prepare().expect("memory");
        let mut own = Area([0; 1024]);
        let call = |registers: &mut Registers, code| {
            // SAFETY: by the contract; the test's own registers come back afterwards.
            unsafe { call_with(registers, code, area, &mut own) }
        };
        let pages = PAGES.lock();
        let pages = pages.as_ref().expect("the pages were made");
        pages.run(code, operand, registers, call).expect("memory");
    }

    /// Calls `code` as [`call`] does with the registers of `area`, and keeps the caller's in `own`.
    #[unsafe(naked)]
    unsafe extern "sysv64" fn call_with(
        registers: *mut Registers,
        code: *const u8,
        area: *mut Area,
        own: *mut Area,
    ) {
        naked_asm!(
            "push rbx",
            "push r12",
            "push r13",
            "mov r12, rdx",
            "mov rbx, rcx",
            "fxsave64 [rbx]",
            "mov eax, 7",
            "xor edx, edx",
            "xrstor64 [r12]",
            "call {call}",
            "mov eax, 7",
            "xor edx, edx",
            "xsave64 [r12]",
            "vzeroupper",
            "fxrstor64 [rbx]",
            "pop r13",
            "pop r12",
            "pop rbx",
            "ret",
            call = sym call,
        )
    }
}
