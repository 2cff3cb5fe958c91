//! A target for fuzzing: exits of every kind, with any registers, memory, instructions and messages from
//! outside, answered by the loop of a whole VCPU.
//!
//! Nothing may panic, each entry must be one that a processor takes (the fake one checks that), and what an
//! exit comes to must be one of a few things: see [`check_outcome`].

use std::vec::Vec;

use arch::gpr::{RAX, RCX, RDX, RSP};
use arch::{ExceptionVector, RFlags, msr};
use devices::apic_message::DeliveryMode;
use devices::platform_map::port;
use vmx::addr::GuestPhysAddr;
use vmx::event::{Event, EventKind};
use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

use crate::emulate::{Cpu, Width};
use crate::guest_memory::GuestMemory;
use crate::machine::host_time::{fake as host_clock, host_now};
use crate::suppression::order::Policy;
use crate::vcpu::backend::exit::{
    ApicAccess, ControlRegisterAccess, Exit, InterceptedException, IoAccess, NestedPageFault,
    StringIoAccess, TaskSwitch, TaskSwitchSource,
};
use crate::vcpu::backend::fake::{FakeCpu, Stay};
use crate::vcpu::backend::{ApicAssistance, GuestCpu, Interruptibility};
use crate::vcpu::fixture::{
    OTHER, TARGET, send, suppress, vcpu, vcpu_with_virtual_delivery, with_processes,
};
use crate::vcpu::{Activity, RunExit, StopReason, Vcpu};
use crate::vm::requests::Requests;

/// Page tables of one to one, which all roots lead to: for long mode, for PAE, and of 32 bits.
const PDPT: u64 = 0x4000;
const PAE_ROOT: u64 = 0x5000;
const PAE_DIRECTORIES: u64 = 0x1_0000;
const ROOT_32: u64 = 0x6000;
/// The descriptor table, and the task-state segments that its system descriptors tell of.
const GDT: u64 = 0x7000;
const TASKS: u64 = 0x7400;
/// Where the guest's instructions are.
const CODE: u64 = 0xe000;
/// The selector of the code segment.
const CS: u16 = 0x08;
/// The end of what is filled in.
const END: u64 = 0x1_4000;

const VIRTUAL_8086: u64 = RFlags::VIRTUAL_8086_MODE.bits();

/// Devices' memory, and places without any.
const PLACES: [u64; 9] = [
    0xfee0_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xb000_0000,
    0xfed8_0000,
    0xb_8000,
    0x10_0000,
    0x7f_ffff_f000,
    CODE,
];
/// Ports with something behind them.
const PORTS: [u16; 12] = [
    port::PIC_MASTER,
    port::PIC_SLAVE,
    port::PIT,
    port::RTC_INDEX,
    port::I8042_DATA,
    port::COM1,
    port::PM1A_CONTROL,
    port::PM_TIMER,
    port::ELCR_MASTER,
    0xcf8,
    0x510,
    0x61,
];
/// MSRs that exist, or are near some that do.
const MSRS: [u32; 16] = [
    msr::X2APIC_FIRST,
    msr::IA32_TSC_DEADLINE,
    msr::IA32_APIC_BASE,
    msr::IA32_TSC_ADJUST,
    msr::IA32_TIME_STAMP_COUNTER,
    msr::IA32_EFER,
    msr::IA32_DEBUGCTL,
    msr::IA32_TSC_AUX,
    msr::IA32_SPEC_CTRL,
    msr::IA32_MTRRCAP,
    msr::IA32_MTRR_PHYSBASE0,
    msr::IA32_PAT,
    msr::IA32_MC0_CTL,
    msr::IA32_MISC_ENABLE,
    msr::IA32_MCG_CAP,
    0x4b56_4d00,
];
/// Events whose delivery may be interrupted.
const EVENTS: [Event; 9] = [
    Event::interrupt(0x40),
    Event::NMI,
    Event::GENERAL_PROTECTION,
    Event::INVALID_OPCODE,
    Event::exception(ExceptionVector::Page, Some(2)),
    Event::exception(ExceptionVector::Double, Some(0)),
    Event::exception(ExceptionVector::Debug, None),
    software(0x21, EventKind::SoftwareInterrupt),
    software(3, EventKind::SoftwareException),
];

const fn software(vector: u8, kind: EventKind) -> Event {
    Event {
        vector,
        kind,
        error_code: None,
        instruction_length: 2,
    }
}

