//! A target for fuzzing: the command lines of boot modules.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use crate::test_text::{Piece, line};

const WORDS: [&str; 60] = [
    "kernel ",
    "kernel vm=a ",
    "kernel vm=b ",
    "initrd vm=a ",
    "module vm=a ",
    "disk vm=a ",
    "net vm=a net=n ",
    "net vm=b net=n ",
    "disk vm=b ",
    "initrd ",
    "module ",
    "disk ",
    "net ",
    "vm=",
    "a",
    "b",
    "c-_",
    " mem=",
    "256M",
    "1G",
    "2m",
    "M",
    "g",
    " vcpus=",
    "8",
    " pin=",
    "0,1",
    ",",
    " weight=",
    "10000",
    " cap=",
    "800",
    " rng",
    " hvc",
    " ro",
    " id=",
    " snapshot=",
    "keep",
    " net=",
    " mac=",
    " rate=",
    "02:00:5e:00:53:01",
    ":",
    " suppress-policy=",
    "paper",
    " suppress-lead=",
    "250",
    " watch=",
    "EVIL-42",
    " hog=",
    "90,30",
    " on-reset=",
    " on-crash=",
    "restart",
    " test-devices",
    " -- ",
    "--",
    "firmware vm=a ",
    "firmware vm=b ",
    "firmware ",
];

#[test]
fn command_lines_of_modules() {
    fuzzing::check!()
        .with_type::<Vec<Vec<Piece>>>()
        .for_each(|lines| {
            let lines: Vec<String> = lines.iter().map(|pieces| line(pieces, &WORDS)).collect();
            check(&lines);
        });
}

/// Parses the modules, and checks that a VM is what one can be, or else an error tells why.
fn check(lines: &[String]) {
    let modules = lines.iter().map(|command_line| BootModule {
        command_line,
        data: command_line.as_bytes(),
    });
    let modules: Vec<_> = modules.collect();
    let parsed = parse(&modules);
    for vm in &parsed.vms {
        assert_eq!(name(&vm.name).as_ref(), Ok(&vm.name));
        assert_eq!(parsed.vms.iter().filter(|it| it.name == vm.name).count(), 1);
        assert!((MIN_MEMORY..=MAX_MEMORY).contains(&vm.memory));
        assert_eq!(vm.memory % MEMORY_UNIT, 0);
        assert!((1..=MAX_VCPUS as u32).contains(&vm.vcpus));
        assert!(vm.pins.is_empty() || vm.pins.len() == vm.vcpus as usize);
        assert!((1..=MAX_WEIGHT).contains(&vm.weight));
        assert!(vm.cap.is_none_or(|cap| (1..=800).contains(&cap)));
        assert!(vm.pci_functions() <= MAX_FUNCTIONS);
        if vm.firmware.is_some() {
            assert!(vm.kernel.is_empty() && vm.initrd.is_none() && vm.modules.is_empty());
            assert!(vm.command_line.is_empty());
        }
        let patterns = vm.rules.iter().filter(|rule| rule.pattern().is_some());
        assert!(patterns.count() <= MAX_PATTERNS);
        for disk in &vm.disks {
            assert!(disk.id.len() <= ID_LENGTH && disk.id.is_ascii());
        }
    }
    let nics = parsed.vms.iter().flat_map(|vm| &vm.nics);
    let mut macs: Vec<_> = nics.map(|nic| nic.mac).collect();
    for mac in &macs {
        assert!(!mac.is_group());
        assert_eq!(self::mac(&format!("{mac}")), Ok(*mac));
    }
    let count = macs.len();
    macs.sort_by_key(|mac| mac.0);
    macs.dedup();
    assert_eq!(macs.len(), count, "two devices have one address");

    // Each module is in a VM, or is wrong, or is for a VM of which another is wrong.
    if parsed.errors.is_empty() {
        let in_vm = |vm: &VmConfig| {
            1 + usize::from(vm.initrd.is_some()) + vm.modules.len() + vm.disks.len() + vm.nics.len()
        };
        assert_eq!(parsed.vms.iter().map(in_vm).sum::<usize>(), modules.len());
    }
    for error in &parsed.errors {
        assert_eq!(error.command_line, lines[error.number - 1]);
        assert!(format!("{error}").len() > 20);
        if let Some(name) = named_vm(&error.command_line) {
            assert!(parsed.vms.iter().all(|vm| vm.name != name), "{error}");
        }
    }
}
