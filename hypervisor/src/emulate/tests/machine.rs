//! A VCPU, its RAM and one device, for emulator tests.

use core::cell::Cell;
use std::vec::Vec;

use vmx::addr::GuestPhysAddr;

use super::super::*;
use crate::guest_paging::PagingRegisters;
use crate::machine::native;
use crate::test_ram::TestRam;

/// The linear address of 64-bit tests' code; on the last page before unmapped space.
pub(super) const CODE: u64 = 0x40_0000;
/// The address of the code in RAM.
pub(super) const CODE_RAM: u64 = 0x8_0000;
/// The address of the data pages, linear and physical.
pub(super) const DATA: u64 = 0x9_0000;
/// The device, linear: two pages, with RAM on the page before, and nothing behind.
pub(super) const DEVICE: u64 = 0xffff_8000_0010_1000;
/// The device's guest-physical address.
pub(super) const DEVICE_GPA: u64 = 0xfed0_0000;
/// The RAM page before the device, linear.
pub(super) const BEFORE_DEVICE: u64 = DEVICE - 0x1000;
/// A page that user mode must not touch, linear.
pub(super) const KERNEL_PAGE: u64 = 0x7000_0000;
/// A page that nobody may write, linear.
pub(super) const READ_ONLY_PAGE: u64 = 0x7000_1000;

const PRESENT_WRITABLE_USER: u64 = 7;

/// A segment register, with its rights as a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TestSegment {
    pub(super) selector: u16,
    pub(super) base: u64,
    pub(super) limit: u32,
    pub(super) rights: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct TestCpu {
    pub(super) gprs: [u64; 16],
    pub(super) xmms: [u128; 16],
    pub(super) ymm_highs: [u128; 16],
    /// FCW to ST7, with MXCSR, as FXSAVE has them.
    pub(super) x87: [u8; 160],
    pub(super) xcr0: u64,
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) segments: [TestSegment; 8],
    pub(super) gdtr: DescriptorTable,
    pub(super) idtr: DescriptorTable,
    /// Whether events are blocked as after a load of SS.
    pub(super) blocked_by_mov_ss: bool,
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    pub(super) cpl: u8,
    /// The number of register reads that would have been VMREADs.
    pub(super) vmreads: Cell<u32>,
}

impl TestCpu {
    /// Its registers of x87, SSE and AVX as XRSTOR takes them.
    fn area(&self) -> native::saved::Area {
        let mut area = [0; 1024];
        area[..160].copy_from_slice(&self.x87);
        for index in 0..16 {
            let xmm = 160 + 16 * index;
            area[xmm..xmm + 16].copy_from_slice(&self.xmms[index].to_le_bytes());
            let high = 576 + 16 * index;
            area[high..high + 16].copy_from_slice(&self.ymm_highs[index].to_le_bytes());
        }
        area[512] = 7;
        native::saved::Area(area)
    }

    fn set_area(&mut self, area: &native::saved::Area) {
        let value = |at: usize| u128::from_le_bytes(area.0[at..at + 16].try_into().unwrap());
        self.x87.copy_from_slice(&area.0[..160]);
        // MXCSR_MASK, which is the processor's to store.
        self.x87[28..32].fill(0);
        for index in 0..16 {
            self.xmms[index] = value(160 + 16 * index);
            self.ymm_highs[index] = value(576 + 16 * index);
        }
    }

    fn vmread<T>(&self, value: T) -> T {
        self.vmreads.set(self.vmreads.get() + 1);
        value
    }
}

impl PagingRegisters for TestCpu {
    fn cr0(&self) -> u64 {
        self.vmread(self.cr0)
    }
    fn cr3(&self) -> u64 {
        self.vmread(self.cr3)
    }
    fn cr4(&self) -> u64 {
        self.vmread(self.cr4)
    }
    fn efer(&self) -> u64 {
        self.vmread(self.efer)
    }
    fn pdpte(&self, _: usize) -> u64 {
        0
    }
    fn physical_address_bits(&self) -> u32 {
        40
    }
}

