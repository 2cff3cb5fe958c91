//! The operator at the console: carries out commands on the VMs.
//!
//! One [`Console`] serves the machine's serial line. Guests' output comes here from any VM
//! exit, byte by byte; the operator's input is looked at once in a millisecond, by
//! [`poll`], between two turns of a VCPU.

mod commands;
pub mod vms;

use alloc::string::String;
use alloc::sync::Arc;

use devices::time::{Hertz, HostTicks};
use spin::{Mutex, Once};

use crate::console::{Console, Input, Output, Text};
use crate::host_time::host_now;
use crate::machine::serial;
use crate::vm::Vm;

/// The TSC's frequency, and its value when the console opened.
static TIME: Once<(Hertz, HostTicks)> = Once::new();

static CONSOLE: Mutex<Console> = Mutex::new(Console::new());

/// The serial line.
struct Line;

impl Output for Line {
    fn write(&mut self, bytes: &[u8]) {
        serial::write(bytes);
    }
}

/// Host ticks in microseconds since the console opened.
fn micros(host: HostTicks) -> u64 {
    TIME.get()
        .map_or(0, |(tsc, opened)| tsc.nanos(host.since(*opened)) / 1000)
}

/// Sets the clock of the console's time stamps going: `tsc` is the TSC's frequency.
pub fn start_clock(tsc: Hertz) {
    TIME.call_once(|| (tsc, host_now()));
}

/// Makes the console know `vm`, whose number is the next one.
pub fn add_vm(vm: &Arc<Vm>) {
    CONSOLE.lock().add_vm(&vm.name);
    vms::add(vm.clone());
}

/// Shows the prompt.
pub fn open() {
    CONSOLE.lock().open(&mut Line);
}

/// Shows a byte that VM `number` has written.
pub fn guest_byte(number: usize, byte: u8) {
    CONSOLE
        .lock()
        .guest_byte(number, byte, micros(host_now()), &mut Line);
}

/// Shows a message of tarpit's own: whole lines.
pub fn message(text: core::fmt::Arguments<'_>) {
    CONSOLE.lock().message(&mut Line, |out| {
        // The line takes everything.
        let _ = core::fmt::Write::write_fmt(&mut Text(out), text);
    });
}

/// Tells that `vm` is no more.
pub fn vm_ended(vm: &Vm) {
    CONSOLE.lock().detach_from(vm.id.0, &mut Line);
}

/// Takes what the operator has typed, carries out what is to be, and keeps the line moving.
pub fn poll() {
    while let Some(byte) = serial::try_read_byte() {
        // The console is not held while a command runs: guests write meanwhile.
        let input = CONSOLE.lock().operator_byte(byte, &mut Line);
        match input {
            Input::None => {}
            Input::Guest { vm, byte } => vms::type_to(vm, byte),
            Input::Line => {
                let line = String::from(CONSOLE.lock().line());
                commands::execute(&line);
                CONSOLE.lock().done(&mut Line);
            }
        }
    }
    vms::pass_input_on();
    CONSOLE.lock().flush_stale(micros(host_now()), &mut Line);
    serial::poll();
}
