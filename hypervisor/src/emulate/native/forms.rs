//! The instructions that the processor may be given: a positive list.
//!
//! An instruction is on it by its mnemonic, and by its operands: exactly one explicit memory operand, which is
//! read or written, not both, and beside it nothing but registers of x87, MMX, SSE and AVX, general-purpose
//! registers of 32 and 64 bits other than RSP, and an immediate byte. What is implicit is registers (ST0, XMM0 of
//! BLENDV and PCMPxSTRM, EAX, ECX and EDX of PCMPxSTRx, EDX of MULX) and status flags.
//!
//! Not on it, beside all that does not just compute: MASKMOVQ, MASKMOVDQU, VMASKMOV, VPMASKMOV and the gathers,
//! whose memory is not one operand; FLDENV, FNSTENV, FNSAVE, FRSTOR, FXSAVE, XSAVE and the like, which write
//! images of more than 32 bytes with host addresses in them or load what nobody has checked; AVX-512, which the
//! decoder leaves out; and AES, SHA, FMA and such, of which nobody has heard on a device.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::guest_paging::AccessKind;

/// The registers that an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegisterFile {
    General,
    X87,
    /// Control and status of x87, whose access does not count as its last instruction (SDM vol. 1, 8.1.8).
    X87Control,
    Mmx,
    /// XMM, YMM and MXCSR.
    Vector,
}

/// An instruction of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) registers: RegisterFile,
    /// The access to its memory operand.
    pub(super) access: AccessKind,
}

/// Returns whether a mnemonic is one of those named.
macro_rules! is_one_of {
    ($mnemonic:expr, $($name:ident)*) => {
        matches!($mnemonic, $(Mnemonic::$name)|*)
    };
}

impl Form {
    /// Returns what kind of instruction this is; `None` if it is not on the list.
    pub(super) fn of(instruction: &Instruction) -> Option<Self> {
        if !matches!(
            instruction.encoding(),
            EncodingKind::Legacy | EncodingKind::VEX
        ) || instruction.is_vsib()
        {
            return None;
        }
        let mut memory = None;
        let mut has_mmx = false;
        for index in 0..instruction.op_count() {
            match instruction.op_kind(index) {
                OpKind::Memory if memory.is_none() => memory = Some(index),
                OpKind::Register if is_allowed(instruction.op_register(index)) => {
                    has_mmx |= instruction.op_register(index).is_mm();
                }
                OpKind::Immediate8 => {}
                _ => return None,
            }
        }
        let memory = memory?;
        let form = |registers, access| Some(Self { registers, access });
        let mnemonic = instruction.mnemonic();
        if is_x87_load(mnemonic) {
            form(RegisterFile::X87, AccessKind::Read)
        } else if is_x87_store(mnemonic) {
            form(RegisterFile::X87, AccessKind::Write)
        } else if mnemonic == Mnemonic::Fldcw {
            form(RegisterFile::X87Control, AccessKind::Read)
        } else if is_one_of!(mnemonic, Fnstcw Fnstsw) {
            form(RegisterFile::X87Control, AccessKind::Write)
        } else if is_one_of!(mnemonic, Ldmxcsr Vldmxcsr) {
            form(RegisterFile::Vector, AccessKind::Read)
        } else if is_one_of!(mnemonic, Stmxcsr Vstmxcsr) {
            form(RegisterFile::Vector, AccessKind::Write)
        } else if is_general(mnemonic) {
            form(RegisterFile::General, AccessKind::Read)
        } else if is_of_vectors(mnemonic) || is_of_avx(mnemonic) {
            // Conversions between XMM and MMX registers are instructions of SSE.
            let from_xmm = is_one_of!(mnemonic, Cvtps2pi Cvttps2pi Cvtpd2pi Cvttpd2pi);
            let registers = if has_mmx && !from_xmm {
                RegisterFile::Mmx
            } else {
                RegisterFile::Vector
            };
            let access = if memory == 0 {
                AccessKind::Write
            } else {
                AccessKind::Read
            };
            form(registers, access)
        } else {
            None
        }
    }
}

fn is_allowed(register: Register) -> bool {
    register.is_st()
        || register.is_mm()
        || register.is_xmm()
        || register.is_ymm()
        || (register.is_gpr32() || register.is_gpr64()) && register.full_register() != Register::RSP
}

/// Returns whether it is x87 arithmetic with memory, or a load.
const fn is_x87_load(mnemonic: Mnemonic) -> bool {
    is_one_of!(
        mnemonic,
        Fadd Fbld Fcom Fcomp Fdiv Fdivr Fiadd Ficom Ficomp Fidiv Fidivr Fild Fimul Fisub Fisubr Fld Fmul Fsub
        Fsubr
    )
}

