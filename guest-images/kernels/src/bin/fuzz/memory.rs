//! Memory: devices and holes by instructions of all forms, page tables that are wrong, and what lies across
//! the borders of pages.

use core::arch::asm;
use core::cell::UnsafeCell;

use kernels::dice::Dice;
use kernels::memory::{self as tables, LARGE, PAGE, PRESENT, UNMAPPED, WRITABLE};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lgdt;
use x86_64::structures::DescriptorTablePointer;

use crate::code::{self, execute};
use crate::{Action, RUINOUS};

pub(crate) const ACTIONS: &[Action] = &[
    (any_form, 200),
    (plain, 60),
    (wrong_tables, 30),
    (wrong_root, 5),
    (across_pages, 30),
    (fetch, 10),
    (stack, 10),
    (descriptors, 15),
];

/// Devices, the edge of each of which is near others' or nothing's, and places of nothing.
const PLACES: [u64; 12] = [
    0xfee0_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xb000_0000,
    0xb_8000,
    0xa_0000,
    0xf_0000,
    0xe000_0000,
    0xfee0_1000,
    0xc000_0000,
    0xffff_f000,
    0x4000_0000,
];

/// The address that this kernel is loaded at. Below it are tables and text, which are no code.
const KERNEL: u64 = 1 << 20;
/// The end of the RAM that this kernel is given.
const RAM: u64 = 16 << 20;

#[repr(C, align(4096))]
struct Pages(UnsafeCell<[u8; 5 * PAGE]>);

// SAFETY: one CPU; nothing that matters is in them.
unsafe impl Sync for Pages {}

static PAGES: Pages = Pages(UnsafeCell::new([0; 5 * PAGE]));

/// A page that nothing else is in. The last two are page tables.
pub(crate) fn page(number: usize) -> *mut u8 {
    PAGES.0.get().cast::<u8>().wrapping_add(number % 5 * PAGE)
}

/// What becomes of an address by which a message might be sent: one that resets this CPU is nothing that it
/// comes back from. Messages have an action of their own.
fn without_messages(address: u64) -> u64 {
    /// The registers before it that a wide access reaches it from, and itself.
    const REACH: core::ops::Range<u64> = 0xfee0_02c0..0xfee0_0310;
    if REACH.contains(&address) {
        address + 0x100
    } else {
        address
    }
}

/// A linear address: of a device, of nothing, non-canonical, or of pages without and with RAM.
pub(crate) fn address(dice: &mut Dice) -> u64 {
    without_messages(match dice.below(16) {
        0 => dice.value() | 1 << 47,
        1 => UNMAPPED + dice.below(0x1000),
        2 => page(1) as u64 + dice.below(0x1000),
        3 => 0x1000_0000 + dice.below(0xa000_0000),
        4 => 0xfee0_0000 + dice.below(0x40) * 0x10,
        _ => dice.of(&PLACES) + dice.below(0x1000),
    })
}

/// An instruction of any form, with its operand anywhere.
fn any_form(dice: &mut Dice) {
    let address = address(dice);
    let other = page(1) as u64 + dice.below(0x800);
    let values = [
        address,
        dice.below(40),
        address,
        address,
        dice.of(&[address, other]),
        dice.of(&[address, other]),
    ];
    let code = code::instruction(dice, false);
    execute(dice.below(8000) as usize, &code, &values);
}

/// A plain access of any width.
fn plain(dice: &mut Dice) {
    let address = dice.of(&PLACES[..4]) + dice.below(0x400);
    let value = dice.value();
    // The register that resets the machine by a message.
    let is_command = address >> 4 == 0xfee0_0300 >> 4;
    // SAFETY: devices, which touch no memory that they are not told of.
    unsafe {
        match dice.below(8) {
            0 => asm!("mov {:r}, [{}]", out(reg) _, in(reg) address),
            1 => asm!("mov {:e}, [{}]", out(reg) _, in(reg) address),
            2 => asm!("mov {0:x}, [{1}]", out(reg) _, in(reg) address),
            3 => asm!("movzx {:e}, byte ptr [{}]", out(reg) _, in(reg) address),
            _ if is_command => {}
            4 => asm!("mov [{}], {:r}", in(reg) address, in(reg) value),
            5 => asm!("mov [{}], {:x}", in(reg) address, in(reg) value),
            6 => asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value as u8),
            _ => asm!("mov [{}], {:e}", in(reg) address, in(reg) value),
        }
    }
}

