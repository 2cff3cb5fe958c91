//! The short cut for the moves that drivers are made of: `mov`, `movzx` and `movsx` between
//! a register or an immediate and device memory, in 64-bit mode.
//!
//! The CPU has translated the operand's address, with all its checks, before the EPT
//! violation; so the operand's place is known, and what is left to find is the direction,
//! the width, the register and the instruction's length. Whatever is not plain at first
//! sight is left to the full decoder.

use arch::EferFlags;
use vmx::addr::{GuestPhysAddr, PAGE_SIZE};

use super::cpu::{AccessRights, Cpu, SegmentRegister, set_part};
use super::fetch::MAX_LENGTH;
use super::{Bus, Violation, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::locate_fetched_code;

/// The effect of a move, apart from the address of its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Memory to a register, zero-extended to 64 bits.
    Load { register: usize },
    /// Memory to a register's low byte or word.
    LoadPart { register: usize },
    /// Memory to a register, sign-extended to `to`.
    LoadSigned { register: usize, to: Width },
    /// A register to memory.
    Store { register: usize },
    /// A constant to memory.
    StoreConstant { value: u64 },
}

/// A decoded move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) action: Action,
    /// The width of the memory operand.
    pub(super) width: Width,
    /// The instruction's length in bytes.
    pub(super) length: u8,
    /// The offset of the ModRM byte, prefixes included; 0 for an absolute address.
    modrm_at: u8,
    rex: u8,
}

/// Executes the instruction if it is one of these moves, in 64-bit mode; `false` if not.
#[inline]
pub(super) fn emulate<C: Cpu, M: GuestMemory>(
    cpu: &mut C,
    memory: &M,
    bus: &mut impl Bus,
    violation: Violation,
) -> bool {
    let long = cpu
        .segment_rights(SegmentRegister::Cs)
        .contains(AccessRights::LONG)
        && cpu.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0;
    if !long {
        return false;
    }
    let rip = cpu.rip();
    if rip & (PAGE_SIZE - 1) > PAGE_SIZE - 16 {
        return false;
    }
    let Some(bytes) = fetched_code(cpu, memory, rip) else {
        return false;
    };
    let Some(decoded) = decode(&bytes) else {
        return false;
    };
    let stores = matches!(
        decoded.action,
        Action::Store { .. } | Action::StoreConstant { .. }
    );
    if u64::from(decoded.length) > MAX_LENGTH || stores != violation.write {
        return false;
    }
    let (address, width) = (violation.address, decoded.width);
    let offset = address.page_offset();
    if offset + width.bytes() as u64 > PAGE_SIZE {
        return false;
    }
    // At the start of a page it might be the second half of an access that began on the
    // page before.
    if offset == 0 && width != Width::BYTE && !starts_on_page(cpu, &bytes, &decoded) {
        return false;
    }
    match decoded.action {
        Action::Store { register } => {
            let value = cpu.gpr(register) & width.mask();
            bus.write(address, width, value);
        }
        Action::StoreConstant { value } => bus.write(address, width, value & width.mask()),
        Action::Load { register } => {
            let value = bus.read(address, width) & width.mask();
            cpu.set_gpr(register, value);
        }
        Action::LoadPart { register } => {
            let value = bus.read(address, width);
            set_part(cpu, register, value, width);
        }
        Action::LoadSigned { register, to } => {
            let value = width.sign_extend(bus.read(address, width));
            set_part(cpu, register, value, to);
        }
    }
    cpu.set_rip(rip.wrapping_add(decoded.length.into()));
    true
}

