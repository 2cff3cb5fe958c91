//! Virtio devices of guests: a stock Debian kernel with its own drivers finds what is there, keeps what
//! it writes, and reaches others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Case, file, tarpit};
use xtask::testbed::build;
use xtask::testbed::initramfs::{self, Program};
use xtask::testbed::kernel::{self, Series};
use xtask::testbed::module::{Guest, Module, QUICK_BOOT};
use xtask::testbed::qcow2;
use xtask::testbed::serial::Session;

/// The time to wait for two or three guests that boot and work, on a machine that is busy with other
/// things, too.
const PATIENCE: Duration = Duration::from_secs(1500);

/// The drivers.
const DRIVERS: &[&str] = &[
    "virtio_pci",
    "virtio_rng",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
];

/// Waits until the guest of `vm` asks this at its virtio console, and answers there. Returns how often the
/// guests of `counted` have exited by then, but for their timers, and adds what was said to `said`.
fn answer(
    session: &mut Session,
    said: &mut String,
    vm: &str,
    question: &str,
    counted: &[&str],
) -> Result<u64> {
    *said += &session.wait_for(&format!("{vm} asks: {question}"))?;
    let mut exits = 0;
    for vm in counted {
        let stats = session.exchange(&format!("stats {vm}"))?;
        *said += &stats.said;
        let count = |what: &str| {
            let line = stats.answer.iter().find(|line| line["what"] == what);
            line.and_then(|line| line["count"].as_u64())
                .with_context(|| format!("`stats` does not tell {what}"))
        };
        // A tick expires, and is armed again.
        exits += count("all-exits")? - count("preemption-timer")? - count("wrmsr")?;
    }
    *said += &session.attach(vm)?;
    session.send(b"go on\r")?;
    *said += &session.detach()?;
    Ok(exits)
}

/// Debian's kernel, and an initial RAM disk with busybox, the workload, the drivers, and `script` as the first
/// process.
fn debian(case: &Case, script: &str) -> Result<(PathBuf, PathBuf)> {
    let package = kernel::fetch_with_modules(Series::default())?;
    let init = Program {
        path: "init".to_owned(),
        data: script.into(),
    };
    let mut programs = Program::modules(&package.modules(DRIVERS)?)?;
    programs.extend([Program::busybox()?, init]);
    programs.push(Program::copy(&build::all()?.workload, "workload")?);
    let initrd = initramfs::pack_programs(&case.file_name(), &programs)?;
    Ok((package.image, initrd))
}

/// `web` has a disk that begins anew at a restart and one that is kept, an entropy device and a console beside the
/// serial line, with interrupts by messages; `old` can only read its disk, whose image is compressed, and has an
/// interrupt pin and configuration by ports.
pub(crate) fn debian_reads_and_writes_disks(case: &Case) -> Result<()> {
    const SECTOR: usize = 512;
    let (kernel, initrd) = debian(case, include_str!("virtio_disks.sh"))?;
    // The last sector is not whole; no two sectors are the same.
    let content: Vec<u8> = (0..(4 << 20) - 100)
        .map(|n| (n / SECTOR * 7 + n % 251) as u8 ^ ((n / SECTOR) >> 5) as u8)
        .collect();
    let disk = file(case, "disk", &content)?;
    let compressed = disk.with_extension("qcow2");
    let sizes = qcow2::compress(&disk, &compressed)?;
    ensure!(
        sizes.image < sizes.disk / 4 * 3,
        "not compressed: {sizes:?}"
    );
    let mut rounded = content;
    rounded.resize(rounded.len().next_multiple_of(SECTOR), 0);
    let sum = sha256sum(&file(case, "rounded", &rounded)?)?;
    let kept = file(case, "kept", &vec![0; 1 << 20])?;

    let web = Guest {
        vcpus: 2,
        rng: true,
        hvc: true,
        ..Guest::new("web").command_line(QUICK_BOOT)
    };
    let old = Guest {
        memory_mib: 128,
        ..Guest::new("old").command_line(&format!("{QUICK_BOOT} pci=nomsi,nommconf"))
    };
    let mut session = tarpit(case)?
        .linux(&kernel, &initrd, &web)
        .linux(&kernel, &initrd, &old)
        .module(Module::disk(&disk, "web", "id=the-root"))
        .module(Module::disk(&kept, "web", "id=blocks snapshot=keep"))
        .module(Module::disk(&compressed, "old", "ro"))
        .boot()?
        .patience(PATIENCE);

    /// The number of blocks of 4 KiB that are read between two questions.
    const READS: u64 = 500;
    let mut said = String::new();
    let before = answer(&mut session, &mut said, "web", "read?", &["web"])?;
    let after = answer(&mut session, &mut said, "web", "write?", &["web"])?;
    let a_read = (after - before) as f64 / READS as f64;
    println!("{a_read:.3} exits for a read of 4 KiB");
    // To tell the device, and to wait; and a few for the questions.
    ensure!(a_read <= 2.1, "{a_read:.3} exits for a read of 4 KiB");
    said += &session.wait_for("disks: web round 5")?;
    for command in ["pause web", "resume web"] {
        said += &session.exchange(command)?.said;
    }
    said += &session.wait_for("disks: web done")?;
    // In the middle of writing the other one.
    for commands in [&["pause web", "resume web"][..], &["restart web"]] {
        said += &session.wait_for("workload: blocks life=1 ")?;
        for command in commands {
            said += &session.exchange(command)?.said;
        }
    }
    said += &session.wait_for("workload: blocks began life=2 ")?;
    let found = session.wait_for("\n")?;
    ensure!(found.contains(" lost=0"), "lost in a restart: {found}");
    said += &session.wait_for("workload: blocks life=2 ")?;
    for question in ["read?", "write?"] {
        answer(&mut session, &mut said, "web", question, &[])?;
    }
    said += &session.wait_for("disks: web done")?;
    said += &session.exchange("vms")?.said;
    let count = |line: &str| said.matches(line).count();
    for (line, times) in [
        // The host bridge, the entropy device, the disks and the console.
        ("disks: web functions 0x0d57 0x1044 0x1042 0x1042 0x1043", 2),
        ("disks: web heard: go on", 4),
        ("disks: web id the-root, read-only 0", 2),
        (&*format!("disks: web begins as {sum}"), 2),
        ("disks: web holds what was written", 2),
        ("disks: web holds its files", 2),
        ("disks: old functions 0x0d57 0x1042", 1),
        ("disks: old id , read-only 1", 1),
        (&*format!("disks: old begins as {sum}"), 1),
        ("disks: old cannot be written", 1),
    ] {
        ensure!(count(line) == times, "not {times} times `{line}`:\n{said}");
    }
    ensure!(
        count("PCI-MSI") >= 4 && count("IO-APIC") >= 1,
        "interrupts as they should not be:\n{said}"
    );
    ensure_no_complaint(&said)
}

