//! The interrupts by which the serial lines say that something has come in.
//!
//! They are NMIs to the boot CPU, which looks after the lines: interrupts of the host are of no use, for the reasons
//! that [kicks](super::smp::kick) are NMIs. Without them a line has to be looked at a thousand times a second, as a FIFO
//! of 16 bytes fills in 1.4 ms, and each look takes the guest that runs there an exit.
//!
//! An NMI tells who [listens](listen), and has it noted that something [has come](take). None is lost: the UART's
//! interrupt is an edge, and there is another one only after its FIFO was read empty. So who has seen that something has
//! come reads all of it.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, Ordering};

use devices::time::Hertz;
use uart_16550::spec::registers::{IER, LSR, offsets};
use x86_64::instructions::port::Port;

use super::acpi::Acpi;
use super::console_line::ConsoleLine;
use super::cpu::PerCpu;
use super::host_time::host_now;
use super::io_apic;
use super::serial::{CONSOLE, DETECTORS, Line};

/// The CPU that looks after the lines, by its index: the boot CPU.
const CPU: u32 = 0;

/// The time in which an interrupt comes that is asked for, as a divisor of a second.
const WAITS_PER_SECOND: u64 = 1000;

/// The first ports of the UARTs that interrupt; zero for none.
static PORTS: [AtomicU16; 2] = [const { AtomicU16::new(0) }; 2];
/// Whether an interrupt is on its way that was asked for to see whether it comes.
static IS_TRIED: AtomicBool = AtomicBool::new(false);
static HAS_COME: AtomicBool = AtomicBool::new(false);

/// The function that tells who listens, and what it is given.
static TELL: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
static LISTENER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Somebody who is told, by the handler of an NMI, that something has come.
pub(crate) trait Listener: Sync {
    /// Takes note of it. The handler may have interrupted anything that the boot CPU does.
    fn something_came(&self);
}

/// Has `listener` told of what comes from now on, and nobody else. On the boot CPU.
///
/// # Safety
/// It is there until [`stop_listening`], or until another one listens.
pub(crate) unsafe fn listen<L: Listener>(listener: &L) {
    fn tell<L: Listener>(listener: *const ()) {
        // SAFETY: `listener` is an `L`, and is there: the promise made to `listen`.
        unsafe { &*listener.cast::<L>() }.something_came();
    }
    // An NMI in between tells nobody.
    stop_listening();
    LISTENER.store(ptr::from_ref(listener).cast_mut().cast(), Ordering::SeqCst);
    TELL.store(tell::<L> as *mut (), Ordering::SeqCst);
}

/// Has nobody told of what comes. On the boot CPU.
pub(crate) fn stop_listening() {
    TELL.store(ptr::null_mut(), Ordering::SeqCst);
}

/// Returns whether something has come since the last call. All of it is to be read then.
pub(crate) fn take() -> bool {
    HAS_COME.load(Ordering::Relaxed) && HAS_COME.swap(false, Ordering::SeqCst)
}

/// Has the lines that are open interrupt the boot CPU, whose local APIC is `apic_id`, when something comes in. Returns
/// whether all of them do: an interrupt of each was asked for, and came. `tsc` is the TSC's frequency.
///
/// # Safety
/// On the boot CPU, which handles NMIs; nothing else uses the I/O APICs that `acpi` names, which are mapped one to one.
pub(crate) unsafe fn begin(acpi: &Acpi, apic_id: u32, tsc: Hertz) -> bool {
    [&CONSOLE, &DETECTORS]
        .into_iter()
        .zip(&PORTS)
        .all(|(line, known)| {
            let Some(port) = line.port() else {
                return true;
            };
            // SAFETY: by the caller.
            let Some(disconnect) = (unsafe { connect(acpi, port, apic_id) }) else {
                return false;
            };
            if !does_interrupt(line, tsc) {
                line.interrupt_for(IER::empty());
                disconnect();
                return false;
            }
            known.store(port, Ordering::SeqCst);
            line.interrupt_for(IER::DATA_READY);
            true
        })
}

/// Has the interrupt of the UART at `port` come to the CPU with the local APIC `apic_id`. Returns what undoes that, if there
/// is a way.
///
/// # Safety
/// As for [`begin`].
unsafe fn connect(acpi: &Acpi, port: u16, apic_id: u32) -> Option<impl FnOnce()> {
    let interrupt = acpi.isa_interrupt(ConsoleLine::at(port).isa_irq()?);
    let (io_apic, input) = acpi.io_apic_of(interrupt.gsi)?;
    let apic_id = u8::try_from(apic_id).ok()?;
    // SAFETY: by the caller.
    let is_there =
        unsafe { io_apic::send_nmi(io_apic.address, input, interrupt.is_active_low, apic_id) };
    // SAFETY: by the caller; the input is there.
    is_there.then_some(move || unsafe { io_apic::mask(io_apic.address, input) })
}

/// Has the UART of `line`, which can take more output, say so by an interrupt. Returns whether that comes.
fn does_interrupt(line: &Line, tsc: Hertz) -> bool {
    line.flush();
    HAS_COME.store(false, Ordering::SeqCst);
    IS_TRIED.store(true, Ordering::SeqCst);
    line.interrupt_for(IER::THR_EMPTY);
    let start = host_now();
    while !HAS_COME.load(Ordering::SeqCst) && host_now().since(start) < tsc.get() / WAITS_PER_SECOND
    {
        core::hint::spin_loop();
    }
    IS_TRIED.store(false, Ordering::SeqCst);
    take()
}

/// Has an NMI happen that is a kick or is not. Returns whether it is of a line.
pub(super) fn on_nmi(is_kick: bool) -> bool {
    if PerCpu::try_current().is_none_or(|cpu| cpu.index != CPU) {
        return false;
    }
    let is_the_tried = IS_TRIED.load(Ordering::SeqCst) && !is_kick;
    if !is_the_tried && !PORTS.iter().any(has_input) {
        return false;
    }
    HAS_COME.store(true, Ordering::SeqCst);
    tell_listener();
    true
}

fn tell_listener() {
    let tell = TELL.load(Ordering::SeqCst);
    if !tell.is_null() {
        // SAFETY: not null, so it is a function that `listen` has stored; the listener is there still.
        let tell: fn(*const ()) = unsafe { core::mem::transmute(tell) };
        tell(LISTENER.load(Ordering::SeqCst));
    }
}

/// Returns whether the UART at this port, if there is one, has something.
fn has_input(port: &AtomicU16) -> bool {
    let port = port.load(Ordering::SeqCst);
    if port == 0 {
        return false;
    }
    // SAFETY: the line status of a UART of tarpit's. Reading it forgets errors, of which nobody asks.
    let status = unsafe { Port::<u8>::new(port + offsets::LSR as u16).read() };
    LSR::from_bits_retain(status).contains(LSR::DATA_READY)
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Told(AtomicU32);

    impl Listener for Told {
        fn something_came(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_listens_is_told_and_nobody_else() {
        let (first, second) = (Told::default(), Told::default());
        tell_listener();
        // SAFETY: both are there until the end, when nobody listens any more.
        unsafe { listen(&first) };
        tell_listener();
        tell_listener();
        // SAFETY: as above.
        unsafe { listen(&second) };
        tell_listener();
        stop_listening();
        tell_listener();
        assert_eq!(first.0.into_inner(), 2);
        assert_eq!(second.0.into_inner(), 1);
    }
}