const fn is_x87_store(mnemonic: Mnemonic) -> bool {
    is_one_of!(mnemonic, Fbstp Fist Fistp Fisttp Fst Fstp)
}

/// Returns whether it computes with general-purpose registers alone: BMI1, BMI2, ADX, and CRC32 of SSE4.2.
const fn is_general(mnemonic: Mnemonic) -> bool {
    is_one_of!(
        mnemonic,
        Adcx Adox Andn Bextr Blsi Blsmsk Blsr Bzhi Crc32 Mulx Pdep Pext Rorx Sarx Shlx Shrx
    )
}

/// Returns whether it is of MMX or SSE to SSE4.2: those that store have their memory as the first operand.
const fn is_of_vectors(mnemonic: Mnemonic) -> bool {
    is_one_of!(
        mnemonic,
        // Moves beside those of `super::super::vector`, and MMX's.
        Movd Movddup Movhpd Movhps Movlpd Movlps Movntq Movq Movshdup Movsldup
        Extractps Insertps Pextrb Pextrd Pextrq Pextrw Pinsrb Pinsrd Pinsrq Pinsrw
        // Floating-point arithmetic.
        Addpd Addps Addsd Addss Addsubpd Addsubps Divpd Divps Divsd Divss Dppd Dpps Haddpd Haddps Hsubpd Hsubps
        Maxpd Maxps Maxsd Maxss Minpd Minps Minsd Minss Mulpd Mulps Mulsd Mulss Rcpps Rcpss
        Roundpd Roundps Roundsd Roundss Rsqrtps Rsqrtss Sqrtpd Sqrtps Sqrtsd Sqrtss Subpd Subps Subsd Subss
        Cmppd Cmpps Cmpsd Cmpss Comisd Comiss Ucomisd Ucomiss
        // Bits, and places in a register.
        Andnpd Andnps Andpd Andps Blendpd Blendps Blendvpd Blendvps Orpd Orps Shufpd Shufps
        Unpckhpd Unpckhps Unpcklpd Unpcklps Xorpd Xorps
        // Conversions.
        Cvtdq2pd Cvtdq2ps Cvtpd2dq Cvtpd2pi Cvtpd2ps Cvtpi2pd Cvtpi2ps Cvtps2dq Cvtps2pd Cvtps2pi Cvtsd2si
        Cvtsd2ss Cvtsi2sd Cvtsi2ss Cvtss2sd Cvtss2si Cvttpd2dq Cvttpd2pi Cvttps2dq Cvttps2pi Cvttsd2si Cvttss2si
        // Integers.
        Mpsadbw Pabsb Pabsd Pabsw Packssdw Packsswb Packusdw Packuswb Paddb Paddd Paddq Paddsb Paddsw Paddusb
        Paddusw Paddw Palignr Pand Pandn Pavgb Pavgw Pblendvb Pblendw Pcmpeqb Pcmpeqd Pcmpeqq Pcmpeqw
        Pcmpestri Pcmpestrm Pcmpgtb Pcmpgtd Pcmpgtq Pcmpgtw Pcmpistri Pcmpistrm Phaddd Phaddsw Phaddw
        Phminposuw Phsubd Phsubsw Phsubw Pmaddubsw Pmaddwd Pmaxsb Pmaxsd Pmaxsw Pmaxub Pmaxud Pmaxuw
        Pminsb Pminsd Pminsw Pminub Pminud Pminuw Pmovsxbd Pmovsxbq Pmovsxbw Pmovsxdq Pmovsxwd Pmovsxwq
        Pmovzxbd Pmovzxbq Pmovzxbw Pmovzxdq Pmovzxwd Pmovzxwq Pmuldq Pmulhrsw Pmulhuw Pmulhw Pmulld Pmullw
        Pmuludq Por Psadbw Pshufb Pshufd Pshufhw Pshuflw Pshufw Psignb Psignd Psignw Pslld Psllq Psllw
        Psrad Psraw Psrld Psrlq Psrlw Psubb Psubd Psubq Psubsb Psubsw Psubusb Psubusw Psubw Ptest
        Punpckhbw Punpckhdq Punpckhqdq Punpckhwd Punpcklbw Punpckldq Punpcklqdq Punpcklwd Pxor
    )
}