/// Flags of page-table entries that hardly go together.
fn flags(dice: &mut Dice) -> u64 {
    let flags = dice.any() & 0x8000_0000_0000_0fff;
    match dice.below(4) {
        0 => flags,
        1 => flags | PRESENT | 1 << (39 + dice.below(13)),
        _ => PRESENT | WRITABLE,
    }
}

/// Goes through tables that have reserved bits, lead out of RAM, to themselves, or to devices.
fn wrong_tables(dice: &mut Dice) {
    let (directory, table) = (page(3).cast::<u64>(), page(4).cast::<u64>());
    let target = dice.of(&[
        page(1) as u64,
        0xfee0_0000,
        0xb000_0000,
        0x7f_ffff_f000,
        directory as u64,
        0x4000_0000,
    ]);
    let next = dice.of(&[
        table as u64,
        table as u64,
        directory as u64,
        0xb000_0000,
        0x1_0000_0000,
    ]);
    let access = UNMAPPED + dice.below(0x1ff) * 8;
    // A jump to what a table's entries are would lead anywhere.
    let may_jump = next == table as u64 && target != directory as u64;
    // SAFETY: the tables are ours, and what they map is nobody's; the entry in the kernel's own table is one
    // that nothing else uses.
    unsafe {
        let pdpt = (*(tables::root() as *const u64) & arch::paging::ADDRESS) as *mut u64;
        let slot = pdpt.add((UNMAPPED >> 30 & 0x1ff) as usize);
        *directory = next | flags(dice) & !if dice.once_in(8) { 0 } else { LARGE };
        *table = target | flags(dice);
        *slot = directory as u64 | flags(dice) & !LARGE;
        asm!("invlpg [{}]", in(reg) access);
        let code: &[u8] = dice.of(&[
            &[0x8b, 0x06][..],         // MOV EAX, [RSI]
            &[0x89, 0x06],             // MOV [RSI], EAX
            &[0x48, 0x0f, 0xb1, 0x0e], // CMPXCHG [RSI], RCX
            if may_jump {
                &[0xff, 0x26] // JMP [RSI]
            } else {
                &[0xff, 0x36] // PUSH [RSI]
            },
            &[0x0f, 0x01, 0x3e], // INVLPG [RSI]
            &[0xf3, 0xa4],       // REP MOVSB
        ]);
        // A jump goes where nothing is.
        (page(1).cast::<u64>()).write(1 << 62);
        execute(0, code, &[0, 16, 0, 0, access, page(1) as u64]);
    }
}

/// Loads a root that is not in RAM: all tables are gone, for as long as it takes to fault twice.
fn wrong_root(dice: &mut Dice) {
    if !dice.once_in(RUINOUS) {
        // SAFETY: a root with bits that no address has is refused.
        unsafe { asm!("mov cr3, {}", in(reg) 1_u64 << dice.of(&[40, 46, 51, 52, 61])) };
        return;
    }
    // SAFETY: the end of this kernel.
    unsafe { asm!("mov cr3, {}", in(reg) dice.of(&[0xb000_0000_u64, 0xfee0_0000, 0x7f_ffff_f000])) }
}