/// The bytes that an act is made of.
type Bytes = (u8, u8, u8, u8, u64, u64, [u8; 15]);

/// What happens in a stay of the guest's.
#[derive(Clone, Copy, Debug)]
struct Act {
    kind: u8,
    /// The mode of the processor, if it changes.
    mode: u8,
    /// RFLAGS, what blocks events, and the event whose delivery the exit interrupts.
    flags: u8,
    /// Something from outside.
    outside: u8,
    place: u64,
    value: u64,
    code: [u8; 15],
}

impl Act {
    const fn new(&(kind, mode, flags, outside, place, value, code): &Bytes) -> Self {
        Self {
            kind,
            mode,
            flags,
            outside,
            place,
            value,
            code,
        }
    }

    /// Chooses from a list.
    fn of<T: Copy>(self, list: &[T]) -> T {
        list[(self.place >> 56) as usize % list.len()]
    }

    /// A guest-physical address: of a device, of nothing, or of RAM.
    fn address(self) -> GuestPhysAddr {
        GuestPhysAddr(match self.place >> 52 & 0xf {
            0..12 => self.of(&PLACES) + (self.place & 0xfff),
            12 | 13 => self.place % END,
            _ => self.place & 0x7f_ffff_ffff,
        })
    }

    fn port(self) -> IoAccess {
        let port = match self.place & 0x30 {
            0 => (self.place >> 16) as u16,
            _ => self.of(&PORTS) + (self.place & 7) as u16,
        };
        IoAccess {
            port,
            width: [Width::BYTE, Width::WORD, Width::DOUBLEWORD][(self.place >> 8) as usize % 3],
            input: self.place & 8 != 0,
        }
    }

    fn control_register(self) -> ControlRegisterAccess {
        let gpr = RAX as u8;
        match self.place % 6 {
            0 | 1 => ControlRegisterAccess::Write { register: 0, gpr },
            2 | 3 => ControlRegisterAccess::Write { register: 3, gpr },
            4 => ControlRegisterAccess::Write { register: 4, gpr },
            _ if self.place & 8 == 0 => ControlRegisterAccess::Clts,
            _ => ControlRegisterAccess::Lmsw(self.value as u16),
        }
    }

    /// What the guest comes out for.
    fn exit(self, cpu: &FakeCpu) -> Exit {
        let bit = |number: u32| self.place >> (32 + number) & 1 != 0;
        match self.kind % 40 {
            0 => Exit::Cpuid,
            1 | 2 => Exit::Rdmsr,
            3..6 => Exit::Wrmsr,
            6..9 => Exit::Io(self.port()),
            9 | 10 => Exit::StringIo(StringIoAccess {
                io: self.port(),
                repeated: bit(0),
                address_size: [Width::WORD, Width::DOUBLEWORD][usize::from(bit(1))],
                segment: [SegmentRegister::Ds, SegmentRegister::Fs][usize::from(bit(2))],
                length: 2,
            }),
            11 => Exit::TimeLimit,
            12 => Exit::Hlt,
            13 => Exit::InterruptWindow,
            14 => Exit::NmiWindow,
            15 => Exit::TprBelowThreshold,
            16 if cpu.assistance == ApicAssistance::XApic
                || cpu.assistance == ApicAssistance::X2Apic =>
            {
                Exit::ApicWrite {
                    offset: self.place as u16 & 0x3f0,
                }
            }
            17 if cpu.assistance == ApicAssistance::XApic => Exit::EndOfInterrupt {
                vector: self.value as u8,
            },
            16..19 => Exit::ApicAccess(ApicAccess {
                offset: self.place as u16 & 0xfff,
                write: bit(0),
                read: bit(1) && !bit(0),
            }),
            19..22 => Exit::ControlRegister(self.control_register()),
            22..28 => Exit::NestedPageFault(NestedPageFault {
                address: self.address(),
                write: bit(0),
                fetch: bit(1) && bit(2) && !bit(0),
                final_access: bit(3) || bit(4),
                nmi_unblocked: bit(5),
            }),
            28 => Exit::HostInterrupt,
            29 => Exit::HostNmi,
            30 => Exit::Exception(InterceptedException {
                event: match self.value & 3 {
                    0 => Event::exception(ExceptionVector::AlignmentCheck, Some(0)),
                    1 => software(1, EventKind::PrivilegedSoftwareException),
                    _ => Event::exception(ExceptionVector::Debug, None),
                },
                nmi_unblocked: bit(5),
                debug_causes: self.value & 0xe00f,
            }),
            31 if cpu.debug_register_exits => Exit::DebugRegister,
            31 => Exit::Hypercall,
            32 => Exit::Xsetbv,
            33 if bit(0) => Exit::Rdtsc,
            33 => Exit::Rdtscp,
            34 if bit(0) => Exit::Rdpmc,
            34 => Exit::UndefinedInstruction,
            35 if bit(0) => Exit::CacheInvalidation,
            35 => Exit::Pause,
            36 if bit(0) && bit(1) && bit(2) => Exit::TripleFault,
            // Not in IA-32e mode, nor in real mode.
            _ if cpu.efer & 0x400 == 0 && cpu.cr0 & 1 != 0 => Exit::TaskSwitch(TaskSwitch {
                selector: (self.value as u16) & 0x7f,
                source: [
                    TaskSwitchSource::Call,
                    TaskSwitchSource::Iret,
                    TaskSwitchSource::Jump,
                    TaskSwitchSource::Event,
                ][self.place as usize % 4],
            }),
            _ => Exit::Pause,
        }
    }

