//! Bochs: its configuration, its clock and its way of ending.
//!
//! Debian's build has the debugger, which starts stopped (a file of commands lets it go), stops
//! on SIGINT and then takes commands from standard input. That is how we read the clock.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use regex::Regex;
use rustix::process::{Pid, Signal, kill_process};

use crate::testbed::machine::Ports;
use crate::testbed::machine::end::{End, Files};
use crate::testbed::machine::spec::{Boot, Com1, Hardware, Spec};

pub(super) mod rfb;

/// The firmware of Debian's packages `bochsbios` and `bochs`.
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";

/// The real-time clock at power-on (2026-01-01 00:00:00 UTC): a run is the same on any day.
const POWER_ON_TIME: u64 = 1_767_225_600;

/// The most MiB that Bochs keeps in memory. What a guest uses beyond that is in a temporary file.
const MAX_HOST_MEMORY_MIB: u32 = 2048;

/// The longest time that the debugger may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The time after which the debugger is asked once more.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

pub(super) fn command(spec: &Spec, ports: Ports, files: &Files) -> Result<Command> {
    let Boot::Iso(iso) = &spec.boot else {
        bail!("Bochs boots CDs only; QEMU can load a multiboot image by itself");
    };
    let cmos = files.configuration.with_extension("cmos");
    let go = files.configuration.with_extension("debugger");
    std::fs::write(
        &files.configuration,
        configuration(&spec.hardware, iso, ports, &cmos, files)?,
    )?;
    let Hardware {
        memory_mib, cpus, ..
    } = spec.hardware;
    std::fs::write(&cmos, cmos_image(memory_mib, cpus)?)?;
    std::fs::write(&go, "c\n")?;
    // The end of the last run is not the end of this one.
    std::fs::write(&files.emulator, [])?;
    let own = own_program();
    let has_debugger = own.is_none();
    let mut command = Command::new(own.unwrap_or_else(|| "bochs-bin".into()));
    command.arg("-q").arg("-f").arg(&files.configuration);
    if has_debugger {
        command.arg("-rc").arg(&go);
    }
    Ok(command)
}

/// The environment variable that names a Bochs of one's own, built without the debugger, which halves the time
/// that a guest with many exits takes. It cannot tell its time, which a few experiments ask for.
const OWN_PROGRAM: &str = "TARPIT_BOCHS";

/// Returns the Bochs that is to be used instead of Debian's, if one is.
fn own_program() -> Option<OsString> {
    std::env::var_os(OWN_PROGRAM).filter(|path| !path.is_empty())
}

/// The environment variable that names another processor for Bochs to be: a model of
/// `bochs-bin --help cpu`.
const CPU_MODEL: &str = "TARPIT_BOCHS_CPU";
/// The processor that Bochs is otherwise: it has all that tarpit can make use of.
const DEFAULT_CPU_MODEL: &str = "corei7_skylake_x";

fn configuration(
    hardware: &Hardware,
    iso: &Path,
    ports: Ports,
    cmos: &Path,
    files: &Files,
) -> Result<String> {
    let Hardware {
        memory_mib,
        cpus,
        ips,
        model,
        com1,
    } = *hardware;
    let log = &files.emulator;
    for path in [iso, cmos, log] {
        if path.to_string_lossy().contains([',', '"', '\n']) {
            bail!("Bochs cannot be given the path {}", path.display());
        }
    }
    let host_memory_mib = memory_mib.min(MAX_HOST_MEMORY_MIB);
    let (iso, cmos, log) = (iso.display(), cmos.display(), log.display());
    let default = std::env::var(CPU_MODEL);
    let default = default.as_deref().unwrap_or(DEFAULT_CPU_MODEL);
    let model = model.unwrap_or(default);
    // Debian's build has sound, which wants to be told that it is not used; others do not know of it.
    let sound = match own_program() {
        None => "sound: waveoutdrv=dummy\nspeaker: enabled=0\n",
        Some(_) => "",
    };
    let (before, first) = match com1 {
        Com1::Connected => ("", 1),
        Com1::Unheard => ("com1: enabled=1, mode=null\n", 2),
        Com1::Missing => ("com1: enabled=0\n", 2),
    };
    let mut serial = before.to_owned();
    for (number, port) in (first..).zip(std::iter::once(ports.console).chain(ports.detector)) {
        serial += &format!("com{number}: enabled=1, mode=socket-client, dev=localhost:{port}\n");
    }
    Ok(format!(
        "cpu: model={model}, count={cpus}, ips={ips}, reset_on_triple_fault=0\n\
         memory: guest={memory_mib}, host={host_memory_mib}\n\
         romimage: file={BIOS}\n\
         vgaromimage: file={VGA_BIOS}\n\
         cmosimage: file=\"{cmos}\", rtc_init=time0\n\
         clock: sync=none, time0={POWER_ON_TIME}\n\
         display_library: rfb, options=\"timeout=0\"\n\
         ata0-master: type=cdrom, path=\"{iso}\", status=inserted\n\
         ata1: enabled=0\n\
         boot: cdrom\n\
         {serial}\
         {sound}\
         panic: action=fatal\n\
         error: action=report\n\
         info: action=report\n\
         debug: action=ignore\n\
         log: \"{log}\"\n"
    ))
}

