//! A Debian as a customer has it: it boots from its disk by SeaBIOS and GRUB, an administrator logs in, and
//! others fetch pages from its web server.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Case, tarpit};
use xtask::experiment::common::dmesg;
use xtask::testbed::initramfs::{self, Program};
use xtask::testbed::kernel::{self, Series};
use xtask::testbed::machine::End;
use xtask::testbed::module::{Guest, QUICK_BOOT};
use xtask::testbed::serial::Session;

/// The time to wait for a guest that boots, on a machine that is busy with other things, too.
const PATIENCE: Duration = Duration::from_secs(900);

/// Types a line at a VM's console. Returns what comes until its next prompt.
fn type_line(session: &mut Session, vm: &str, line: &str, prompt: &str) -> Result<String> {
    session.attach(vm)?;
    session.send_line(line)?;
    session.wait_for("\n")?;
    let said = session.wait_for(prompt)?;
    session.detach()?;
    Ok(said)
}

/// `web` is a whole Debian with nginx, and `client` a kernel with a shell.
pub(crate) fn debian_boots_from_its_disk_and_serves_another(case: &Case) -> Result<()> {
    const WEB: &str = "root@web:~# ";
    const CLIENT: &str = "/ # ";
    let package = kernel::fetch_with_modules(Series::default())?;
    let init = Program {
        path: "init".to_owned(),
        data: include_str!("userland_client.sh").into(),
    };
    let mut programs = Program::modules(&package.modules(&["virtio_pci", "virtio_net"])?)?;
    programs.extend([Program::busybox()?, init]);
    let initrd = initramfs::pack_programs(&case.file_name(), &programs)?;
    let web = format!("{QUICK_BOOT} hostname=web address=10.0.0.1/24");
    let web = Guest::new("web").command_line(&web);
    let client = Guest {
        memory_mib: 128,
        ..Guest::new("client").command_line(QUICK_BOOT)
    };
    let mut session = tarpit(case)?
        .options("on-end=poweroff")
        .debian_disk(Series::default(), &web)?
        .nic("web", "lan0", "")?
        .linux(&package.image, &initrd, &client)
        .nic("client", "lan0", "")?
        .boot()?
        .patience(PATIENCE);

    let said = session.wait_for("web login: ")?;
    for line in ["SeaBIOS (version", "Welcome to GRUB!", "Starting nginx"] {
        ensure!(said.contains(line), "no `{line}` in:\n{said}");
    }
    type_line(&mut session, "web", "root", WEB)?;
    let log = type_line(&mut session, "web", "dmesg", WEB)?;
    for line in ["BOOT_IMAGE=/boot/vmlinuz", "[8086:1237]", "vda: vda1 vda2"] {
        ensure!(log.contains(line), "no `{line}` in:\n{log}");
    }
    let complaints = dmesg::complaints(&log);
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let root = type_line(&mut session, "web", "grep ' / ' /proc/mounts", WEB)?;
    ensure!(root.contains(" / ext4 rw,"), "another root:\n{root}");

    let fetch = "wget -q -O - http://10.0.0.1/";
    let page = type_line(&mut session, "client", fetch, CLIENT)?;
    ensure!(page.contains("<h1>Welcome to nginx!</h1>"), "{page}");
    let requests = type_line(&mut session, "web", "cat /var/log/nginx/access.log", WEB)?;
    ensure!(
        requests.contains("10.0.0.2 - - ") && requests.contains(r#""GET / HTTP/1.1" 200"#),
        "{requests}"
    );

    // What is written is there after a power cut, and the file system is in order. The next boot begins with that.
    let keep = "sed -i '1i kept::sysinit:/bin/cat /root/kept' /etc/inittab; echo over a power cut > kept; sync";
    type_line(&mut session, "web", keep, WEB)?;
    session.command("restart web")?;
    let mut said = session.wait_for("over a power cut")?;
    said += &session.wait_for("root: clean, ")?;
    ensure!(!said.contains("EXT4-fs error"), "{said}");
    session.send_line("stop web")?;
    session.wait_for("vm web ended: ")?;

    session.attach("client")?;
    session.send_line("poweroff -f")?;
    session.wait_for("vm client ended: ")?;
    let end = session.wait_for_end()?;
    ensure!(matches!(end, End::PoweredOff { .. }), "{end}");
    Ok(())
}
