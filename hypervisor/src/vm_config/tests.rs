use alloc::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const KERNEL: &[u8] = b"the kernel";
const INITRD: &[u8] = b"the initrd";

fn modules<'a>(command_lines: &[&'a str]) -> Vec<BootModule<'a>> {
    command_lines
        .iter()
        .map(|command_line| BootModule {
            command_line,
            data: if command_line.contains("initrd") {
                INITRD
            } else {
                KERNEL
            },
        })
        .collect()
}

/// The VMs of modules with which all is right.
fn vms<'a>(command_lines: &[&'a str]) -> Vec<VmConfig<'a>> {
    let parsed = parse(&modules(command_lines));
    assert_eq!(parsed.errors, []);
    parsed.vms
}

/// The one thing that is wrong.
fn error(command_lines: &[&str]) -> ConfigError {
    let mut errors = parse(&modules(command_lines)).errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

fn cause(command_lines: &[&str]) -> Cause {
    error(command_lines).cause
}

#[test]
fn a_kernel_needs_no_more_than_a_name() {
    let vms = vms(&["kernel vm=debian"]);
    let [vm] = &vms[..] else { panic!("{vms:?}") };
    assert_eq!(vm.name, "debian");
    assert_eq!((vm.memory, vm.vcpus), (256 << 20, 1));
    assert_eq!((vm.weight, vm.cap), (DEFAULT_WEIGHT, None));
    assert_eq!(vm.restart, RestartPolicy::default());
    assert!(!vm.test_devices);
    assert_eq!((vm.kernel, vm.initrd), (KERNEL, None));
    assert_eq!(vm.command_line, "");
    assert!(vm.pins.is_empty() && vm.modules.is_empty());
}

#[test]
fn a_vm_is_watched_from_the_beginning() {
    let vms = vms(&["kernel vm=a watch=EVIL-42,1000 hog=90,30 watch=0x7f454c46 -- watch=x"]);
    let rules: Vec<String> = vms[0]
        .rules
        .iter()
        .map(|rule| std::format!("{}: {}", rule.condition, rule.action))
        .collect();
    assert_eq!(
        rules,
        [
            "EVIL-42: suppress 1000",
            "hog 90 % for 30 s: tell",
            "0x7f454c46: tell"
        ]
    );
    assert_eq!(cause(&["kernel vm=a watch="]), Cause::BadWatch("".into()));
    assert_eq!(cause(&["kernel vm=a hog=90"]), Cause::BadHog("90".into()));
    assert_eq!(
        cause(&["kernel vm=a", "initrd vm=a watch=x"]),
        Cause::UnknownOption {
            option: "watch=x".into(),
            role: Role::Initrd,
        }
    );
    let many: String = (0..17)
        .map(|number| std::format!(" watch=x{number}"))
        .collect();
    assert_eq!(
        cause(&[&std::format!("kernel vm=a{many}")]),
        Cause::TooManyPatterns
    );
}

#[test]
fn all_options_of_a_vm() {
    let vms = vms(&[
        "initrd vm=a",
        "kernel vm=a mem=2G vcpus=2 pin=3,1 weight=50 cap=150 -- console=ttyS0 -- quiet  x",
        "module vm=a -- second file",
        "disk vm=a id=root",
        "/boot/data.img disk vm=a ro",
        "disk vm=a snapshot=keep",
        "kernel vm=b rng hvc test-devices",
        "net vm=b net=lan0",
        "net vm=b net=lan1 rate=250",
        "net vm=a net=lan0 mac=52:54:00:AB:cd:09",
    ]);
    let [vm, other] = &vms[..] else {
        panic!("{vms:?}")
    };
    assert!(other.entropy && other.test_devices && !vm.entropy);
    assert!(other.console && !vm.console);
    assert_eq!((vm.pci_functions(), other.pci_functions()), (4, 4));
    let nics = |vm: &VmConfig<'_>| -> Vec<(String, String)> {
        let nics = vm.nics.iter();
        nics.map(|nic| (nic.network.clone(), nic.mac.to_string()))
            .collect()
    };
    let pair = |network: &str, mac: &str| (network.to_string(), mac.to_string());
    assert_eq!(nics(vm), [pair("lan0", "52:54:00:ab:cd:09")]);
    assert_eq!(
        nics(other),
        [
            pair("lan0", "02:00:00:00:01:00"),
            pair("lan1", "02:00:00:00:01:01")
        ]
    );
    let rates = other.nics.iter().map(|nic| nic.rate);
    assert_eq!(
        rates.collect::<Vec<_>>(),
        [None, Bandwidth::from_megabits(250)]
    );
    let disks: Vec<_> = vm
        .disks
        .iter()
        .map(|disk| (disk.id.as_str(), disk.read_only, disk.keeps))
        .collect();
    assert_eq!(
        disks,
        [("root", false, false), ("", true, false), ("", false, true)]
    );
    let raw = DiskImage::Raw(KERNEL);
    assert!(vm.disks.iter().all(|disk| disk.image == raw));
    assert_eq!((vm.memory, vm.vcpus), (2 << 30, 2));
    assert_eq!(vm.pins, [3, 1]);
    assert_eq!((vm.weight, vm.cap), (50, Some(150)));
    assert_eq!(vm.initrd, Some(INITRD));
    assert_eq!(vm.command_line, "console=ttyS0 -- quiet  x");
    assert_eq!(vm.modules[0].string, "second file");
}