/// Returns whether it is of AVX or AVX2, with the memory of those that store as the first operand.
const fn is_of_avx(mnemonic: Mnemonic) -> bool {
    is_one_of!(
        mnemonic,
        // Moves beside those of `super::super::vector`.
        Vbroadcastf128 Vbroadcasti128 Vbroadcastsd Vbroadcastss Vextractf128 Vextracti128 Vextractps
        Vinsertf128 Vinserti128 Vinsertps Vmovddup Vmovhpd Vmovhps Vmovlpd Vmovlps Vmovshdup Vmovsldup
        Vpbroadcastb Vpbroadcastd Vpbroadcastq Vpbroadcastw Vpextrb Vpextrd Vpextrq Vpextrw
        Vpinsrb Vpinsrd Vpinsrq Vpinsrw
        // Floating-point arithmetic.
        Vaddpd Vaddps Vaddsd Vaddss Vaddsubpd Vaddsubps Vdivpd Vdivps Vdivsd Vdivss Vdppd Vdpps
        Vhaddpd Vhaddps Vhsubpd Vhsubps Vmaxpd Vmaxps Vmaxsd Vmaxss Vminpd Vminps Vminsd Vminss
        Vmulpd Vmulps Vmulsd Vmulss Vrcpps Vrcpss Vroundpd Vroundps Vroundsd Vroundss Vrsqrtps Vrsqrtss
        Vsqrtpd Vsqrtps Vsqrtsd Vsqrtss Vsubpd Vsubps Vsubsd Vsubss
        Vcmppd Vcmpps Vcmpsd Vcmpss Vcomisd Vcomiss Vucomisd Vucomiss
        // Bits, and places in a register.
        Vandnpd Vandnps Vandpd Vandps Vblendpd Vblendps Vblendvpd Vblendvps Vorpd Vorps Vperm2f128 Vperm2i128
        Vpermd Vpermilpd Vpermilps Vpermpd Vpermps Vpermq Vshufpd Vshufps Vtestpd Vtestps
        Vunpckhpd Vunpckhps Vunpcklpd Vunpcklps Vxorpd Vxorps
        // Conversions.
        Vcvtdq2pd Vcvtdq2ps Vcvtpd2dq Vcvtpd2ps Vcvtps2dq Vcvtps2pd Vcvtsd2si Vcvtsd2ss Vcvtsi2sd Vcvtsi2ss
        Vcvtss2sd Vcvtss2si Vcvttpd2dq Vcvttps2dq Vcvttsd2si Vcvttss2si
        // Integers.
        Vmpsadbw Vpabsb Vpabsd Vpabsw Vpackssdw Vpacksswb Vpackusdw Vpackuswb Vpaddb Vpaddd Vpaddq Vpaddsb
        Vpaddsw Vpaddusb Vpaddusw Vpaddw Vpalignr Vpand Vpandn Vpavgb Vpavgw Vpblendd Vpblendvb Vpblendw
        Vpcmpeqb Vpcmpeqd Vpcmpeqq Vpcmpeqw Vpcmpestri Vpcmpestrm Vpcmpgtb Vpcmpgtd Vpcmpgtq Vpcmpgtw
        Vpcmpistri Vpcmpistrm Vphaddd Vphaddsw Vphaddw Vphminposuw Vphsubd Vphsubsw Vphsubw Vpmaddubsw
        Vpmaddwd Vpmaxsb Vpmaxsd Vpmaxsw Vpmaxub Vpmaxud Vpmaxuw Vpminsb Vpminsd Vpminsw Vpminub Vpminud
        Vpminuw Vpmovsxbd Vpmovsxbq Vpmovsxbw Vpmovsxdq Vpmovsxwd Vpmovsxwq Vpmovzxbd Vpmovzxbq Vpmovzxbw
        Vpmovzxdq Vpmovzxwd Vpmovzxwq Vpmuldq Vpmulhrsw Vpmulhuw Vpmulhw Vpmulld Vpmullw Vpmuludq Vpor
        Vpsadbw Vpshufb Vpshufd Vpshufhw Vpshuflw Vpsignb Vpsignd Vpsignw Vpslld Vpsllq Vpsllvd Vpsllvq
        Vpsllw Vpsrad Vpsravd Vpsraw Vpsrld Vpsrlq Vpsrlvd Vpsrlvq Vpsrlw Vpsubb Vpsubd Vpsubq Vpsubsb
        Vpsubsw Vpsubusb Vpsubusw Vpsubw Vptest Vpunpckhbw Vpunpckhdq Vpunpckhqdq Vpunpckhwd Vpunpcklbw
        Vpunpckldq Vpunpcklqdq Vpunpcklwd Vpxor
    )
}