    /// The event that is being delivered as the guest comes out for `exit`.
    fn interrupted(self, exit: Exit) -> Option<Event> {
        let event = EVENTS[usize::from(self.code[14]) % EVENTS.len()];
        match exit {
            Exit::TaskSwitch(TaskSwitch {
                source: TaskSwitchSource::Event,
                ..
            }) => Some(event),
            Exit::NestedPageFault(_) | Exit::ApicAccess(_) => {
                (self.flags & 0xc0 == 0).then_some(event)
            }
            _ => None,
        }
    }

    /// What the guest has done before the exit.
    fn prepare(self, cpu: &mut FakeCpu, exit: Exit, interrupted: Option<Event>) {
        for register in &mut cpu.gprs {
            *register = register.rotate_left(9) ^ self.value;
        }
        cpu.gprs[RSP] = CODE - 0x100 + (self.value & 0x1f);
        let address = self.address().0;
        for (slot, wanted) in self.code.iter().enumerate().skip(5) {
            match wanted >> 4 {
                0..8 => cpu.gprs[slot] = address,
                8 => cpu.gprs[slot] = u64::from(wanted & 7),
                9 => cpu.gprs[slot] = u64::MAX,
                _ => {}
            }
        }
        cpu.gprs[RAX] = self.value;
        match exit {
            Exit::Rdmsr | Exit::Wrmsr => {
                let near = self.place & 0x3f;
                cpu.gprs[RCX] = u64::from(self.of(&MSRS)) + near * u64::from(self.flags & 1);
                cpu.gprs[RAX] = self.value & 0xffff_ffff;
                cpu.gprs[RDX] = (self.value >> 32) & u64::from(self.flags >> 1 & 1);
            }
            Exit::Xsetbv => (cpu.gprs[RCX], cpu.gprs[RDX]) = (0, 0),
            Exit::ControlRegister(ControlRegisterAccess::Write { register: 3, .. }) => {
                cpu.gprs[RAX] = match self.value & 7 {
                    0 => self.value,
                    1 => TARGET,
                    2 => OTHER,
                    3 => PAE_ROOT,
                    _ => self.value & 0xffff,
                };
            }
            Exit::ControlRegister(ControlRegisterAccess::Write { .. }) => {
                cpu.gprs[RAX] = match self.value >> 60 {
                    0 => self.value,
                    1..9 => cpu.cr0 ^ 1 << (self.value % 32),
                    _ => cpu.cr4 ^ 1 << (self.value % 32),
                };
            }
            _ => {}
        }
        cpu.rip = CODE + (self.value >> 8 & 0x3f);
        let allowed = 0x4_4fd5 & if cpu.efer & 0x400 == 0 { !0 } else { !0x4000 };
        cpu.rflags = cpu.rflags & VIRTUAL_8086 | 2 | self.value >> 16 & allowed;
        let delivered = interrupted.map(|event| event.kind);
        if delivered == Some(EventKind::ExternalInterrupt) {
            // It was let in.
            cpu.rflags |= 0x200;
        }
        let steps = cpu.rflags & 0x100 != 0 && cpu.debugctl & 2 == 0;
        let mut blocked = cpu.interruptibility & Interruptibility::BLOCKED_BY_NMI;
        blocked |= match self.flags & 7 {
            _ if delivered.is_some() => Interruptibility::empty(),
            0 if cpu.rflags & 0x200 != 0 => Interruptibility::BLOCKED_BY_STI,
            1 => Interruptibility::BLOCKED_BY_MOV_SS,
            2 => Interruptibility::BLOCKED_BY_NMI,
            _ => Interruptibility::empty(),
        };
        cpu.interruptibility = blocked;
        cpu.pending_debug = steps && blocked.intersects(Interruptibility::SHADOW);
        cpu.faulting_address = (self.flags & 8 == 0).then_some(address);
        if cpu.rflags & VIRTUAL_8086 == 0 {
            let is_user = cpu.cr0 & 1 != 0 && !is_privileged(exit) && self.flags & 0x10 != 0;
            cpu.set_cpl(if is_user { 3 } else { 0 });
        }
    }
}

