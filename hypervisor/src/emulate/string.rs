//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS and OUTS, alone and repeated.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::context::Context;
use super::cpu::{Cpu, Mode, RAX, RCX, RDI, RSI, SegmentRegister, set_part};
use super::operand::segment_register;
use super::{Bus, Completed, EmulationError, InstructionBytes, Ports, Stop, Width, flags, report};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// The number of elements that are done before the guest's events get a chance: it bounds the
/// latency of interrupts.
const ELEMENTS_AT_A_TIME: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    Always,
    WhileEqual,
    WhileNotEqual,
}

/// A string instruction that works on memory and registers.
pub(super) struct StringOperation {
    kind: Kind,
    elements: Elements,
}

/// The properties that all string instructions have in common: how they go along their strings.
struct Elements {
    width: Width,
    address_size: Width,
    /// The segment of the source, DS unless overridden.
    source_segment: SegmentRegister,
    repeat: Option<Repeat>,
}

/// The strings that an instruction has, whose index registers advance.
#[derive(Clone, Copy)]
struct Strings {
    source: bool,
    destination: bool,
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Returns the string operation that `instruction` is, if it is one.
    pub(super) fn string_operation(&self, instruction: &Instruction) -> Option<StringOperation> {
        // MOVSD and CMPSD are also names of SSE instructions: the operands tell.
        let is_string = (0..instruction.op_count()).any(|index| {
            matches!(
                instruction.op_kind(index),
                OpKind::MemorySegSI
                    | OpKind::MemorySegESI
                    | OpKind::MemorySegRSI
                    | OpKind::MemoryESDI
                    | OpKind::MemoryESEDI
                    | OpKind::MemoryESRDI
            )
        });
        if !is_string {
            return None;
        }
        let kind = match instruction.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Kind::Move,
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Kind::Store,
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Kind::Load,
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => Kind::Compare,
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => Kind::Scan,
            // INS and OUTS cause VM exits of their own.
            _ => return None,
        };
        let compares = matches!(kind, Kind::Compare | Kind::Scan);
        let repeat = if instruction.has_repne_prefix() {
            // Not for MOVS, LODS and STOS by the manual; the CPUs take it as REP.
            Some(if compares {
                Repeat::WhileNotEqual
            } else {
                Repeat::Always
            })
        } else if instruction.has_rep_prefix() {
            Some(if compares {
                Repeat::WhileEqual
            } else {
                Repeat::Always
            })
        } else {
            None
        };
        let address_size = match instruction.op_kind(0) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Width::WORD,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Width::DOUBLEWORD,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Width::QUADWORD,
            _ => match instruction.op_kind(1) {
                OpKind::MemorySegSI | OpKind::MemoryESDI => Width::WORD,
                OpKind::MemorySegESI | OpKind::MemoryESEDI => Width::DOUBLEWORD,
                _ => Width::QUADWORD,
            },
        };
        let source_segment = match instruction.segment_prefix() {
            Register::None => SegmentRegister::Ds,
            segment => segment_register(segment),
        };
        Some(StringOperation {
            kind,
            elements: Elements {
                width: Width::from_bytes(instruction.memory_size().size())?,
                address_size,
                source_segment,
                repeat,
            },
        })
    }

    /// Does `operation`, or a part of it if it is a long one.
    pub(super) fn repeat(
        &mut self,
        bus: &mut impl Bus,
        operation: &StringOperation,
        next_ip: u64,
    ) -> Result<Completed, Stop> {
        let kind = operation.kind;
        self.each_element(&operation.elements, next_ip, |context, elements| {
            context.element(bus, kind, elements)
        })
    }

    /// Calls `element` for each element as often as the instruction says and one go allows.
    /// It tells which index registers advance.
    fn each_element(
        &mut self,
        elements: &Elements,
        next_ip: u64,
        mut element: impl FnMut(&mut Self, &Elements) -> Result<Strings, Stop>,
    ) -> Result<Completed, Stop> {
        let address_size = elements.address_size;
        if elements.repeat.is_some() && self.cpu.gpr(RCX) & address_size.mask() == 0 {
            self.cpu.set_rip(next_ip);
            return Ok(Completed::Retired);
        }
        let step = if self.rflags & flags::DF == 0 {
            elements.width.bytes() as u64
        } else {
            (elements.width.bytes() as u64).wrapping_neg()
        };
        // A single step traps after each element (SDM vol. 3B, 18.3.1.4).
        let at_a_time = if self.rflags & flags::TF == 0 {
            ELEMENTS_AT_A_TIME
        } else {
            1
        };
        for _ in 0..at_a_time {
            let strings = element(self, elements)?;
            for (advances, index) in [(strings.source, RSI), (strings.destination, RDI)] {
                if advances {
                    let address = self.cpu.gpr(index).wrapping_add(step);
                    set_part(self.cpu, index, address, address_size);
                }
            }
            let Some(repeat) = elements.repeat else {
                self.cpu.set_rip(next_ip);
                return Ok(Completed::Retired);
            };
            let left = self.cpu.gpr(RCX).wrapping_sub(1);
            set_part(self.cpu, RCX, left, address_size);
            let equal = self.rflags & flags::ZF != 0;
            let goes_on = match repeat {
                Repeat::Always => true,
                Repeat::WhileEqual => equal,
                Repeat::WhileNotEqual => !equal,
            };
            if left & address_size.mask() == 0 || !goes_on {
                self.cpu.set_rip(next_ip);
                return Ok(Completed::Retired);
            }
        }
        Ok(Completed::Interrupted)
    }

    fn element(
        &mut self,
        bus: &mut impl Bus,
        kind: Kind,
        elements: &Elements,
    ) -> Result<Strings, Stop> {
        let width = elements.width;
        let source = |context: &Self| {
            let offset = context.cpu.gpr(RSI) & elements.address_size.mask();
            context.span(elements.source_segment, offset, width, AccessKind::Read)
        };
        let destination = |context: &Self, kind| {
            let offset = context.cpu.gpr(RDI) & elements.address_size.mask();
            context.span(SegmentRegister::Es, offset, width, kind)
        };
        match kind {
            Kind::Move => {
                let source = source(self)?;
                let destination = destination(self, AccessKind::Write)?;
                let value = self.read(bus, source);
                self.write(bus, destination, value);
            }
            Kind::Store => {
                let destination = destination(self, AccessKind::Write)?;
                self.write(bus, destination, self.cpu.gpr(RAX));
            }
            Kind::Load => {
                let source = source(self)?;
                let value = self.read(bus, source);
                set_part(self.cpu, RAX, value, width);
            }
            Kind::Compare => {
                let source = source(self)?;
                let destination = destination(self, AccessKind::Read)?;
                let a = self.read(bus, source);
                let b = self.read(bus, destination);
                self.compare_elements(a, b, width);
            }
            Kind::Scan => {
                let destination = destination(self, AccessKind::Read)?;
                let b = self.read(bus, destination);
                self.compare_elements(self.cpu.gpr(RAX), b, width);
            }
        }
        Ok(Strings {
            source: matches!(kind, Kind::Move | Kind::Load | Kind::Compare),
            destination: kind != Kind::Load,
        })
    }

    fn compare_elements(&mut self, a: u64, b: u64, width: Width) {
        self.rflags = flags::sub(self.rflags, a, b, false, width).rflags;
        self.cpu.set_rflags(self.rflags);
    }
}