#[test]
fn what_becomes_of_a_vm_that_resets_or_crashes_is_said_for_each() {
    let policy = |after_reset, after_crash| RestartPolicy {
        after_reset,
        after_crash,
    };
    for (line, expected) in [
        ("kernel vm=a on-reset=stop", policy(false, false)),
        ("kernel vm=a on-crash=restart", policy(true, true)),
        (
            "kernel vm=a on-crash=stop on-reset=restart",
            policy(true, false),
        ),
    ] {
        assert_eq!(vms(&[line])[0].restart, expected, "{line}");
    }
    assert_eq!(
        cause(&["kernel vm=a on-reset=reboot"]),
        Cause::BadAction {
            option: "on-reset",
            value: "reboot".into()
        }
    );
}

#[test]
fn one_pin_holds_for_all_vcpus() {
    let vms = vms(&["kernel vm=a vcpus=4 pin=1"]);
    assert_eq!(vms[0].pins, [1, 1, 1, 1]);
}

#[test]
fn a_file_name_in_front_is_skipped() {
    for line in [
        "/boot/vmlinuz kernel vm=a",
        "vmlinuz kernel vm=a",
        "kernel kernel vm=a",
    ] {
        assert_eq!(vms(&[line])[0].name, "a", "{line}");
    }
}

#[test]
fn vms_come_in_the_order_of_their_kernels() {
    let vms = vms(&["initrd vm=b", "kernel vm=a", "kernel vm=b"]);
    assert_eq!(vms[0].name, "a");
    assert_eq!((vms[1].name.as_str(), vms[1].initrd), ("b", Some(INITRD)));
}

#[test]
fn firmware_makes_a_vm_as_a_kernel_does() {
    let vms = vms(&[
        "firmware vm=a mem=512M vcpus=2 rng on-reset=stop",
        "/boot/bios.bin firmware vm=b",
        "disk vm=a",
    ]);
    let [vm, other] = &vms[..] else {
        panic!("{vms:?}")
    };
    assert_eq!((vm.kernel, vm.firmware), (&[][..], Some(KERNEL)));
    assert_eq!((vm.memory, vm.vcpus, vm.disks.len()), (512 << 20, 2, 1));
    assert!(vm.entropy && !vm.restart.after_reset);
    assert_eq!(
        (other.memory, other.firmware),
        (DEFAULT_MEMORY, Some(KERNEL))
    );
    assert_eq!(
        cause(&["firmware vm=a", "kernel vm=a"]),
        Cause::DuplicateVm("a".into())
    );
    assert_eq!(
        cause(&["firmware vm=a -- quiet"]),
        Cause::UnwantedString(Role::Firmware)
    );
    assert_eq!(
        cause(&["firmware vm=a id=x"]),
        Cause::UnknownOption {
            option: "id=x".into(),
            role: Role::Firmware
        }
    );
    for (line, role) in [("initrd vm=a", Role::Initrd), ("module vm=a", Role::Module)] {
        assert_eq!(
            cause(&[line, "firmware vm=a"]),
            Cause::NotForFirmware {
                vm: "a".into(),
                role
            }
        );
    }
}

