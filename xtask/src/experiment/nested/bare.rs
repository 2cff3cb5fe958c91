//! Kernels of ours under QEMU/KVM itself, without tarpit: what KVM makes of the same, in the same emulator.
//!
//! A shell in the Debian stands between the kernels and us. It passes on what they say, tells how QEMU ended as tarpit
//! tells how a VM did, and plays the operator that `bench` asks: to a question it adds a line `exits N`, how often KVM's
//! guests have exited so far of themselves, before it answers. While a kernel measures, the shell sleeps but for a
//! glance every now and then, and nothing is on its way to our console: there is one CPU for all.
//!
//! The machines are a provider's: a disk by virtio, and a network of taps and a bridge, with vhost.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::{BEGINNING, Debian, END, KVM, OURS, Options, QEMU, passes, place, words};
use crate::experiment::bench::{self, Costs, ECHO, GUEST as BENCH, Hypervisor, Question};
use crate::testbed::build::Built;
use crate::testbed::initramfs::Program;
use crate::testbed::kernel::Package;
use crate::testbed::progress::Step;
use crate::testbed::serial::Session;

/// The kernel's modules, as modprobe names them.
const MODULES: [&str; 4] = [KVM, "tun", "bridge", "vhost_net"];

/// The Linux's parameters. Bochs's processor is of those whose first cache leaks to guests (L1TF), and has no command to
/// flush it: KVM would read the whole cache full of something else, some 4,200 instructions, at each entry after it emulated
/// something or left the kernel. Processors of today do not need that.
const PARAMETERS: &str = "l1tf=off";

/// The number of times that each operation is measured: the most that the kernel can, since at times a hundred of them that
/// follow each other were dearer, by something that Linux did beside.
const ROUNDS: u32 = 1000;

/// A disk's file there, below our directory.
const DISK: &str = "disk";

/// The first steps of the Debian: KVM's counts are in a file system, nothing of Linux's own may come between lines, and
/// numbers of KVM's depend on its parameters.
const PREPARATIONS: &str = "mount -t debugfs debug /sys/kernel/debug\ndmesg -n 1\nmkfifo /answers\n\
    cd /sys/module/kvm_intel/parameters\necho \"KVM's parameters: \"$(grep . *)\ncd /\n";

/// The functions of the shell there.
///
/// Nothing of Linux's own may be sent in the network; and a bridge forwards only after some seconds unless it is told
/// not to wait. The operator reads how many exits there were when the guest has halted, after its question, and takes
/// those off that interrupts of the host made. A question that it has answered stays the last line for a while.
const ABILITIES: &str = r#"connect() {
    echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
    brctl addbr lan
    cd /sys/class/net/lan/bridge
    echo 0 >forward_delay
    echo 0 >multicast_snooping
    ip link set lan up
    for tap; do
        tunctl -t $tap
        brctl addif lan $tap
        ip link set $tap up
    done
}
exits() {
    cd /sys/kernel/debug/kvm
    echo "exits $(($(cat exits) - $(cat irq_exits)))"
}
operate() {
    answered=
    while true; do
        usleep 50000
        case $(tail -n 1 /said) in
        "bench: to be counted "*|"bench: counted")
            usleep 20000
            length=$(wc -c </said)
            if [ "$length" != "$answered" ]; then
                answered=$length
                cat <&3
                exits
                usleep 50000
                echo >/answers
            fi;;
        "vm "*" ended: "*)
            cat <&3
            return;;
        esac
    done
}
ended() {
    if [ $(($2 % 2)) = 1 ]; then
        echo "vm $1 ended: debug-exit $(($2 / 2))"
    else
        echo "vm $1 ended: QEMU with the status $2"
    fi
}
"#;

/// The kind of device that our drivers know.
const MODERN: &str = "disable-legacy=on,disable-modern=off";

/// Returns what makes QEMU run this kernel.
fn machine(kernel: &str, command_line: &str) -> String {
    format!(
        "{QEMU} -m 64M -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel /{OURS}/{kernel} -append '{command_line}'"
    )
}

/// Returns what gives a machine a network card at this tap. Its address is of those that anybody may choose.
fn card(tap: &str, number: u8) -> String {
    format!(
        "-netdev tap,id=net,ifname={tap},script=no,downscript=no,vhost=on,vhostforce=on \
         -device virtio-net-pci,netdev=net,mac=02:00:00:00:00:{number:02x},romfile=,{MODERN}"
    )
}

