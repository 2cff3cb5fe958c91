//! The first process: sets the guest up, starts the workers, reports, takes commands.

use core::sync::atomic::{Ordering, compiler_fence};

use linux_raw_sys::general::SCHED_FIFO;

use crate::behaviors::shell::BUSYBOX;
use crate::command::{Command, LineBuffer, SYNOPSIS};
use crate::parameters::{Mode, Parameters, Unknown};
use crate::start::Start;
use crate::system::time::{Clock, now};
use crate::system::{self, Arguments, Down, Errno, Fork, families, files, scheduling};
use crate::workers::{Refusal, Workers};
use crate::{behaviors, inquiry, say};

/// Longest command line that Linux takes on x86, in bytes.
pub const COMMAND_LINE: usize = 2048;

/// Longest time between two looks at who has ended, in nanoseconds.
const BURIALS: u64 = 1_000_000_000;

/// Runs the workload. As the first process it sets the guest up and takes its parameters from the
/// kernel command line; otherwise (to try it on a developer's machine) from `arguments`.
pub fn run(arguments: Arguments) -> ! {
    behaviors::program::go_on(arguments.clone());
    say!("userland");
    // `forget` waits for all that have come of a process, and finds them as children.
    families::adopt_orphans();
    let is_first = system::own_pid() == 1;
    let parameters = if is_first {
        set_up_guest();
        let mut buffer = [0; COMMAND_LINE];
        with_command_line(&mut buffer, |line| Parameters::parse(line, complain))
    } else {
        let mut line = [0; COMMAND_LINE];
        let mut end = 0;
        for argument in arguments.skip(1) {
            for byte in argument.to_bytes().iter().chain(b" ") {
                if let Some(place) = line.get_mut(end) {
                    *place = *byte;
                    end += 1;
                }
            }
        }
        Parameters::parse(core::str::from_utf8(&line[..end]).unwrap_or(""), complain)
    };
    match Program::new(parameters) {
        Ok(mut program) => program.run(is_first),
        Err(error) => {
            say!("no shared page: {error}");
            system::exit(1)
        }
    }
}

fn complain(unknown: Unknown) {
    say!("unknown parameter `{}`", unknown.0);
}

/// Mounts what the program reads, and opens the console if the kernel did not.
fn set_up_guest() {
    for (kind, path) in [
        (c"proc", c"/proc"),
        (c"sysfs", c"/sys"),
        (c"devtmpfs", c"/dev"),
    ] {
        match files::mount(kind, path) {
            // Busy: the kernel mounts devtmpfs by itself where it is configured to.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => say!("cannot mount {path:?}: {error}"),
        }
    }
    if let Err(error) = files::open_as_console(c"/dev/console") {
        say!("cannot open /dev/console: {error}");
    }
    // Commands are acknowledged by a whole line; an echo would come in the middle of others.
    system::set_echo(false);
}

/// Hands `reader` the kernel command line, read to `buffer`, which is wiped afterwards.
pub fn with_command_line<T>(buffer: &mut [u8; COMMAND_LINE], reader: impl FnOnce(&str) -> T) -> T {
    let line = files::read_file(c"/proc/cmdline", buffer).unwrap_or_default();
    let result = reader(core::str::from_utf8(line).unwrap_or(""));
    buffer.fill(0);
    // The compiler must not drop the wiping as a store that nobody reads.
    core::hint::black_box(buffer);
    compiler_fence(Ordering::SeqCst);
    result
}

/// Returns the start of a process that nobody asked anything special of.
fn ordinary() -> Start {
    Start::new(behaviors::ALL[0])
}

/// The state of the first process.
struct Program {
    parameters: Parameters,
    workers: Workers,
    line: LineBuffer,
    /// Nanoseconds between two reports; 0 for none.
    interval: u64,
    /// The time at which the next report is due, by [`Clock::Monotonic`].
    next_report: u64,
}

impl Program {
    fn new(parameters: Parameters) -> Result<Self, Errno> {
        let workers = Workers::new(&parameters)?;
        Ok(Self {
            parameters,
            workers,
            line: LineBuffer::new(),
            interval: 0,
            next_report: 0,
        })
    }