impl Cpu for TestCpu {
    fn xcr0(&self) -> u64 {
        self.vmread(self.xcr0)
    }
    fn gpr(&self, index: usize) -> u64 {
        self.gprs[index]
    }
    fn set_gpr(&mut self, index: usize, value: u64) {
        self.gprs[index] = value;
    }
    fn xmm(&self, index: usize) -> u128 {
        self.xmms[index]
    }
    fn set_xmm(&mut self, index: usize, value: u128) {
        self.xmms[index] = value;
    }
    fn ymm_high(&self, index: usize) -> u128 {
        self.ymm_highs[index]
    }
    fn set_ymm_high(&mut self, index: usize, value: u128) {
        self.ymm_highs[index] = value;
    }
    fn rip(&self) -> u64 {
        self.vmread(self.rip)
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.vmread(self.rflags)
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn cpl(&self) -> u8 {
        self.vmread(self.cpl)
    }
    fn segment_selector(&self, segment: SegmentRegister) -> u16 {
        self.vmread(self.segments[segment as usize].selector)
    }
    fn segment_base(&self, segment: SegmentRegister) -> u64 {
        self.vmread(self.segments[segment as usize].base)
    }
    fn segment_limit(&self, segment: SegmentRegister) -> u32 {
        self.vmread(self.segments[segment as usize].limit)
    }
    fn segment_rights(&self, segment: SegmentRegister) -> AccessRights {
        AccessRights::from_bits_retain(self.vmread(self.segments[segment as usize].rights))
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        let segment = self.segments[register as usize];
        Segment {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            rights: AccessRights::from_bits_retain(segment.rights),
        }
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = TestSegment {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            rights: segment.rights.bits(),
        };
    }
    fn block_events_by_mov_ss(&mut self) {
        self.blocked_by_mov_ss = true;
    }
    fn gdtr(&self) -> DescriptorTable {
        self.gdtr
    }
    fn set_gdtr(&mut self, table: DescriptorTable) {
        self.gdtr = table;
    }
    fn idtr(&self) -> DescriptorTable {
        self.idtr
    }
    fn set_idtr(&mut self, table: DescriptorTable) {
        self.idtr = table;
    }
    fn compute(&mut self, computation: &mut Computation<'_>, operand: &mut Bytes) -> Computed {
        let mut area = self.area();
        // SAFETY: the area is made as XRSTOR takes it, and CPUs that run tests have AVX.
        let outcome = unsafe { native::saved::run(computation, operand, &mut area) };
        self.set_area(&area);
        outcome
    }
    fn load_machine_status(&mut self, value: u16) {
        self.cr0 = self.cr0 & !0xe | u64::from(value) & 0xf;
    }
}

/// An access that a device has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Seen {
    Read(u64, usize),
    Write(u64, usize, u64),
    In(u16, usize),
    Out(u16, usize, u32),
}

/// Two pages of device memory that remember what is written, and every access. Offsets in
/// [`Seen`] are from its start.
pub(super) struct Device {
    pub(super) cells: Vec<u8>,
    pub(super) seen: Vec<Seen>,
    /// The value that ports read next, counting up.
    pub(super) port_value: u32,
}

impl Device {
    pub(super) fn set(&mut self, offset: usize, value: u64) {
        self.cells[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn get(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.cells[offset..offset + 8].try_into().unwrap())
    }
}

impl Bus for Device {
    fn read(&mut self, address: GuestPhysAddr, width: Width) -> u64 {
        let offset = address.0.wrapping_sub(DEVICE_GPA) as usize;
        assert!(offset % 4096 + width.bytes() <= 4096, "crosses a page");
        self.seen.push(Seen::Read(offset as u64, width.bytes()));
        let mut value = [0xee; 8];
        // Nothing is behind the device, and reads as ones.
        match self.cells.get(offset..offset.saturating_add(width.bytes())) {
            Some(cells) => value[..width.bytes()].copy_from_slice(cells),
            None => return u64::MAX,
        }
        u64::from_le_bytes(value)
    }