/// Returns sixteen bytes from RIP on, which are all on one page.
#[inline]
fn fetched_code(cpu: &impl Cpu, memory: &impl GuestMemory, rip: u64) -> Option<[u8; 16]> {
    let address = locate_fetched_code(memory, cpu.cr3(), cpu.cr4(), rip)?;
    let low = memory.read_u64(address).ok()?;
    let high = memory.read_u64(GuestPhysAddr(address.0 + 8)).ok()?;
    Some((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
}

/// Decodes one of the moves; `None` for everything else. The last of `bytes` is no part of
/// any instruction.
#[inline]
pub(super) fn decode(bytes: &[u8; 16]) -> Option<Move> {
    let mut at = 0;
    let mut operand_size_prefix = false;
    let mut opcode = bytes[0];
    loop {
        match opcode {
            0x66 => operand_size_prefix = true,
            // Segment overrides: they are in the address already.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            _ => break,
        }
        at += 1;
        if at == 4 {
            return None;
        }
        opcode = bytes[at];
    }
    let mut rex = 0;
    if opcode & 0xf0 == 0x40 {
        rex = opcode;
        at += 1;
        opcode = bytes[at];
    }
    let operand_width = if rex & 8 != 0 {
        Width::QUADWORD
    } else if operand_size_prefix {
        Width::WORD
    } else {
        Width::DOUBLEWORD
    };
    // From here on `at` is at most 5, and no index below exceeds 15.
    if opcode & 0xfc == 0xa0 {
        // An absolute address follows.
        let length = at + 1 + 8;
        let width = if opcode & 1 == 0 {
            Width::BYTE
        } else {
            operand_width
        };
        let action = if opcode & 2 != 0 {
            Action::Store { register: 0 }
        } else {
            load(0, width)
        };
        return Some(Move {
            action,
            width,
            length: length as u8,
            modrm_at: 0,
            rex,
        });
    }
    let two_byte = opcode == 0x0f;
    if two_byte {
        at += 1;
        opcode = bytes[at];
    }
    let modrm_at = at + 1;
    let modrm = bytes[modrm_at];
    let mut length = modrm_at + 1;
    let rm = modrm & 7;
    let displacement = match modrm >> 6 {
        0 => {
            let base = if rm == 4 { bytes[length] & 7 } else { rm };
            if base == 5 { 4 } else { 0 }
        }
        1 => 1,
        2 => 4,
        _ => return None,
    };
    if rm == 4 {
        length += 1;
    }
    length += displacement;
    let register = usize::from((modrm >> 3 & 7) | (rex & 4) << 1);
    let width = match (two_byte, opcode) {
        (false, 0x88 | 0x8a | 0xc6) | (true, 0xb6 | 0xbe) => Width::BYTE,
        (false, 0x89 | 0x8b | 0xc7) => operand_width,
        (true, 0xb7 | 0xbf) => Width::WORD,
        _ => return None,
    };
    // Without REX, registers 4 to 7 of 8 bits are AH to BH.
    let has_byte_register = width == Width::BYTE && !two_byte && opcode != 0xc6;
    if has_byte_register && rex == 0 && register >= 4 {
        return None;
    }
    let action = match (two_byte, opcode) {
        (false, 0x88 | 0x89) => Action::Store { register },
        (false, 0x8a | 0x8b) => load(register, width),
        (false, _) => {
            if modrm >> 3 & 7 != 0 {
                return None;
            }
            let immediate = match width {
                Width::BYTE => 1,
                Width::WORD => 2,
                _ => 4,
            };
            if length + 4 > bytes.len() {
                return None;
            }
            let value = i32::from_le_bytes([
                bytes[length],
                bytes[length + 1],
                bytes[length + 2],
                bytes[length + 3],
            ]);
            length += immediate;
            // Bytes that follow a shorter immediate are masked off by its width.
            Action::StoreConstant {
                value: value as i64 as u64,
            }
        }
        (true, 0xb6 | 0xb7) if operand_width != Width::WORD => Action::Load { register },
        (true, 0xbe | 0xbf) => Action::LoadSigned {
            register,
            to: operand_width,
        },
        _ => return None,
    };
    Some(Move {
        action,
        width,
        length: length as u8,
        modrm_at: modrm_at as u8,
        rex,
    })
}

const fn load(register: usize, width: Width) -> Action {
    if width.bytes() >= 4 {
        Action::Load { register }
    } else {
        Action::LoadPart { register }
    }
}

/// Returns whether the operand's address is at the start of a page: what paging leaves of it, its
/// low 12 bits, is computed from the registers. `false` where a segment base may count too.
#[cold]
fn starts_on_page(cpu: &impl Cpu, bytes: &[u8; 16], decoded: &Move) -> bool {
    let at = usize::from(decoded.modrm_at);
    // With legacy prefixes (there may be a segment override) and absolute addresses it goes
    // the long way.
    let prefixed = matches!(bytes[0], 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66);
    if at == 0 || prefixed {
        return false;
    }
    let (modrm, sib) = (bytes[at], bytes[at + 1]);
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let extended = |register: u8, rex_bit: u8| {
        usize::from(register & 7 | if decoded.rex & rex_bit != 0 { 8 } else { 0 })
    };
    let mut offset = 0u64;
    let mut displacement_at = at + 1;
    let mut base = rm;
    if rm == 4 {
        displacement_at += 1;
        base = sib & 7;
        let index = extended(sib >> 3, 2);
        if index != 4 {
            offset = cpu.gpr(index) << (sib >> 6);
        }
    }
    let displacement = i32::from_le_bytes([
        bytes[displacement_at],
        bytes[displacement_at + 1],
        bytes[displacement_at + 2],
        bytes[displacement_at + 3],
    ]);
    let displacement = match mode {
        0 if base != 5 => 0,
        1 => i32::from(displacement as i8),
        _ => displacement,
    };
    offset = offset.wrapping_add(displacement as i64 as u64);
    if mode != 0 || base != 5 {
        offset = offset.wrapping_add(cpu.gpr(extended(base, 1)));
    } else if rm == 5 {
        offset = offset
            .wrapping_add(cpu.rip())
            .wrapping_add(decoded.length.into());
    }
    offset & (PAGE_SIZE - 1) == 0
}