    fn run(&mut self, is_first: bool) -> ! {
        if let Some(priority) = self.parameters.priority
            && let Err(error) = scheduling::set_own_policy(SCHED_FIFO, priority)
        {
            say!("no real-time class: {error}");
        }
        if self.parameters.mode == Mode::Cpu {
            for _ in 0..self.parameters.processes {
                if let Err(refusal) = self.workers.start(&ordinary()) {
                    say!("no more processes: {refusal}");
                    break;
                }
            }
        }
        let Parameters {
            interval_ms, unit, ..
        } = self.parameters;
        say!("ready interval_ms={interval_ms} unit={unit}");
        self.set_interval(interval_ms);
        loop {
            if system::wait_for_console(self.wait_time()) && !self.take_input() && !is_first {
                // The end of a developer's terminal. The first process of a guest must not end.
                if let Err(refusal) = self.workers.forget() {
                    say!("processes are left: {refusal}");
                }
                system::exit(0);
            }
            self.workers.bury();
            let now = now(Clock::Monotonic);
            if self.interval != 0 && self.workers.any() && now >= self.next_report {
                self.report();
                // On the grid, but without making up for reports that were missed.
                let missed = (now - self.next_report) / self.interval;
                let periods = (missed + 1).saturating_mul(self.interval);
                self.next_report = self.next_report.saturating_add(periods);
            }
        }
    }

    /// Returns how long to wait for input: forever where there is nothing to report, and nobody to bury.
    fn wait_time(&self) -> Option<u64> {
        if !self.workers.any() {
            return None;
        }
        // A process that is another one all the time leaves many that have ended.
        Some(match self.interval {
            0 => BURIALS,
            _ => BURIALS.min(self.next_report.saturating_sub(now(Clock::Monotonic))),
        })
    }

    /// Reports each `ms` milliseconds from now on; 0 for never.
    fn set_interval(&mut self, ms: u64) {
        self.interval = ms * 1_000_000;
        self.next_report = now(Clock::Monotonic).saturating_add(self.interval);
    }

    fn report(&self) {
        say!(
            "t={} counts={}",
            now(Clock::Monotonic),
            self.workers.counts()
        );
    }

    /// Carries out the commands that have come in. False where the input has ended.
    fn take_input(&mut self) -> bool {
        let mut input = [0; 64];
        let Ok(length) = system::read_console(&mut input) else {
            return true;
        };
        for byte in input.get(..length).unwrap_or_default() {
            let command = match self.line.push(*byte) {
                None => continue,
                Some(Ok(line)) => {
                    say!("command {line}");
                    Command::parse(line)
                }
                Some(Err(_)) => None,
            };
            match command {
                Some(command) => self.carry_out(command),
                None => say!("unknown command: {SYNOPSIS}"),
            }
        }
        length != 0
    }

    fn carry_out(&mut self, command: Command) {
        let outcome = match command {
            Command::Dmesg { new } => {
                inquiry::print_kernel_log(new);
                Ok(())
            }
            Command::Clocks => {
                inquiry::print_clocks();
                Ok(())
            }
            Command::Counts => {
                self.report();
                Ok(())
            }
            Command::Interval(ms) => {
                self.set_interval(ms);
                say!("interval_ms={ms}");
                Ok(())
            }
            Command::Fork => self.workers.start(&ordinary()),
            Command::Start(start) => self.workers.start(&start),
            Command::Exit(index) => self.workers.end(index),
            Command::Kill(index) => self.workers.kill(index),
            Command::Forget => self.workers.forget(),
            Command::Shell => shell(),
            Command::Reboot => Err(Refusal::Kernel(system::take_down(Down::Restart))),
            Command::PowerOff => Err(Refusal::Kernel(system::take_down(Down::Off))),
        };
        if let Err(refusal) = outcome {
            say!("refused: {refusal}");
        }
    }
}

/// Runs a shell on the console until it ends. Nothing is reported meanwhile.
fn shell() -> Result<(), Refusal> {
    if !files::exists(BUSYBOX) {
        return Err(Refusal::Kernel(Errno::ENOENT));
    }
    match system::fork().map_err(Refusal::Kernel)? {
        Fork::Child => {
            system::set_echo(true);
            let error = system::execute([BUSYBOX, c"sh"]);
            say!("no shell: {error}");
            system::exit(1)
        }
        Fork::Parent(child) => {
            system::wait_for(child);
            system::set_echo(false);
            say!("shell ended");
            Ok(())
        }
    }
}