/// The direction of port I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// INS: from the port to memory.
    In,
    /// OUTS: from memory to the port.
    Out,
}

/// INS or OUTS, as the VM exit describes it (SDM vol. 3C, tables 28-5 and 28-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// The port: DX.
    pub port: u16,
    /// The operand size, 32 bits at most.
    pub width: Width,
    /// INS or OUTS.
    pub direction: Direction,
    /// Whether there is a REP prefix.
    pub repeated: bool,
    /// The address size.
    pub address_size: Width,
    /// The segment of OUTS's source. INS always goes to ES.
    pub segment: SegmentRegister,
    /// The VM-exit instruction length in bytes.
    pub length: u8,
}

/// Emulates INS or OUTS. That the guest may use the port, the CPU has checked.
///
/// # Errors
/// As [`super::emulate`]; the report of an unsupported one has no instruction bytes.
pub fn emulate_string_io<C: Cpu, M: GuestMemory, B: Bus + Ports>(
    cpu: &mut C,
    memory: &M,
    bus: &mut B,
    io: StringIo,
) -> Result<Completed, EmulationError> {
    let mut context = Context::new(cpu, memory);
    let elements = Elements {
        width: io.width,
        address_size: io.address_size,
        source_segment: io.segment,
        repeat: io.repeated.then_some(Repeat::Always),
    };
    let next_ip = context.cpu.rip().wrapping_add(io.length.into());
    let next_ip = match context.mode {
        Mode::Long => next_ip,
        Mode::Protected32 => next_ip & 0xffff_ffff,
        Mode::Real | Mode::Virtual8086 | Mode::Protected16 => next_ip & 0xffff,
    };
    context
        .each_element(&elements, next_ip, |context, elements| {
            let mask = elements.address_size.mask();
            match io.direction {
                Direction::In => {
                    let offset = context.cpu.gpr(RDI) & mask;
                    let span =
                        context.span(SegmentRegister::Es, offset, io.width, AccessKind::Write)?;
                    let value = bus.read_port(io.port, io.width);
                    context.write(bus, span, value.into());
                }
                Direction::Out => {
                    let offset = context.cpu.gpr(RSI) & mask;
                    let span = context.span(
                        elements.source_segment,
                        offset,
                        io.width,
                        AccessKind::Read,
                    )?;
                    let value = context.read(bus, span);
                    bus.write_port(io.port, io.width, value as u32);
                }
            }
            Ok(Strings {
                source: io.direction == Direction::Out,
                destination: io.direction == Direction::In,
            })
        })
        .map_err(|stop| report(stop, InstructionBytes::default()))
}
