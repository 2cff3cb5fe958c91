//! What the emulation of one device access costs, in instructions:
//!
//! ```text
//! cargo build --release -p hypervisor --example emulation_cost
//! valgrind --tool=callgrind --toggle-collect='*emulate_once*' \
//!     target/release/examples/emulation_cost fast
//! ```
//!
//! The total divided by [`ROUNDS`] is the cost. Forms: `fast` (a plain MOV from a 2 MiB
//! page of code), `fast4k` (from a 4 KiB page), `general` (the same MOV by the full decoder),
//! `or` (a read-modify-write).

use std::hint::black_box;

use hypervisor::emulate::{
    AccessRights, Bus, Bytes, Computation, Computed, Cpu, DescriptorTable, Segment,
    SegmentRegister, Violation, Width, emulate, prepare,
};
use hypervisor::guest_memory::{GuestMemory, NotRam};
use hypervisor::guest_paging::PagingRegisters;
use vmx::addr::GuestPhysAddr;

const ROUNDS: u64 = 100;
const CODE: u64 = 0xffff_ffff_8110_0000;
const DEVICE: u64 = 0xffff_ffff_ff5f_b000;
const DEVICE_GPA: u64 = arch::apic::DEFAULT_ADDRESS;

/// RAM as the hypervisor would have it: a bounds check and a load.
struct Ram(*mut u8, u64);

impl Ram {
    fn at(&self, address: GuestPhysAddr, length: usize) -> Result<*mut u8, NotRam> {
        match address.0.checked_add(length as u64) {
            Some(end) if end <= self.1 => Ok(self.0.wrapping_add(address.0 as usize)),
            _ => Err(NotRam { address, length }),
        }
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let from = self.at(address, buffer.len())?;
        // SAFETY: `at` has checked that the range is within the allocation, which lives as
        // long as the program and is not referenced otherwise.
        unsafe { from.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let to = self.at(address, data.len())?;
        // SAFETY: As for `read`.
        unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    fn read_u64(&self, address: GuestPhysAddr) -> Result<u64, NotRam> {
        let from = self.at(address, 8)?;
        // SAFETY: As for `read`.
        Ok(unsafe { from.cast::<u64>().read_unaligned() })
    }
}

struct Vcpu {
    gprs: [u64; 16],
    rip: u64,
}

impl PagingRegisters for Vcpu {
    fn cr0(&self) -> u64 {
        black_box(0x8005_0033)
    }
    fn cr3(&self) -> u64 {
        black_box(0x1000)
    }
    fn cr4(&self) -> u64 {
        black_box(0x30_06a0)
    }
    fn efer(&self) -> u64 {
        black_box(0xd01)
    }
    fn pdpte(&self, _: usize) -> u64 {
        0
    }
    fn physical_address_bits(&self) -> u32 {
        black_box(40)
    }
}

impl Cpu for Vcpu {
    fn xcr0(&self) -> u64 {
        1
    }
    fn gpr(&self, index: usize) -> u64 {
        self.gprs[index & 15]
    }
    fn set_gpr(&mut self, index: usize, value: u64) {
        self.gprs[index & 15] = value;
    }
    fn xmm(&self, _: usize) -> u128 {
        black_box(0)
    }
    fn set_xmm(&mut self, _: usize, _: u128) {}
    fn ymm_high(&self, _: usize) -> u128 {
        0
    }
    fn set_ymm_high(&mut self, _: usize, _: u128) {}
    fn rip(&self) -> u64 {
        black_box(self.rip)
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        black_box(2)
    }
    fn set_rflags(&mut self, _: u64) {}
    fn cpl(&self) -> u8 {
        black_box(0)
    }
    fn segment_selector(&self, _: SegmentRegister) -> u16 {
        black_box(0x10)
    }
    fn segment_base(&self, _: SegmentRegister) -> u64 {
        black_box(0)
    }
    fn segment_limit(&self, _: SegmentRegister) -> u32 {
        black_box(u32::MAX)
    }
    fn segment_rights(&self, _: SegmentRegister) -> AccessRights {
        AccessRights::from_bits_retain(black_box(0xa09b))
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        Segment {
            selector: self.segment_selector(register),
            base: self.segment_base(register),
            limit: self.segment_limit(register),
            rights: self.segment_rights(register),
        }
    }
    fn set_segment(&mut self, _: SegmentRegister, _: Segment) {}
    fn block_events_by_mov_ss(&mut self) {}
    fn gdtr(&self) -> DescriptorTable {
        DescriptorTable { base: 0, limit: 0 }
    }
    fn set_gdtr(&mut self, _: DescriptorTable) {}
    fn idtr(&self) -> DescriptorTable {
        DescriptorTable { base: 0, limit: 0 }
    }
    fn set_idtr(&mut self, _: DescriptorTable) {}
    fn compute(&mut self, _: &mut Computation<'_>, _: &mut Bytes) -> Computed {
        Computed::Unavailable
    }
    fn load_machine_status(&mut self, _: u16) {}
}

struct Register(u64);

impl Bus for Register {
    fn read(&mut self, _: GuestPhysAddr, _: Width) -> u64 {
        black_box(self.0)
    }
    fn write(&mut self, _: GuestPhysAddr, _: Width, value: u64) {
        self.0 = black_box(value);
    }
}

#[inline(never)]
fn emulate_once(cpu: &mut Vcpu, ram: &Ram, bus: &mut Register, violation: Option<Violation>) {
    cpu.rip = CODE;
    emulate(cpu, ram, bus, violation).expect("it is emulated");
}

fn main() {
    let form = std::env::args().nth(1).unwrap_or_default();
    let size = 0x60_0000;
    let bytes = Box::leak(vec![0u8; size as usize].into_boxed_slice());
    let ram = Ram(bytes.as_mut_ptr(), size);
    let set = |at: u64, value: u64| {
        ram.write(GuestPhysAddr(at), &value.to_le_bytes())
            .expect("in RAM");
    };
    let slot = |linear: u64, shift: u32| (linear >> shift & 511) * 8;
    set(0x1000 + slot(CODE, 39), 0x2063);
    set(0x2000 + slot(CODE, 30), 0x3063);
    set(0x2000 + slot(DEVICE, 30), 0x3063);
    if form == "fast4k" {
        set(0x3000 + slot(CODE, 21), 0x5063);
        set(0x5000 + slot(CODE, 12), 0x30_0063);
    } else {
        set(0x3000 + slot(CODE, 21), 0x20_00e3);
    }
    set(0x3000 + slot(DEVICE, 21), 0x4063);
    set(0x4000 + slot(DEVICE, 12), DEVICE_GPA | 0x63);
    // mov eax, [rdi + 0xf0], or: or dword ptr [rdi + 0xf0], 1
    let code: &[u8] = if form == "or" {
        &[0x83, 0x8f, 0xf0, 0, 0, 0, 1]
    } else {
        &[0x8b, 0x87, 0xf0, 0, 0, 0]
    };
    for page in [0x30_0000, 0x20_0000 | (CODE & 0x1f_ffff)] {
        ram.write(GuestPhysAddr(page), code).expect("in RAM");
    }

    let mut cpu = Vcpu {
        gprs: [DEVICE; 16],
        rip: CODE,
    };
    prepare();
    let mut register = Register(5);
    let violation = form.starts_with("fast").then_some(Violation {
        address: GuestPhysAddr(DEVICE_GPA + 0xf0),
        write: false,
    });
    for _ in 0..ROUNDS {
        emulate_once(&mut cpu, &ram, &mut register, violation);
    }
    black_box(register.0);
}