/// Returns whether an exit comes at privilege level 0 only.
const fn is_privileged(exit: Exit) -> bool {
    matches!(
        exit,
        Exit::Rdmsr
            | Exit::Wrmsr
            | Exit::Hlt
            | Exit::ControlRegister(_)
            | Exit::DebugRegister
            | Exit::Xsetbv
            | Exit::CacheInvalidation
    )
}

/// The segment registers of a mode.
fn set_segments(cpu: &mut FakeCpu, code: u32, data: u32, limit: u32) {
    let segment = |selector, limit, rights| Segment {
        selector,
        base: 0,
        limit,
        rights: AccessRights::from_bits_retain(rights),
    };
    cpu.segments.fill(segment(0x10, limit, data));
    cpu.segments[SegmentRegister::Cs as usize] = segment(CS, limit, code);
    cpu.segments[SegmentRegister::Ldtr as usize] = segment(0, 0, 0x1_0000);
    let mut task = segment(0x20, 0x67, 0x8b);
    task.base = TASKS;
    cpu.segments[SegmentRegister::Tr as usize] = task;
    let table = DescriptorTable {
        base: GDT,
        limit: 0x7f,
    };
    cpu.set_gdtr(table);
    cpu.set_idtr(table);
}

/// Puts the processor into a mode, now and then.
fn set_mode(cpu: &mut FakeCpu, mode: u8) {
    const CODE_32: u32 = 0xc09b;
    const DATA_32: u32 = 0xc093;
    if mode < 0x80 {
        return;
    }
    cpu.rflags &= !VIRTUAL_8086;
    let whole = u32::MAX;
    match mode % 8 {
        0 | 1 => {
            (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8000_0031, OTHER, 0x20, 0x500);
            set_segments(cpu, 0xa09b, DATA_32, whole);
        }
        2 => {
            (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8000_0031, OTHER, 0x20, 0x500);
            set_segments(cpu, CODE_32, DATA_32, whole);
        }
        3 => {
            (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8000_0031, PAE_ROOT, 0x20, 0);
            cpu.set_pdptes(core::array::from_fn(|index| pae_pointer(index as u64)));
            set_segments(cpu, CODE_32, DATA_32, whole);
        }
        4 => {
            (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8000_0031, ROOT_32, 0x10, 0);
            set_segments(cpu, CODE_32, DATA_32, whole);
        }
        5 => {
            (cpu.cr0, cpu.cr4, cpu.efer) = (0x31, 0, 0);
            set_segments(cpu, 0x9b, 0x93, 0xffff);
        }
        6 => {
            (cpu.cr0, cpu.cr4, cpu.efer) = (0x30, 0, 0);
            set_segments(cpu, 0x9b, 0x93, 0xffff);
        }
        _ => {
            (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8000_0031, ROOT_32, 0x10, 0);
            set_segments(cpu, 0xf3, 0xf3, 0xffff);
            for segment in &mut cpu.segments[..6] {
                segment.base = u64::from(segment.selector) << 4;
            }
            cpu.rflags |= VIRTUAL_8086;
        }
    }
}

const fn pae_pointer(index: u64) -> u64 {
    (PAE_DIRECTORIES + index * 0x1000) | 1
}

