//! The machine that tarpit boots on: a PC in Bochs or QEMU, its serial line and its end.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::bochs::rfb::{NoPort, Turn};
use crate::testbed::paths;

mod bochs;
mod end;
mod qemu;
mod spec;

pub use end::{End, Files};
pub use spec::{Boot, Com1, DEFAULT_IPS, Hardware, Kind, Spec};

/// The longest time to wait for other machines that start.
const TURN_WITHIN: Duration = Duration::from_secs(600);

/// The TCP ports at which the machine's serial lines are waited for.
#[derive(Clone, Copy, Debug)]
struct Ports {
    /// COM1.
    console: u16,
    /// COM2, if it has one.
    detector: Option<u16>,
}

/// The longest time that an emulator may take to open the serial line.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// A machine that runs. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Machine {
    kind: Kind,
    child: Child,
    serial: TcpStream,
    /// The second serial line, until it is taken.
    detector: Option<TcpStream>,
    files: Files,
}

impl Machine {
    /// Starts a machine and connects to its serial line.
    ///
    /// # Errors
    /// When the emulator is not installed or ends before it has a serial line.
    pub fn start(kind: Kind, spec: &Spec) -> Result<Self> {
        const ATTEMPTS: u32 = 5;
        let mut attempt = 1;
        loop {
            let error = match Self::start_once(kind, spec) {
                Ok(machine) => return Ok(machine),
                Err(error) => error,
            };
            match error.downcast_ref::<NoPort>() {
                Some(why) if attempt < ATTEMPTS => {
                    eprintln!("{}: {why}. Starting it again.", spec.name);
                    attempt += 1;
                }
                _ => return Err(error),
            }
        }
    }

    fn start_once(kind: Kind, spec: &Spec) -> Result<Self> {
        let files = Files::new(&spec.name)?;
        // The emulator connects to us: no port has to be guessed, so any number can run.
        let listen = || TcpListener::bind(("127.0.0.1", 0));
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let listener = listen()?;
        let second = spec.detector.then(listen).transpose()?;
        let ports = Ports {
            console: port(&listener)?,
            detector: second.as_ref().map(port).transpose()?,
        };
        let mut command = match kind {
            Kind::Bochs => bochs::command(spec, ports, &files)?,
            Kind::QemuKvm => qemu::command(spec, ports, true)?,
            Kind::QemuTcg => qemu::command(spec, ports, false)?,
        };
        let output = File::create(&files.output)?;
        command
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C in the user's terminal is ours to handle.
            .process_group(0);
        // SAFETY: the closure runs between fork and exec and only makes a system call, which
        // is async-signal-safe; it touches no memory of ours.
        unsafe { command.pre_exec(die_with_parent) };
        // Until its display has a port.
        let turn = match kind {
            Kind::Bochs => Some(Turn::take(TURN_WITHIN)?),
            Kind::QemuKvm | Kind::QemuTcg => None,
        };
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if kind != Kind::Bochs {
            qemu::negotiate(&mut child)?;
        }
        let display = match &turn {
            Some(_) => bochs::rfb::wait(&mut child, &files.emulator, CONNECT_WITHIN),
            None => Ok(()),
        };
        drop(turn);
        let connected = display.and_then(|()| {
            let serial = accept(&listener, &mut child)?;
            let second = second.map(|second| accept(&second, &mut child));
            Ok((serial, second.transpose()?))
        });
        match connected {
            Ok((serial, detector)) => Ok(Self {
                kind,
                child,
                serial,
                detector,
                files,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(&files.output).unwrap_or_default();
                Err(error.context(format!("{kind} did not start:\n{said}")))
            }
        }
    }

    /// Takes the second serial line, for detectors, if it has one that has not been taken.
    pub fn take_detector(&mut self) -> Option<TcpStream> {
        self.detector.take()
    }

    /// Returns what runs it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns its serial line, COM1.
    pub fn serial(&self) -> &TcpStream {
        &self.serial
    }

    /// Returns where its logs are.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Returns how many instructions the machine has executed: Bochs's measure of time. The machine
    /// stands still while it is asked.
    ///
    /// # Errors
    /// When the machine is not Bochs, or has ended.
    pub fn ticks(&mut self) -> Result<u64> {
        self.at_standstill("", "does not count instructions")
    }

    /// Has Bochs's debugger do `commands`, and returns the time. Other machines `cannot`.
    fn at_standstill(&mut self, commands: &str, cannot: &str) -> Result<u64> {
        if self.kind != Kind::Bochs {
            bail!("{} {cannot}", self.kind);
        }
        bochs::at_standstill(&mut self.child, &self.files, commands)
    }

    /// Returns what is on the VGA's text screen, of 80 columns, row by row.
    ///
    /// # Errors
    /// When the machine is not Bochs, or has ended, or its CPU does not see the screen's memory where it is.
    pub fn text_screen(&mut self) -> Result<Vec<String>> {
        /// Columns of a character and its attributes.
        const ROW: usize = 2 * 80;
        let file = self.files.configuration.with_extension("screen");
        let command = format!("writemem \"{}\" 0xb8000 {}\n", file.display(), 25 * ROW);
        self.at_standstill(&command, "does not show its screen")?;
        let memory = std::fs::read(&file).context("Bochs has not written its memory")?;
        let row = |row: &[u8]| {
            row.iter()
                .step_by(2)
                .map(|&byte| char::from(byte))
                .collect()
        };
        Ok(memory.chunks(ROW).map(row).collect())
    }

    /// Has the CPU that executes at the moment go on at address 0, where no code is.
    ///
    /// # Errors
    /// When the machine is not Bochs, or has ended.
    pub fn lead_astray(&mut self) -> Result<()> {
        self.at_standstill("set rip=0\n", "lets nobody change a CPU's registers")
            .map(drop)
    }

    /// Returns how it ended, if it has.
    ///
    /// # Errors
    /// When the process cannot be observed.
    pub fn end(&mut self) -> Result<Option<End>> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let end = match self.kind {
            Kind::Bochs => bochs::end(&self.files),
            Kind::QemuKvm | Kind::QemuTcg => qemu::end(&self.files),
        };
        Ok(Some(end.unwrap_or_else(|| {
            End::Failed(format!(
                "{status}; see {}",
                paths::shown(&self.files.output)
            ))
        })))
    }

    /// Waits until it has ended, at most for `limit`.
    ///
    /// # Errors
    /// When it still runs then.
    pub fn wait(&mut self, limit: Duration) -> Result<End> {
        let began = Instant::now();
        loop {
            if let Some(end) = self.end()? {
                return Ok(end);
            }
            if began.elapsed() >= limit {
                bail!("the machine still runs after {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has this process die with its parent: an emulator must not go on at full speed after whoever
/// watches it was killed.
fn die_with_parent() -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

fn accept(listener: &TcpListener, child: &mut Child) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let began = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        if began.elapsed() > CONNECT_WITHIN {
            bail!("no serial line after {} s", CONNECT_WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