/// Returns the battery-backed memory of the PC, which tells Bochs's BIOS about the machine.
///
/// Bochs would fill it in by itself, but only we can set the bit that skips the boot menu's wait
/// of three seconds (three thousand million instructions at a realistic speed). Layout: Bochs's
/// `bios/rombios.c` and the PC/AT's CMOS map.
fn cmos_image(memory_mib: u32, cpus: u32) -> Result<[u8; 128]> {
    const BASE_KIB: u16 = 640;
    const BOOT_FROM_CD: u8 = 3;
    let mut cmos = [0; 128];
    let mut word = |at: usize, value: u16| {
        let [low, high] = value.to_le_bytes();
        cmos[at] = low;
        cmos[at + 1] = high;
    };
    let extended_kib = u16::try_from(memory_mib.saturating_sub(1) * 1024)
        .unwrap_or(0xFC00)
        .min(0xFC00);
    word(0x15, BASE_KIB);
    word(0x17, extended_kib);
    word(0x30, extended_kib);
    // RAM above 16 MiB and below the PCI hole, in units of 64 KiB.
    let below_hole = memory_mib.min(3 * 1024);
    word(0x34, u16::try_from(below_hole.saturating_sub(16) * 16)?);
    let above_4g = u16::try_from((memory_mib - below_hole) * 16)
        .context("more memory than Bochs's BIOS can count")?;
    word(0x5B, above_4g);
    cmos[0x0A] = 0x26; // RTC: 32.768 kHz time base, 1024 Hz periodic rate
    cmos[0x0B] = 0x02; // RTC: 24 hours
    cmos[0x0D] = 0x80; // RTC: the battery is good
    cmos[0x14] = 0x06; // equipment: FPU, PS/2 mouse
    cmos[0x3D] = BOOT_FROM_CD;
    cmos[0x3F] = 1; // no boot menu
    cmos[0x5F] = u8::try_from(cpus.saturating_sub(1)).context("too many CPUs")?;
    let sum: u16 = cmos[0x10..=0x2D].iter().copied().map(u16::from).sum();
    [cmos[0x2E], cmos[0x2F]] = sum.to_be_bytes();
    Ok(cmos)
}