#[test]
fn each_mistake_has_its_cause() {
    assert_eq!(cause(&[""]), Cause::NoRole);
    assert_eq!(cause(&["/boot/vmlinuz"]), Cause::NoRole);
    assert_eq!(cause(&["vm=a kernel"]), Cause::NoName);
    assert_eq!(cause(&["kernel"]), Cause::NoName);
    assert_eq!(cause(&["kernel vm="]), Cause::BadName("".into()));
    assert_eq!(cause(&["kernel vm=-a"]), Cause::BadName("-a".into()));
    assert_eq!(cause(&["kernel vm=a/b"]), Cause::BadName("a/b".into()));
    assert_eq!(cause(&["kernel vm=a vm=b"]), Cause::RepeatedOption("vm"));
    assert_eq!(
        cause(&["kernel vm=a", "initrd vm=b"]),
        Cause::UnknownVm {
            vm: "b".into(),
            role: Role::Initrd
        }
    );
    assert_eq!(
        cause(&["kernel vm=a", "kernel vm=a"]),
        Cause::DuplicateVm("a".into())
    );
    assert_eq!(
        cause(&["kernel vm=a", "initrd vm=a", "initrd vm=a"]),
        Cause::DuplicateInitrd("a".into())
    );
    assert_eq!(
        cause(&["kernel vm=a memory=1G"]),
        Cause::UnknownOption {
            option: "memory=1G".into(),
            role: Role::Kernel
        }
    );
    assert_eq!(
        cause(&["initrd vm=a mem=1G"]),
        Cause::UnknownOption {
            option: "mem=1G".into(),
            role: Role::Initrd
        }
    );
    assert_eq!(
        cause(&["disk vm=a -- quiet"]),
        Cause::UnwantedString(Role::Disk)
    );
    assert_eq!(
        cause(&["kernel vm=a", "net vm=a"]),
        Cause::NoNetwork("a".to_string())
    );
    for mac in [
        "",
        "2:0:0:0:0:1",
        "02:00:00:00:00:01:02",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "+2:00:00:00:00:01",
    ] {
        let line = std::format!("net vm=a net=lan mac={mac}");
        assert_eq!(cause(&[&line]), Cause::BadMac(mac.to_string()));
    }
    assert_eq!(
        cause(&[
            "kernel vm=a",
            "net vm=a net=x mac=02:00:00:00:00:05",
            "net vm=a net=y mac=02:00:00:00:00:05"
        ]),
        Cause::DuplicateMac(Mac([2, 0, 0, 0, 0, 5]))
    );
    for rate in ["", "0", "-1", "1.5", "100001", "1G", "4294967296"] {
        let line = std::format!("net vm=a net=lan rate={rate}");
        let expected = Cause::BadNumber {
            option: "rate",
            value: rate.to_string(),
            min: 1,
            max: 100_000,
        };
        assert_eq!(cause(&[&line]), expected);
    }
    for id in ["a-name-of-21-characte", "\u{e9}"] {
        let line = std::format!("disk vm=a id={id}");
        assert_eq!(cause(&[&line]), Cause::BadDiskId(id.to_string()));
    }
    for value in ["", "keeps", "drop"] {
        let line = std::format!("disk vm=a snapshot={value}");
        assert_eq!(cause(&[&line]), Cause::BadSnapshot(value.to_string()));
    }
    let twice = cause(&["disk vm=a snapshot=keep snapshot=keep"]);
    assert_eq!(twice, Cause::RepeatedOption("snapshot"));
    let mut lines = std::vec!["kernel vm=a"];
    lines.resize(MAX_DEVICES + 2, "disk vm=a");
    assert_eq!(cause(&lines), Cause::TooManyDevices("a".to_string()));
    assert_eq!(
        cause(&["initrd vm=a -- quiet"]),
        Cause::UnwantedString(Role::Initrd)
    );
    assert_eq!(
        cause(&["kernel vm=a vcpus=2 pin=0,1,2"]),
        Cause::WrongPinCount { pins: 3, vcpus: 2 }
    );
    for pins in ["", "0,", "a", "-1", "99999999999"] {
        let line = alloc::format!("kernel vm=a pin={pins}");
        assert_eq!(cause(&[&line]), Cause::BadPins(pins.into()));
    }
    for size in [
        "",
        "0M",
        "1M",
        "M",
        "64",
        "64K",
        "+64M",
        "-1G",
        "1025G",
        "99999999999999999999G",
    ] {
        let line = alloc::format!("kernel vm=a mem={size}");
        assert_eq!(cause(&[&line]), Cause::BadMemory(size.into()));
    }
    for vcpus in ["", "0", "9", "x", "4294967297"] {
        let line = alloc::format!("kernel vm=a vcpus={vcpus}");
        assert!(matches!(cause(&[&line]), Cause::BadNumber { .. }), "{line}");
    }
}

