//! The machine that tarpit boots on: a PC in Bochs or QEMU, its serial line and its end.

use std::fmt;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

mod bochs;
mod pick;
mod qemu;

pub use pick::{Choice, Wish, best, ensure_installed, pick};

/// Instructions that make a second of emulated time in Bochs, unless told otherwise.
pub const DEFAULT_IPS: u64 = 1_000_000_000;

/// How long an emulator may take to open the serial line.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// What runs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bochs, which emulates VMX in software; its time is the count of instructions.
    Bochs,
    /// QEMU with KVM: needs a KVM that offers nested VMX.
    QemuKvm,
    /// QEMU's own emulation, which has no VMX: shows how tarpit refuses a machine.
    QemuTcg,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bochs => "Bochs",
            Self::QemuKvm => "QEMU/KVM",
            Self::QemuTcg => "QEMU (TCG)",
        })
    }
}

/// What the machine boots.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A CD with its own boot loader.
    Iso(PathBuf),
    /// A multiboot 1 image that QEMU loads itself, with tarpit's options.
    Multiboot {
        /// The image.
        image: PathBuf,
        /// Its command line.
        command_line: String,
    },
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Names the log files. Machines that run at the same time need different names.
    pub name: String,
    /// What it boots.
    pub boot: Boot,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Physical CPUs.
    pub cpus: u32,
    /// Bochs only: instructions that make a second of emulated time.
    pub ips: u64,
}

impl Spec {
    /// A machine with one CPU and 1 GiB that boots this CD.
    pub fn from_iso(name: &str, iso: &Path) -> Self {
        Self {
            name: name.to_owned(),
            boot: Boot::Iso(iso.to_owned()),
            memory_mib: 1024,
            cpus: 1,
            ips: DEFAULT_IPS,
        }
    }
}

/// The files that a run leaves in `target/logs`.
#[derive(Clone, Debug)]
pub struct Files {
    /// All that went over the serial line.
    pub console: PathBuf,
    /// The emulator's own log.
    pub emulator: PathBuf,
    /// What the emulator printed; answers to our questions are in it.
    output: PathBuf,
    /// Bochs's configuration and the like.
    configuration: PathBuf,
}

impl Files {
    fn new(name: &str) -> Result<Self> {
        let directory = paths::logs();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let file = |suffix| directory.join(format!("{name}.{suffix}"));
        Ok(Self {
            console: file("console"),
            emulator: file("emulator.log"),
            output: file("emulator.out"),
            configuration: file("bochsrc"),
        })
    }
}

/// How a machine's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was switched off through ACPI (S5).
    PoweredOff {
        /// In Bochs: how many instructions it had executed.
        ticks: Option<u64>,
    },
    /// It asked for a reset, which our machines do not follow (QEMU only: Bochs starts again).
    Reset,
    /// Its CPU shut down after a triple fault.
    TripleFault,
    /// The emulator gave up, or was killed.
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff { ticks: None } => f.write_str("powered off"),
            Self::PoweredOff { ticks: Some(ticks) } => {
                write!(f, "powered off after {ticks} ticks")
            }
            Self::Reset => f.write_str("reset"),
            Self::TripleFault => f.write_str("triple fault of the physical CPU"),
            Self::Failed(why) => write!(f, "the emulator ended: {why}"),
        }
    }
}

/// A machine that runs. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Machine {
    kind: Kind,
    child: Child,
    serial: TcpStream,
    files: Files,
}

impl Machine {
    /// Starts a machine and connects to its serial line.
    ///
    /// # Errors
    /// When the emulator is not installed or ends before it has a serial line.
    pub fn start(kind: Kind, spec: &Spec) -> Result<Self> {
        let files = Files::new(&spec.name)?;
        // The emulator connects to us: no port has to be guessed, so any number can run.
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let mut command = match kind {
            Kind::Bochs => bochs::command(spec, port, &files)?,
            Kind::QemuKvm => qemu::command(spec, port, true),
            Kind::QemuTcg => qemu::command(spec, port, false),
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
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if kind != Kind::Bochs {
            qemu::negotiate(&mut child)?;
        }
        match accept(&listener, &mut child) {
            Ok(serial) => Ok(Self {
                kind,
                child,
                serial,
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

    /// What runs it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its serial line, COM1.
    pub fn serial(&self) -> &TcpStream {
        &self.serial
    }

    /// Where its logs are.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// How many instructions the machine has executed: Bochs's measure of time. The machine
    /// stands still while it is asked.
    ///
    /// # Errors
    /// When the machine is not Bochs, or has ended.
    pub fn ticks(&mut self) -> Result<u64> {
        if self.kind != Kind::Bochs {
            bail!("{} does not count instructions", self.kind);
        }
        bochs::ticks(&mut self.child, &self.files)
    }

    /// How it ended, if it has.
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

/// An emulator must not go on at full speed after whoever watches it was killed.
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