/// Writes page tables, descriptors and task-state segments.
fn fill_memory(vcpu: &Vcpu<FakeCpu>) {
    let put = |address: u64, value: u64| {
        let written = vcpu
            .vm
            .ram
            .write(GuestPhysAddr(address), &value.to_le_bytes());
        assert!(written.is_ok());
    };
    for root in [TARGET, OTHER] {
        put(root, PDPT | 7);
    }
    for gigabyte in 0..4 {
        put(PDPT + 8 * gigabyte, gigabyte << 30 | 0x87);
        put(PAE_ROOT + 8 * gigabyte, pae_pointer(gigabyte));
        for entry in 0..512 {
            let address = gigabyte << 30 | entry << 21;
            put(
                PAE_DIRECTORIES + gigabyte * 0x1000 + 8 * entry,
                address | 0x87,
            );
        }
    }
    for pair in 0..512 {
        let address = pair << 23;
        put(
            ROOT_32 + 8 * pair,
            address | 0x87 | (address | 0x40_0087) << 32,
        );
    }
    for (slot, descriptor) in [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_9b00_0000_ffff,
        // Task-state segments, of 32 bits and of 16, and a task gate.
        task(0, 0x8b),
        task(1, 0x89),
        task(2, 0x81),
        task(3, 0x89),
        0x0000_8500_0028_0000,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
    ]
    .into_iter()
    .enumerate()
    {
        put(GDT + 8 * slot as u64, descriptor);
    }
    for number in 0..4 {
        let tss = TASKS + number * 0x80;
        // CR3 and EIP, EFLAGS, ESP, and the selectors.
        put(tss + 0x1c, ROOT_32 | CODE << 32);
        put(tss + 0x24, 2);
        put(tss + 0x38, CODE - 0x80);
        for (offset, selector) in [(0x48, 0x10), (0x4c, 0x08), (0x50, 0x10), (0x54, 0x10)] {
            put(tss + offset, selector);
        }
    }
}

/// The descriptor of a task-state segment.
const fn task(number: u64, kind: u64) -> u64 {
    0x67 | (TASKS + number * 0x80) << 16 | kind << 40
}

/// Does to the VCPU what others may, who are not its guest. Returns whether it was anything.
fn act_from_outside(vcpu: &mut Vcpu<FakeCpu>, act: Act) -> bool {
    let vm = vcpu.vm.clone();
    let vector = act.value as u8;
    match act.outside {
        0..8 => send(&vm, DeliveryMode::Fixed, vector | 0x10),
        8..12 => send(&vm, DeliveryMode::Nmi, 0),
        12 => send(&vm, DeliveryMode::Init, 0),
        13 => send(&vm, DeliveryMode::StartUp, vector),
        14 => send(&vm, DeliveryMode::ExtInt, 0),
        15 => send(&vm, DeliveryMode::LowestPriority, vector),
        16..18 => {
            vm.request(0, Requests::from_bits_truncate(act.value as u32));
        }
        18..20 => vm.with_chipset(host_now(), |chipset, env| {
            chipset.serial_receive(vector, env);
        }),
        60 => vm.with_chipset(host_now(), |chipset, env| chipset.press_power_button(env)),
        20 => host_clock::advance(act.value & 0x3fff_ffff),
        // A word of memory: tables, descriptors, code.
        21..60 => {
            let place = GuestPhysAddr(((act.place >> 3) % END) & !7);
            let _ = vm.ram.write(place, &act.value.to_le_bytes());
        }
        _ => return false,
    }
    true
}

