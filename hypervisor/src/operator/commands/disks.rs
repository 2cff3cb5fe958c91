//! `disks`: shows the VMs' disks, and the memory that what was written to them takes.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use devices::virtio::disk::SECTOR;
use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::console::Record;
use crate::vm::VmDisk;

pub(super) static COMMAND: Command = Command {
    name: "disks",
    usage: "disks",
    summary: "show the VMs' disks, and the memory that what was written to them takes",
    details: "\
What a guest has written takes memory until its VM is started again; where the disk is kept
(`snapshot=keep`), for as long as the machine runs. A guest gives memory back as it discards.",
    parameters: &[],
    options: &[],
    run,
};

fn run(_: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vms = context.vms;
    let made = vms.ids().filter_map(|id| vms.info(id).ok()?.vm);
    let lines = made.flat_map(|vm| {
        let disks = vm.disks.iter().enumerate();
        let line = |(number, disk)| DiskLine::new(&vm.name, number, disk);
        disks.map(line).collect::<Vec<_>>()
    });
    let lines: Vec<_> = lines.collect();
    Ok(Outcome::list(context, lines))
}

/// A disk.
#[derive(Clone, Debug, Serialize)]
struct DiskLine {
    /// The name of its VM.
    vm: String,
    /// Its number among the VM's disks, from 0 on.
    disk: usize,
    /// Its name in the guest; may be empty.
    id: String,
    /// Its size.
    bytes: u64,
    /// Whether the guest can only read it.
    read_only: bool,
    /// Whether it stays as it is when the VM is started again.
    kept: bool,
    /// The memory that what was written takes.
    own_bytes: u64,
}

impl DiskLine {
    fn new(vm: &str, number: usize, disk: &VmDisk) -> Self {
        let contents = disk.contents.lock();
        Self {
            vm: vm.to_owned(),
            disk: number,
            id: disk.id.clone(),
            bytes: contents.sectors() * SECTOR,
            read_only: contents.is_read_only(),
            kept: disk.keeps,
            own_bytes: contents.own_bytes(),
        }
    }
}

impl Record for DiskLine {
    const HEADING: &'static str =
        "VM           DISK ID                         SIZE        WRITTEN  MODE  KEPT";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<12} {:>4} {:<20} {:>7} MiB {:>10} KiB  {:<4}  {}",
            self.vm,
            self.disk,
            self.id,
            self.bytes.div_ceil(1 << 20),
            self.own_bytes.div_ceil(1 << 10),
            if self.read_only { "ro" } else { "rw" },
            if self.kept { "yes" } else { "no" }
        )
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use devices::virtio::device::Budget;
    use devices::virtio::disk::Disk;
    use devices::virtio::disk::image::DiskImage;
    use spin::Mutex;

    use super::*;
    use crate::console::{Answer, Format};

    #[test]
    fn a_disk_is_a_line() {
        let disk = |read_only, keeps, id: &str| VmDisk {
            id: id.into(),
            keeps,
            contents: Arc::new(Mutex::new(
                Disk::new(DiskImage::Raw(&[0; 20_000]), read_only, || true).unwrap(),
            )),
        };
        let written = disk(false, true, "root");
        for offset in [0, 4096, 5000] {
            let mut contents = written.contents.lock();
            assert!(contents.write(offset, 1, &mut Budget::new()).is_ok());
        }
        let line = DiskLine::new("web", 0, &written);
        assert_eq!((line.bytes, line.own_bytes), (20_480, 2 * 4096));
        let mut screen = Vec::new();
        Answer::new(&mut screen, Format::Table)
            .records([line, DiskLine::new("db", 1, &disk(true, false, ""))]);
        assert_eq!(
            str::from_utf8(&screen).unwrap(),
            "VM           DISK ID                         SIZE        WRITTEN  MODE  KEPT\r\n\
             web             0 root                       1 MiB          8 KiB  rw    yes\r\n\
             db              1                            1 MiB          0 KiB  ro    no\r\n"
        );
    }
}