/// Stops the machine, has the debugger do `commands`, each a line, and lets the machine go on. Returns the time at
/// which it stood still. The commands may be done more than once.
pub(super) fn at_standstill(child: &mut Child, files: &Files, commands: &str) -> Result<u64> {
    if own_program().is_some() {
        bail!("this takes Bochs's debugger: do it without {OWN_PROGRAM}");
    }
    let seen = std::fs::metadata(&files.output)?.len();
    let pid = Pid::from_child(child);
    let began = Instant::now();
    let mut asked = None;
    loop {
        // Bochs may miss the signal (while its CPU is halted, for one). Asking again does no harm:
        // a question too many waits in the debugger's input, and is put the next time that the
        // machine stops.
        if asked.is_none_or(|at: Instant| at.elapsed() > ASK_AGAIN_AFTER) {
            kill_process(pid, Signal::INT).context("Bochs has ended")?;
            let debugger = child.stdin.as_mut().context("no debugger")?;
            debugger.write_all(format!("{commands}ptime\nc\n").as_bytes())?;
            debugger.flush()?;
            asked = Some(Instant::now());
        }
        let output = std::fs::read(&files.output)?;
        let new = output.get(usize::try_from(seen)?..).unwrap_or_default();
        if let Some(ticks) = answer(&String::from_utf8_lossy(new)) {
            return Ok(ticks);
        }
        if began.elapsed() > ANSWER_WITHIN || child.try_wait()?.is_some() {
            bail!("Bochs did not tell the time");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the time in the debugger's whole answer to `ptime`.
fn answer(output: &str) -> Option<u64> {
    static ANSWER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"ptime: (\d+)\n").expect("a valid expression"));
    ANSWER.captures(output)?.get(1)?.as_str().parse().ok()
}

/// Returns what Bochs's log says about the end.
pub(super) fn end(files: &Files) -> Option<End> {
    let log = std::fs::read(&files.emulator).ok()?;
    end_in(&String::from_utf8_lossy(&log))
}

/// Returns how it ended: every end is a "panic" to Bochs, a soft power-off too.
fn end_in(log: &str) -> Option<End> {
    static PANIC: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^(\d+)p\[([^\]]*)\] >>PANIC<< (.*)$").expect("a valid expression")
    });
    let captures = PANIC.captures_iter(log).last()?;
    let (_, [ticks, part, message]) = captures.extract();
    Some(if message.contains("soft power off") {
        End::PoweredOff {
            ticks: ticks.parse().ok(),
        }
    } else if message.contains("exception with no resolution") {
        End::TripleFault
    } else {
        End::Failed(format!(
            "Bochs panic at tick {ticks} in {}: {message}",
            part.trim()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_power_off_is_an_orderly_end_with_its_tick() {
        let log = "07152670127i[HPET  ] Leaving legacy mode\n\
                   07152671791p[ACPI  ] >>PANIC<< ACPI control: soft power off\n\
                   07152671791i[SIM   ] quit_sim called with exit code 1\n";
        assert_eq!(
            end_in(log),
            Some(End::PoweredOff {
                ticks: Some(7_152_671_791)
            })
        );
    }

    #[test]
    fn a_triple_fault_is_not_a_power_off() {
        let log =
            "00000123456p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n";
        assert_eq!(end_in(log), Some(End::TripleFault));
    }

    #[test]
    fn any_other_panic_is_the_emulators_failure() {
        let log = "00015060165p[BIOS  ] >>PANIC<< No bootable device.\n";
        let Some(End::Failed(why)) = end_in(log) else {
            panic!("not a failure")
        };
        assert_eq!(
            why,
            "Bochs panic at tick 00015060165 in BIOS: No bootable device."
        );
    }

    #[test]
    fn a_log_without_a_panic_tells_no_end() {
        assert_eq!(end_in("00000000000i[CMOS  ] Using local time\n"), None);
    }

    #[test]
    fn half_an_answer_is_no_answer() {
        assert_eq!(answer("<bochs:1> ptime\nptime: 468"), None);
        assert_eq!(
            answer("<bochs:1> ptime\nptime: 46825002\n<bochs:2> c\n"),
            Some(46_825_002)
        );
    }

    #[test]
    fn the_cmos_counts_memory_below_and_above_the_pci_hole() -> Result<()> {
        let small = cmos_image(64, 1)?;
        assert_eq!(u16::from_le_bytes([small[0x34], small[0x35]]), 48 * 16);
        assert_eq!([small[0x5B], small[0x5C]], [0, 0]);
        let large = cmos_image(4096, 4)?;
        assert_eq!(
            u16::from_le_bytes([large[0x34], large[0x35]]),
            (3072 - 16) * 16
        );
        assert_eq!(u16::from_le_bytes([large[0x5B], large[0x5C]]), 1024 * 16);
        assert_eq!(large[0x5F], 3);
        Ok(())
    }
}
