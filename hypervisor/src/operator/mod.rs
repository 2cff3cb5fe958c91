//! The operator at the console: carries out commands on the VMs.
//!
//! One [`Console`] serves the machine's serial line. Guests' output comes here from any VM
//! exit, byte by byte; the operator's input is looked at once in a millisecond, by
//! [`poll`], between two turns of a VCPU.

mod commands;
mod guest_output;
mod job;

use alloc::collections::VecDeque;
use alloc::string::String;

use devices::time::{Hertz, HostTicks};
use spin::{Mutex, Once};

use crate::console::{Console, Input, Output, Text};
use crate::ids::VmId;
use crate::machine::host_time::host_now;
use crate::machine::serial;
use crate::manager::VmManager;
use job::Job;

pub use guest_output::guest_output;

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

/// The command that goes on, if one does.
static JOB: Mutex<Option<Job>> = Mutex::new(None);

/// What the operator has typed while a command went on.
static TYPED_AHEAD: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// The most bytes of it that are kept.
const TYPED_AHEAD_CAPACITY: usize = 1024;

/// Ctrl-C: ends the command that goes on.
const INTERRUPT: u8 = 3;

/// How long a command goes on at a time: this part of a second, a quarter of the time between
/// two looks at the console.
const JOBS_TURN: u64 = 4000;

/// Host ticks in nanoseconds since the console opened.
fn nanos(host: HostTicks) -> u64 {
    TIME.get()
        .map_or(0, |(tsc, opened)| tsc.nanos(host.since(*opened)))
}

/// Host ticks in microseconds since the console opened.
fn micros(host: HostTicks) -> u64 {
    nanos(host) / 1000
}

/// Sets the clock of the console's time stamps going: `tsc` is the TSC's frequency.
pub fn start_clock(tsc: Hertz) {
    TIME.call_once(|| (tsc, host_now()));
}

/// Makes the console know the VMs of `manager`, before any of them runs.
pub fn add_vms(manager: &VmManager) {
    let mut console = CONSOLE.lock();
    for name in manager.names() {
        console.add_vm(name);
    }
    guest_output::divide_among(manager.names().count());
}

/// Shows the prompt.
pub fn open() {
    CONSOLE.lock().open(&mut Line);
}

/// Shows a byte that `vm` has written.
fn guest_byte(vm: VmId, byte: u8) {
    CONSOLE
        .lock()
        .guest_byte(vm.0, byte, micros(host_now()), &mut Line);
}

/// Shows a message of tarpit's own: whole lines.
fn message(text: core::fmt::Arguments<'_>) {
    CONSOLE.lock().message(&mut Line, |out| {
        // The line takes everything.
        let _ = core::fmt::Write::write_fmt(&mut Text(out), text);
    });
}

/// Tells which VMs have ended.
pub fn report_stops(manager: &VmManager) {
    for stop in manager.take_stops() {
        let name = manager.name(stop.vm).unwrap_or_default();
        if let Some((vcpu, dump)) = stop.dump {
            serial::print(format_args!(
                "vm {name}: state of VCPU {vcpu} at its end:\n{dump}"
            ));
        }
        message(format_args!("vm {name} ended: {}\n", stop.reason));
        CONSOLE.lock().detach_from(stop.vm.0, &mut Line);
    }
}

/// Takes what the operator has typed, carries out what is to be, and keeps the line moving.
pub fn poll(manager: &VmManager) {
    report_stops(manager);
    go_on_with_job();
    while let Some(byte) = next_byte() {
        // The console is not held while a command runs: guests write meanwhile.
        let input = CONSOLE.lock().operator_byte(byte, &mut Line);
        match input {
            Input::None => {}
            Input::Guest { vm, byte } => manager.type_to(VmId(vm), byte),
            Input::Line => {
                let line = String::from(CONSOLE.lock().line());
                let job = commands::execute(manager, &line);
                if job.is_none() {
                    CONSOLE.lock().done(&mut Line);
                }
                *JOB.lock() = job;
            }
        }
    }
    manager.pass_input_on();
    CONSOLE.lock().flush_stale(micros(host_now()), &mut Line);
    serial::poll();
}

/// The next byte for the console; none while a command goes on.
fn next_byte() -> Option<u8> {
    if JOB.lock().is_some() {
        return None;
    }
    TYPED_AHEAD
        .lock()
        .pop_front()
        .or_else(serial::try_read_byte)
}

fn go_on_with_job() {
    let mut job = JOB.lock();
    let Some(current) = &mut *job else { return };
    let turn = TIME.get().map_or(0, |(tsc, _)| tsc.get() / JOBS_TURN);
    let mut done = current.go_on(host_now().saturating_add(turn));
    while let Some(byte) = serial::try_read_byte() {
        let mut typed = TYPED_AHEAD.lock();
        if byte == INTERRUPT {
            typed.clear();
            Line.write(b"^C\r\n");
            done = true;
        } else if typed.len() < TYPED_AHEAD_CAPACITY {
            typed.push_back(byte);
        }
    }
    if done {
        *job = None;
        CONSOLE.lock().done(&mut Line);
    }
}
