//! What surrounds the hypervisor on bare metal: the way in, and the panic handler.

use core::panic::PanicInfo;
use core::ptr::addr_of;
use core::sync::atomic::AtomicU64;

use hypervisor::{ImageLayout, Trampoline};

core::arch::global_asm!(
    include_str!("long_mode.s"),
    include_str!("entry.s"),
    include_str!("trampoline.s"),
);

// Symbols of the linker script, entry.s and trampoline.s. Their addresses are their meaning.
unsafe extern "C" {
    static image_start: u8;
    static text_start: u8;
    static text_end: u8;
    static rodata_start: u8;
    static rodata_end: u8;
    static image_end: u8;
    static boot_stack_guard: u8;
    static ap_trampoline_start: u8;
    static ap_trampoline_root: u8;
    static ap_trampoline_efer: u8;
    static ap_trampoline_end: u8;
    static ap_stack: AtomicU64;
}

/// Takes over from entry.s, in long mode, on the boot stack, with what the loader left in EAX and
/// EBX.
#[unsafe(no_mangle)]
extern "C" fn start_in_long_mode(boot_magic: u32, info_address: u32) -> ! {
    let address = |symbol: *const u8| symbol as u64;
    let layout = ImageLayout {
        image: address(addr_of!(image_start))..address(addr_of!(image_end)),
        text: address(addr_of!(text_start))..address(addr_of!(text_end)),
        rodata: address(addr_of!(rodata_start))..address(addr_of!(rodata_end)),
        boot_stack_guard: address(addr_of!(boot_stack_guard)),
        trampoline: Trampoline {
            code: address(addr_of!(ap_trampoline_start))..address(addr_of!(ap_trampoline_end)),
            root: address(addr_of!(ap_trampoline_root)),
            efer: address(addr_of!(ap_trampoline_efer)),
            // SAFETY: eight aligned bytes of the image, used as nothing else.
            stack: unsafe { &ap_stack },
        },
    };
    // SAFETY: entry.s calls this once, on the boot CPU, with interrupts off, the first
    // 4 GiB identity-mapped, and the arguments as the boot loader gave them; the layout is
    // the linker's.
    unsafe { hypervisor::start(boot_magic, info_address, layout) }
}

/// Takes over from trampoline.s, in long mode on each application processor, on the stack that it
/// was given.
#[unsafe(no_mangle)]
extern "C" fn start_application_processor() -> ! {
    // SAFETY: trampoline.s calls this once on each application processor, with interrupts
    // off, on tarpit's own page tables.
    unsafe { hypervisor::start_application_processor() }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hypervisor::panicked(info)
}