    fn write(&mut self, address: GuestPhysAddr, width: Width, value: u64) {
        let offset = address.0.wrapping_sub(DEVICE_GPA) as usize;
        assert!(offset % 4096 + width.bytes() <= 4096, "crosses a page");
        assert_eq!(value & !width.mask(), 0, "bits above the width");
        self.seen
            .push(Seen::Write(offset as u64, width.bytes(), value));
        let range = offset..offset.saturating_add(width.bytes());
        if let Some(cells) = self.cells.get_mut(range) {
            cells.copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
        }
    }
}

impl Ports for Device {
    fn read_port(&mut self, port: u16, width: Width) -> u32 {
        self.seen.push(Seen::In(port, width.bytes()));
        self.port_value += 1;
        self.port_value
    }

    fn write_port(&mut self, port: u16, width: Width, value: u32) {
        self.seen.push(Seen::Out(port, width.bytes(), value));
    }
}

pub(super) struct Machine {
    pub(super) cpu: TestCpu,
    pub(super) ram: TestRam,
    pub(super) device: Device,
}

/// FCW and MXCSR after power-up.
fn fresh_x87() -> [u8; 160] {
    let mut image = [0; 160];
    image[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    image
}

const FLAT_CODE: u32 = 0xc09b;
const FLAT_DATA: u32 = 0xc093;

impl Machine {
    fn new(code_rights: u32, limit: u32) -> Self {
        let data = TestSegment {
            selector: 0x10,
            base: 0,
            limit,
            rights: FLAT_DATA,
        };
        let mut segments = [data; 8];
        segments[SegmentRegister::Ldtr as usize].rights = 1 << 16;
        segments[SegmentRegister::Cs as usize].rights = code_rights;
        Self {
            cpu: TestCpu {
                gprs: [0; 16],
                xmms: [0; 16],
                ymm_highs: [0; 16],
                x87: fresh_x87(),
                rip: CODE,
                rflags: 2,
                segments,
                gdtr: DescriptorTable { base: 0, limit: 0 },
                idtr: DescriptorTable { base: 0, limit: 0 },
                blocked_by_mov_ss: false,
                cr0: 1,
                cr3: 0,
                // OSFXSR and OSXSAVE.
                cr4: 1 << 9 | 1 << 18,
                efer: 0,
                // x87, SSE and AVX.
                xcr0: 7,
                cpl: 0,
                vmreads: Cell::new(0),
            },
            ram: TestRam::new(0x10_0000),
            device: Device {
                cells: std::vec![0; 0x2000],
                seen: Vec::new(),
                port_value: 0,
            },
        }
    }

    /// 64-bit mode, CPL 0, with the pages that the constants above name.
    pub(super) fn long(code: &[u8]) -> Self {
        let mut machine = Self::new(0xa09b, 0xffff_ffff);
        machine.cpu.cr0 = 0x8001_0001;
        machine.cpu.cr3 = 0x1000;
        machine.cpu.cr4 |= 1 << 5 | 1 << 10;
        machine.cpu.efer = 0xd00;
        machine.map(CODE, CODE_RAM | PRESENT_WRITABLE_USER);
        for page in 0..16 {
            let page = page << 12;
            machine.map(DATA + page, (DATA + page) | PRESENT_WRITABLE_USER);
        }
        machine.map(BEFORE_DEVICE, (DATA + 0x5000) | PRESENT_WRITABLE_USER);
        machine.map(DEVICE, DEVICE_GPA | PRESENT_WRITABLE_USER);
        machine.map(
            DEVICE + 0x1000,
            (DEVICE_GPA + 0x1000) | PRESENT_WRITABLE_USER,
        );
        machine.map(KERNEL_PAGE, DATA | 3);
        machine.map(READ_ONLY_PAGE, DATA | 5);
        machine.load(code);
        machine
    }

    /// 32-bit protected mode, flat, without paging.
    pub(super) fn protected(code: &[u8]) -> Self {
        let mut machine = Self::new(FLAT_CODE, 0xffff_ffff);
        machine.cpu.rip = CODE_RAM;
        machine.load(code);
        machine
    }

    /// Real-address mode, with FS based at the device (as after "unreal" mode), all other
    /// segments at zero with a limit of 64 KiB.
    pub(super) fn real(code: &[u8]) -> Self {
        let mut machine = Self::new(0x9b, 0xffff);
        machine.cpu.cr0 = 0;
        for segment in &mut machine.cpu.segments {
            segment.rights &= 0x3fff;
        }
        machine.cpu.segments[SegmentRegister::Cs as usize].base = CODE_RAM;
        machine.cpu.segments[SegmentRegister::Fs as usize].base = DEVICE_GPA;
        machine.cpu.rip = 0;
        machine.load(code);
        machine
    }

    fn load(&mut self, code: &[u8]) {
        self.ram.write(GuestPhysAddr(CODE_RAM), code).unwrap();
    }

    /// Moves the code so that its first `length` bytes are the last of a page.
    pub(super) fn end_page_after(&mut self, code: &[u8], length: u64) {
        let start = 0x1000 - length;
        self.ram
            .write(GuestPhysAddr(CODE_RAM + start), code)
            .unwrap();
        self.cpu.rip = CODE + start;
    }

    /// Maps the 4 KiB page at `linear` by the entry `pte`, with all rights above it.
    pub(super) fn map(&mut self, linear: u64, pte: u64) {
        let mut table = self.cpu.cr3;
        for shift in [39, 30, 21] {
            let slot = table + ((linear >> shift) & 0x1ff) * 8;
            let entry = self.ram.read_u64(GuestPhysAddr(slot)).unwrap();
            table = if entry == 0 {
                // The first free page.
                let mut free = self.cpu.cr3 + 0x1000;
                while (free..free + 0x1000)
                    .step_by(8)
                    .any(|slot| self.ram.read_u64(GuestPhysAddr(slot)).unwrap() != 0)
                {
                    free += 0x1000;
                }
                self.ram.write_u64(slot, free | PRESENT_WRITABLE_USER);
                // In use from now on, even before its first entry is set.
                self.ram.write_u64(free + 0xff8, 1 << 62);
                free
            } else {
                entry & !0xfff
            };
        }
        self.ram
            .write_u64(table + ((linear >> 12) & 0x1ff) * 8, pte);
    }

    pub(super) fn emulate(&mut self) -> Result<Completed, EmulationError> {
        emulate(&mut self.cpu, &self.ram, &mut self.device, None)
    }

    /// Emulates with the EPT violation that the access at `offset` of the device caused.
    pub(super) fn emulate_violation(
        &mut self,
        offset: u64,
        write: bool,
    ) -> Result<Completed, EmulationError> {
        let violation = Violation {
            address: GuestPhysAddr(DEVICE_GPA + offset),
            write,
        };
        emulate(&mut self.cpu, &self.ram, &mut self.device, Some(violation))
    }

    /// Emulates, and expects a fault that changes nothing.
    pub(super) fn fault(&mut self) -> Fault {
        let (cpu, ram) = (self.cpu.clone(), self.ram.snapshot());
        let Err(EmulationError::Fault(fault)) = self.emulate() else {
            panic!("no fault");
        };
        self.cpu.vmreads.set(cpu.vmreads.get());
        assert_eq!(self.cpu, cpu, "registers changed");
        assert!(
            self.ram.snapshot()[DATA as usize..] == ram[DATA as usize..],
            "memory changed"
        );
        assert!(
            !self
                .device
                .seen
                .iter()
                .any(|seen| matches!(seen, Seen::Write(..) | Seen::Out(..))),
            "device written"
        );
        fault
    }
}

/// The bytes of instructions, as the compiler's own assembler makes them.
macro_rules! code {
    ($($line:literal),+ $(,)?) => {{
        let (start, end): (usize, usize);
        // SAFETY: Two addresses of read-only data are computed; the instructions between
        // them are data, and not executed.
        unsafe {
            core::arch::asm!(
                ".pushsection .rodata",
                "2:",
                $($line,)+
                "3:",
                ".code64",
                ".popsection",
                "lea {0}, [rip + 2b]",
                "lea {1}, [rip + 3b]",
                out(reg) start,
                out(reg) end,
                options(nomem, nostack, preserves_flags, pure)
            );
        }
        // SAFETY: The bytes between the labels are read-only data of this program.
        unsafe { core::slice::from_raw_parts(start as *const u8, end - start) }
    }};
}
pub(super) use code;