/// Accesses that lie half on a device, and half on RAM, nothing or another device.
fn across_pages(dice: &mut Dice) {
    let place = dice.of(&PLACES);
    let address = dice.of(&[place, place + 0x1000, place + 0x400]) - dice.below(9);
    let code: &[u8] = dice.of(&[
        &[0x48, 0x8b, 0x06][..],
        &[0x48, 0x89, 0x06],
        &[0xf0, 0x48, 0x0f, 0xb1, 0x0e],
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0e],
        &[0x0f, 0x10, 0x06],
        &[0x0f, 0x11, 0x06],
        &[0xf3, 0x48, 0xa5],
        &[0x0f, 0xae, 0x06],
        &[0x0f, 0xae, 0x0e],
        &[0xff, 0x36],
        &[0x8f, 0x06],
        &[0x0f, 0x01, 0x06],
        &[0x66, 0x0f, 0xc8],
    ]);
    execute(4090, code, &[0, 3, 0, 0, address, page(1) as u64]);
}

/// Fetches instructions from devices and from nothing.
fn fetch(dice: &mut Dice) {
    let address = address(dice);
    if holds_anything(address) {
        return;
    }
    // JMP RSI
    execute(0, &[0xff, 0xe6], &[0, 0, 0, 0, address, 0]);
}

/// Uses of a stack at RSI: first those that leave RIP alone.
const STACK_USERS: [&[u8]; 8] = [
    &[0x48, 0x89, 0xf4, 0x50],             // MOV RSP, RSI; PUSH RAX
    &[0x48, 0x89, 0xf4, 0x58],             // POP RAX
    &[0x48, 0x89, 0xf4, 0x9c, 0x9d],       // PUSHFQ; POPFQ
    &[0x48, 0x89, 0xf4, 0x0f, 0xa0],       // PUSH FS
    &[0x48, 0x89, 0xf4, 0xc8, 0x10, 0, 2], // ENTER 16, 2
    &[0x48, 0x89, 0xf4, 0xe8, 0, 0, 0, 0], // CALL
    &[0x48, 0x89, 0xf4, 0x48, 0xcf],       // IRETQ
    &[0x48, 0x89, 0xf4, 0x48, 0xcb],       // far return
];
/// The number of those that leave RIP alone.
const STAYING: usize = 5;

/// Returns whether there is memory that may hold anything, but no code.
fn holds_anything(address: u64) -> bool {
    address < KERNEL || (page(0) as u64..page(4) as u64).contains(&address)
}

/// Has the stack somewhere else.
fn stack(dice: &mut Dice) {
    let address = address(dice) & !7;
    // What returns from there goes where its words say.
    let code: &[u8] = dice.of(if holds_anything(address) {
        &STACK_USERS[..STAYING]
    } else {
        &STACK_USERS
    });
    execute(0, code, &[0, 0, 0, 0, address, 0]);
}

/// Has the descriptor table at the border of RAM, so that some of it is on a device or nowhere, and uses a
/// segment from there. The kernel's own are in RAM: without them no fault has a handler.
fn descriptors(dice: &mut Dice) {
    /// The kernel's own descriptors, in bytes.
    const OWN: u64 = 0x50;
    let border = dice.of(&[0xa_0000, RAM]);
    let base = match dice.once_in(RUINOUS) {
        true => address(dice),
        false => border - OWN - dice.below(3) * 4,
    };
    let mut old = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: memory that nothing else uses; only segments that the kernel does not use are loaded before the
    // table is put back.
    unsafe {
        asm!("sgdt [{}]", in(reg) &raw mut old);
        if base < RAM {
            let from = old.base.as_ptr::<u8>();
            (base as *mut u8).copy_from_nonoverlapping(from, OWN as usize);
        }
        lgdt(&DescriptorTablePointer {
            limit: 0x7f,
            base: VirtAddr::new_truncate(base),
        });
        let selector = dice.any() as u16 & 0x7f;
        match dice.below(6) {
            0 => asm!("mov fs, {0:e}", in(reg) selector),
            1 => asm!("mov gs, {0:e}", in(reg) selector),
            2 => asm!("lar {0:e}, {1:e}", out(reg) _, in(reg) u32::from(selector)),
            3 => asm!("verw {0:x}", in(reg) selector),
            4 => asm!("lldt {0:x}", in(reg) selector),
            _ => asm!("ltr {0:x}", in(reg) selector),
        }
    }
}