/// Returns what the Debian does.
fn init(kernels: &[&str]) -> Result<String> {
    let mut script = format!("{BEGINNING}{PREPARATIONS}{ABILITIES}");
    for &kernel in kernels {
        let (mut words, mut devices) = (words(kernel).to_owned(), String::new());
        if kernel == BENCH {
            words = format!("rounds={ROUNDS} operator=1 no-target {words}");
            write!(
                devices,
                " -drive file=/{OURS}/{DISK},format=raw,if=none,id=disk,readonly=on \
                 -device virtio-blk-pci,drive=disk,{MODERN} {}",
                card(BENCH, 1)
            )?;
            writeln!(
                script,
                "connect {BENCH} {ECHO}\n{} -serial null {} </dev/null &\necho=$!",
                machine(kernel, "echo=1"),
                card(ECHO, 2)
            )?;
        }
        writeln!(
            script,
            "echo\n>/said\n{{ {} -serial stdio{devices} <>/answers; ended {kernel} $?; }} >>/said &\n\
             operate 3</said",
            machine(kernel, words.trim_end())
        )?;
        if kernel == BENCH {
            script.push_str("kill $echo\n");
        }
    }
    script.push_str(END);
    Ok(script)
}

/// Returns the number of exits in the operator's line about them.
fn exits_in(line: &str) -> Option<u64> {
    line.trim().strip_prefix("exits ")?.parse().ok()
}

/// Waits for the operator to tell how often the guests have exited.
fn exits(session: &mut Session, _: Question) -> Result<u64> {
    let line = session.wait_for_match("^exits .*$")?;
    let line = line.first().context("no line")?;
    exits_in(line).with_context(|| {
        format!("`{line}` is no number: is /sys/kernel/debug/kvm of this Linux's as it was?")
    })
}

/// Runs the kernels and prints what each found, or measured. True if all ended without a failure. `name` names the
/// run's files.
///
/// # Errors
/// As [`Debian::boot`], or when a machine ends before its time.
pub(super) fn run(name: &str, options: &Options, built: &Built, package: &Package) -> Result<bool> {
    let kernels = options.kernels();
    let mut programs = vec![Program {
        path: place(DISK),
        data: bench::disk_content(),
    }];
    for kernel in &kernels {
        programs.push(Program::copy(built.kernel(kernel)?, place(kernel))?);
    }
    let debian = Debian {
        package,
        modules: &MODULES,
        parameters: PARAMETERS,
        init: init(&kernels)?,
        programs,
    };
    let mut session = debian.boot(name, options.speed.ips)?;
    let parameters = session.wait_for_match("^KVM's parameters: .*$")?;
    println!("{}", parameters.join(" "));
    let step = Step::begin("Running kernels in QEMU/KVM in Linux in Bochs");
    let mut passed = true;
    for kernel in kernels {
        step.detail(kernel);
        if kernel == BENCH {
            let measured = bench::follow(&mut session, exits)?;
            let costs = Costs {
                hypervisor: Hypervisor::Kvm,
                measured,
            };
            costs.conclude("bench-kvm.json")?;
        } else {
            passed &= passes(&mut session, kernel)?;
        }
    }
    session.wait_for_end()?;
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use anyhow::ensure;

    use super::*;
    use crate::testbed::verdict::VmEnd;

    /// Returns what a shell says to this script.
    fn shell(script: &str) -> Result<String> {
        let output = Command::new("sh").args(["-euc", script]).output()?;
        ensure!(
            output.status.success(),
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    #[test]
    fn a_shell_understands_what_the_debian_does() -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), init(&[BENCH, "exits"])?)?;
        let said = shell(&format!("sh -n {}", file.path().display()))?;
        assert_eq!(said, "");
        Ok(())
    }

    #[test]
    fn the_other_end_of_the_network_is_there_for_bench_alone() -> Result<()> {
        let script = init(&[BENCH, "exits"])?;
        assert_eq!(script.matches("-kernel /tarpit/bench").count(), 2);
        assert_eq!(script.matches("-device virtio-net-pci").count(), 2);
        assert!(script.contains("-append 'rounds=1000 operator=1 no-target' -serial stdio -drive"));
        let (_, exits) = script.split_once("-kernel /tarpit/exits").expect("exits");
        assert!(exits.starts_with(" -append 'sysenter-unchecked' -serial stdio <>/answers;"));
        Ok(())
    }

    #[test]
    fn qemus_status_is_told_as_tarpit_tells_how_a_vm_ended() -> Result<()> {
        let end = |status: u32| -> Result<Option<VmEnd>> {
            let said = shell(&format!("{ABILITIES}ended bench {status}"))?;
            Ok(VmEnd::from_line(said.trim_end(), BENCH))
        };
        assert_eq!(end(1)?, Some(VmEnd::DebugExit(0)));
        assert_eq!(end(5)?, Some(VmEnd::DebugExit(2)));
        assert!(matches!(end(134)?, Some(VmEnd::Other(_))));
        Ok(())
    }

    #[test]
    fn the_operators_line_has_a_number() {
        assert_eq!(exits_in("exits 24167\r"), Some(24_167));
        assert_eq!(exits_in("exits "), None);
        assert_eq!(exits_in("exits -3"), None);
        assert_eq!(exits_in("[bench 1.2] exits 5"), None);
    }
}