/// Checks what has become of an exit of the guest at `rip`: the instruction is done, and RIP is behind it; or
/// it is to be done again, or again in part; or RIP is where it was, and the guest has an exception.
fn check_outcome(vcpu: &Vcpu<FakeCpu>, exit: Exit, rip: u64) {
    let cpu = &vcpu.cpu;
    let Some(entry) = cpu.entries.get(1) else {
        return;
    };
    if cpu.segment_selector(SegmentRegister::Cs) != CS {
        // It has reset itself, and gone on where its firmware was told to.
        return;
    }
    let has_fault = entry.event.is_some_and(|event| {
        matches!(
            event.kind,
            EventKind::HardwareException | EventKind::PrivilegedSoftwareException
        )
    });
    let is_done = cpu.rip == rip + 2;
    match exit {
        Exit::Cpuid
        | Exit::Io(_)
        | Exit::Rdtsc
        | Exit::Rdtscp
        | Exit::CacheInvalidation
        | Exit::Pause
        | Exit::DebugRegister => assert!(is_done && !has_fault, "{exit:?}"),
        Exit::Rdmsr | Exit::Wrmsr | Exit::Xsetbv | Exit::Hypercall => {
            assert_eq!(is_done, !has_fault, "{exit:?}");
            assert!(is_done || cpu.rip == rip, "{exit:?}");
        }
        Exit::Rdpmc | Exit::UndefinedInstruction | Exit::Exception(_) => {
            assert!(has_fault && cpu.rip == rip, "{exit:?}");
        }
        Exit::TimeLimit
        | Exit::InterruptWindow
        | Exit::NmiWindow
        | Exit::TprBelowThreshold
        | Exit::ApicWrite { .. }
        | Exit::EndOfInterrupt { .. }
        | Exit::HostInterrupt
        | Exit::HostNmi => assert!(cpu.rip == rip && !has_fault, "{exit:?}"),
        Exit::StringIo(_) | Exit::ControlRegister(_) => {
            assert!(is_done || cpu.rip == rip, "{exit:?}");
            assert!(!(is_done && has_fault), "{exit:?}");
        }
        // The instruction decides, or the task.
        _ => {}
    }
}

/// Returns whether a guest may end its VM so.
fn is_allowed(reason: &StopReason) -> bool {
    match reason {
        StopReason::PowerOff
        | StopReason::Reset
        | StopReason::DebugExit(_)
        | StopReason::TripleFault
        | StopReason::NotRam(_) => true,
        StopReason::Unsupported(instruction) => instruction.reason.is_guests_end(),
        _ => false,
    }
}

/// Has the guest do `act`. Returns whether it goes on.
fn perform(vcpu: &mut Vcpu<FakeCpu>, act: Act) -> bool {
    let is_alone = !act_from_outside(vcpu, act);
    if vcpu.activity != Activity::Running {
        // Time goes on until something wakes it, or somebody does.
        if vcpu.deadline().0 < u64::MAX {
            host_clock::set(vcpu.deadline().max(host_now()));
        } else {
            send(&vcpu.vm, DeliveryMode::Nmi, 0);
        }
    }
    let code = vcpu
        .vm
        .ram
        .write(GuestPhysAddr(CODE + (act.value >> 8 & 0x3f)), &act.code);
    assert!(code.is_ok());
    vcpu.cpu.entries.clear();
    vcpu.cpu.exits.clear();
    vcpu.cpu.script.clear();
    vcpu.then(Stay::deciding(move |cpu| {
        // The mode decides which exits there are.
        set_mode(cpu, act.mode);
        let mut exit = act.exit(cpu);
        if cpu.rflags & VIRTUAL_8086 != 0 && is_privileged(exit) {
            exit = Exit::Pause;
        }
        let limit = cpu.last_entry().time_limit;
        host_clock::advance(match exit {
            Exit::TimeLimit => limit,
            _ => limit.min(act.value >> 48 & 0x3f),
        });
        let interrupted = act.interrupted(exit);
        act.prepare(cpu, exit, interrupted);
        (exit, interrupted)
    }));
    let outcome = vcpu.run(host_now().saturating_add(50 + (act.value >> 40 & 0xff)));
    if let RunExit::Stopped(reason) = &outcome {
        assert!(is_allowed(reason), "{act:?}: {reason:?}");
        let mut text = std::string::String::new();
        assert!(vcpu.write_dump(&mut text).is_ok());
        return false;
    }
    assert_ne!(outcome, RunExit::Loaded, "{act:?}");
    if is_alone
        && vcpu.activity == Activity::Running
        && let Some(&exit) = vcpu.cpu.exits.first()
    {
        check_outcome(vcpu, exit, CODE + (act.value >> 8 & 0x3f));
    }
    true
}

#[test]
fn exits() {
    fuzzing::check!()
        .with_type::<(u8, Vec<Bytes>)>()
        .for_each(|(kind, acts)| {
            let mut vcpu = with_processes(match kind & 1 {
                0 => vcpu(),
                _ => vcpu_with_virtual_delivery(),
            });
            fill_memory(&vcpu);
            if kind & 6 == 6 {
                suppress(&vcpu.vm, TARGET, 1000, Policy::default());
            }
            for act in acts {
                if !perform(&mut vcpu, Act::new(act)) {
                    break;
                }
            }
        });
}