/// `server` has files and `client` fetches one; `other` has the same address as the server in a
/// network of its own. The server may send no more than a line of 8 Mbit/s carries.
pub(crate) fn debians_reach_those_in_their_network(case: &Case) -> Result<()> {
    let (kernel, initrd) = debian(case, include_str!("virtio_networks.sh"))?;
    let no_file = file(case, "nothing", &[0])?;
    let mut setup = tarpit(case)?;
    for (name, network, options) in [
        ("server", "lan0", "rate=8"),
        ("client", "lan0", ""),
        ("other", "lan1", ""),
    ] {
        let guest = Guest {
            memory_mib: 128,
            hvc: true,
            ..Guest::new(name).command_line(&format!("{QUICK_BOOT} role={name}"))
        };
        setup = setup
            .linux(&kernel, &initrd, &guest)
            .module(Module::nic(&no_file, name, network, options));
    }
    let mut session = setup.boot()?.patience(PATIENCE);
    /// The number of packets that the client and the server each send between two questions, one at a time.
    const PACKETS: u64 = 200;
    let mut said = String::new();
    let both = ["client", "server"];
    let before = answer(&mut session, &mut said, "client", "ping?", &both)?;
    let after = answer(&mut session, &mut said, "client", "fetch?", &both)?;
    // Each is sent by one and received by the other.
    let a_packet = (after - before) as f64 / (4 * PACKETS) as f64;
    println!("{a_packet:.3} exits for a packet on each side");
    ensure!(
        a_packet <= 2.0,
        "{a_packet:.3} exits for a packet on each side"
    );
    said += &session.wait_for("networks: client done")?;
    let networks = session.exchange("networks")?;
    said += &networks.said;
    let of = |vm: &str, what: &str| {
        let line = networks.answer.iter().find(|line| line["vm"] == vm);
        let value = line.and_then(|line| line[what].as_u64());
        value.with_context(|| format!("no {what} of {vm}: {:?}", networks.answer))
    };
    println!("{:?}", networks.answer);
    ensure!(
        of("server", "rate_mbit")? == 8 && of("server", "held")? > 0,
        "{networks:?}"
    );
    ensure!(
        of("client", "held")? == 0 && of("client", "dropped")? == 0,
        "{networks:?}"
    );
    let sum = |what: &str| {
        let (_, sum) = said.split_once(what).context(what.to_owned())?;
        Ok::<_, anyhow::Error>(sum.lines().next().unwrap_or_default().trim().to_owned())
    };
    // Of 716,800 bytes, 128 KiB and a large frame go at once, and a byte in a microsecond after that.
    let hundredths: u64 = sum("client took ")?.parse()?;
    println!("{hundredths} hundredths of a second for 700 KiB at 8 Mbit/s");
    ensure!(
        (52..100).contains(&hundredths),
        "{hundredths} hundredths of a second"
    );
    // CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 and MRG_RXBUF.
    let features = sum("client features ")?;
    for bit in [0, 1, 7, 8, 11, 12, 15] {
        ensure!(
            features.as_bytes().get(bit) == Some(&b'1'),
            "no feature {bit}: {features}"
        );
    }
    let (served, fetched) = (sum("server has ")?, sum("client fetched ")?);
    ensure!(
        served.len() == 64 && served == fetched,
        "served {served}, fetched {fetched}"
    );
    ensure!(sum("other has ")? != served, "two files are the same");
    ensure_no_complaint(&said)
}

/// Checks that neither the script, nor the kernel, nor tarpit had anything to complain of. (That of
/// RETBleed, which says WARNING, is about the processor.)
fn ensure_no_complaint(said: &str) -> Result<()> {
    for complaint in [
        "FAILED",
        "rror",
        "WARNING: CPU",
        "BUG:",
        "Call Trace",
        "needs a reset",
        "LOST",
    ] {
        ensure!(!said.contains(complaint), "`{complaint}` in:\n{said}");
    }
    Ok(())
}

/// What the program of this name says of it, too.
fn sha256sum(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    ensure!(output.status.success(), "sha256sum fails");
    let said = String::from_utf8(output.stdout)?;
    let sum = said.split_whitespace().next().context("no sum")?;
    Ok(sum.to_owned())
}