#[test]
fn a_message_names_the_module_the_cause_and_the_remedy() {
    let error = error(&["kernel vm=a", "initrd vm=b"]);
    assert_eq!(
        error.to_string(),
        "boot module 2 (\"initrd vm=b\"): there is no VM `b` for this initrd: \
         add a module `kernel vm=b`, or correct the name"
    );
}

#[test]
fn a_message_of_a_long_command_line_is_short() {
    let long = "x".repeat(1000);
    let error = error(&[&long]).to_string();
    assert!(error.len() < 300, "{error}");
}

#[test]
fn a_vm_with_a_wrong_module_is_left_out_and_the_others_are_not() {
    for wrong in [
        "kernel vm=b mem=1",
        "initrd vm=b -- string",
        "module vm=b mem=1G",
        "initrd vm=b",
    ] {
        let lines = ["kernel vm=a", "kernel vm=b", "initrd vm=b", "initrd vm=a"];
        let mut lines = lines.to_vec();
        if wrong.starts_with("kernel") {
            lines[1] = wrong;
        } else {
            lines.push(wrong);
        }
        let parsed = parse(&modules(&lines));
        assert_eq!(parsed.errors.len(), 1, "{wrong}: {:?}", parsed.errors);
        let [vm] = &parsed.vms[..] else {
            panic!("{wrong}: {:?}", parsed.vms)
        };
        assert_eq!((vm.name.as_str(), vm.initrd), ("a", Some(INITRD)));
    }
}

#[test]
fn a_vm_with_a_disk_image_that_is_not_read_is_left_out_and_the_others_are_not() {
    let mut modules = modules(&["kernel vm=a", "kernel vm=b", "disk vm=b", "disk vm=a"]);
    modules[2].data = b"QFI\xfb\0\0\0\x01";
    let parsed = parse(&modules);
    let [vm] = &parsed.vms[..] else {
        panic!("{:?}", parsed.vms)
    };
    assert_eq!((vm.name.as_str(), vm.disks.len()), ("a", 1));
    let [error] = &parsed.errors[..] else {
        panic!("{:?}", parsed.errors)
    };
    assert_eq!(
        error.to_string(),
        "boot module 3 (\"disk vm=b\"): the qcow2 image has version 1 of the format: make it anew, by \
         `qemu-img convert -O qcow2 -c`"
    );
}

#[test]
fn a_module_that_is_for_no_vm_leaves_none_out() {
    for wrong in ["/boot/strange", "initrd vm=c", "initrd", "module vm=/"] {
        let parsed = parse(&modules(&["kernel vm=a", wrong]));
        assert_eq!((parsed.vms.len(), parsed.errors.len()), (1, 1), "{wrong}");
    }
}

#[test]
fn of_two_kernels_for_one_vm_neither_is_taken() {
    let parsed = parse(&modules(&["kernel vm=a", "kernel vm=b", "kernel vm=a"]));
    assert_eq!((parsed.vms.len(), parsed.errors.len()), (1, 1));
    assert_eq!(parsed.vms[0].name, "b");
}

proptest! {
    #[test]
    fn no_command_line_makes_the_parser_panic(lines in proptest::collection::vec(any::<String>(), 0..4)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        for error in parse(&modules(&lines)).errors {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_option_makes_the_parser_panic(
        line in "(kernel|initrd|module|disk|net) vm=(a|b)( (mem|vcpus|pin|weight|cap|vm|rng|hvc|ro|id|snapshot|net|mac|rate|--)=?[-+,0-9MG]{0,6}){0,4}"
    ) {
        let parsed = parse(&modules(&[&line]));
        prop_assert_eq!(parsed.vms.len() + parsed.errors.len(), 1);
        for vm in parsed.vms {
            prop_assert!((1..=MAX_VCPUS as u32).contains(&vm.vcpus));
            prop_assert!(vm.memory % MEMORY_UNIT == 0 && vm.memory >= MIN_MEMORY);
            prop_assert!(vm.pins.is_empty() || vm.pins.len() == vm.vcpus as usize);
        }
    }
}
