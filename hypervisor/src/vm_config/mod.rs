//! What VMs there shall be: the operator says it on the command lines of the boot modules.
//!
//! ```text
//! kernel vm=NAME [mem=SIZE] [vcpus=N] [pin=CPU,...] [weight=N] [cap=PERCENT] [rng] [hvc]
//!        [test-devices]
//!        [suppress-policy=bounded|paper] [suppress-lead=MS[,MS]]
//!        [watch=PATTERN[,N]]... [hog=PERCENT,SECONDS[,N]]...
//!        [on-reset=restart|stop] [on-crash=restart|stop] [-- COMMAND LINE]
//! firmware vm=NAME [the options of a kernel]
//! initrd vm=NAME
//! module vm=NAME [-- STRING]
//! disk vm=NAME [ro] [id=NAME] [snapshot=keep]
//! net vm=NAME net=NETWORK [mac=ADDRESS] [rate=MBIT]
//! ```
//!
//! Each `kernel` makes a VM, and so does each `firmware`, which starts at the reset vector and loads what it
//! boots from the VM's disks; `initrd` and `module` (for multiboot guests) give it more
//! files, before or after, and each `disk` a disk that begins as the file, which may be a qcow2 image. Each
//! `net` plugs it into a network, which is there for all that name it; what is in the file does not matter.
//! What follows `--` is the guest's, verbatim. Boot loaders differ in whether they put the file's name first; a
//! first word is taken for that, and skipped, if the second is one of the six.
#![forbid(unsafe_code)]

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::{fmt, str::FromStr};

use devices::bandwidth::Bandwidth;
use devices::chipset::pci::MAX_FUNCTIONS;
use devices::switch::Mac;
use devices::virtio::block::ID_LENGTH;
use devices::virtio::disk::image::DiskImage;
use devices::virtio::disk::qcow2::Qcow2Error;
use thiserror::Error;

use crate::ids::MAX_VCPUS;
use crate::numbers::decimal;
use crate::suppression::order::{Bounds, Defaults, Policy};
use crate::watch::patterns::MAX_PATTERNS;
use crate::watch::rule::{NoRule, Rule};

/// The RAM of a VM whose `mem=` is not given, in bytes.
pub(crate) const DEFAULT_MEMORY: u64 = 256 << 20;
/// The least RAM that a VM can have, in bytes.
pub(crate) const MIN_MEMORY: u64 = 2 << 20;
/// The most RAM that a VM can have, in bytes.
pub(crate) const MAX_MEMORY: u64 = 1 << 40;
/// The unit of which the RAM of a VM is a multiple, in bytes.
pub(crate) const MEMORY_UNIT: u64 = 1 << 20;
/// The weight of a VM whose `weight=` is not given.
pub(crate) const DEFAULT_WEIGHT: u32 = 100;
/// The largest weight.
pub(crate) const MAX_WEIGHT: u32 = 10_000;
/// The most disks and network devices that a VM can have: what the PCI bus has room for beside an
/// entropy device and a console.
pub(crate) const MAX_DEVICES: usize = MAX_FUNCTIONS - 2;
/// The longest name of a VM, in bytes.
pub(crate) const MAX_NAME_LENGTH: usize = 32;

/// A file that the boot loader has loaded for us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootModule<'a> {
    /// The command line it was given.
    pub command_line: &'a str,
    /// Its contents.
    pub data: &'a [u8],
}

/// A file for a multiboot guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestModule<'a> {
    /// The string that the guest gets with it.
    pub string: String,
    /// Its contents.
    pub data: &'a [u8],
}

/// Whether a VM is started again when its guest ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestartPolicy {
    /// Whether it is when it resets itself: `on-reset=restart|stop`, by default `restart`.
    pub after_reset: bool,
    /// Whether it is when it does what no guest should, or the hardware fails:
    /// `on-crash=restart|stop`, by default `stop`.
    pub after_crash: bool,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            after_reset: true,
            after_crash: false,
        }
    }
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestDisk<'a> {
    /// The contents that it begins with.
    pub image: DiskImage<'a>,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// Its name, by which the guest can tell disks apart; may be empty.
    pub id: String,
    /// Whether what the guest has written is there when the VM is started again: `snapshot=keep`.
    pub keeps: bool,
}

/// A network device of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestNic {
    /// The network that it is plugged into.
    pub network: String,
    /// Its address, which no other has.
    pub mac: Mac,
    /// The most that it may send, if there is a limit.
    pub rate: Option<Bandwidth>,
}

/// A VM as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmConfig<'a> {
    /// Its name, by which the console knows it.
    pub name: String,
    /// Its RAM in bytes, a multiple of [`MEMORY_UNIT`].
    pub memory: u64,
    /// The number of its VCPUs: 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// The physical CPU that each VCPU is pinned to, as many as there are VCPUs; empty if
    /// they are not pinned.
    pub pins: Vec<u32>,
    /// Its share of a CPU, relative to the weights of other VMs: 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// The most CPU time that it may have, in percent of one physical CPU.
    pub cap: Option<u32>,
    /// The defaults for its targets of suppression, unless the operator says otherwise.
    pub suppression: Defaults,
    /// The rules by which its processes are watched from the beginning.
    pub rules: Vec<Rule>,
    /// Whether it is started again when it ends.
    pub restart: RestartPolicy,
    /// Whether it has the devices that test kernels expect, and no machine for rent should have:
    /// the port by which a guest ends its VM with a result, a test device, and the
    /// firmware-configuration interface.
    pub test_devices: bool,
    /// The kernel image; empty where firmware starts.
    pub kernel: &'a [u8],
    /// The image of the firmware that starts instead of a kernel, if one does.
    pub firmware: Option<&'a [u8]>,
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Further files, for a multiboot guest.
    pub modules: Vec<GuestModule<'a>>,
    /// Its disks, in their order on the PCI bus.
    pub disks: Vec<GuestDisk<'a>>,
    /// Its network devices, behind them.
    pub nics: Vec<GuestNic>,
    /// Whether it has an entropy device.
    pub entropy: bool,
    /// Whether it has a virtio console beside its serial line.
    pub console: bool,
    /// The guest's command line.
    pub command_line: String,
}

impl VmConfig<'_> {
    /// Returns the number of the device on its PCI bus that its first disk is, if it has one.
    #[must_use]
    pub(crate) fn first_disk(&self) -> usize {
        // Behind the host bridge and the entropy device.
        1 + usize::from(self.entropy)
    }

    /// Returns how many functions it has on its PCI bus.
    #[must_use]
    pub(crate) fn pci_functions(&self) -> usize {
        usize::from(self.entropy) + usize::from(self.console) + self.disks.len() + self.nics.len()
    }
}

/// An error in the boot modules.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("boot module {number} ({excerpt:?}): {cause}", excerpt = Excerpt(.command_line))]
pub(crate) struct ConfigError {
    /// The number of the module, counted from 1.
    pub number: usize,
    /// Its command line.
    pub command_line: String,
    /// The cause of the error.
    pub cause: Cause,
}

/// The cause of an error in a boot module.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Cause {
    /// A module that does not say what it is.
    #[error(
        "does not say what it is: begin its command line with `kernel vm=NAME`, `firmware vm=NAME`, \
         `initrd vm=NAME`, `module vm=NAME`, `disk vm=NAME` or `net vm=NAME net=NETWORK`"
    )]
    NoRole,
    /// An option that does not exist, or not for this kind of module.
    #[error("unknown option `{option}`: {role} takes {known}", known = .role.options())]
    UnknownOption {
        /// The option, with its value.
        option: String,
        /// The role of the module.
        role: Role,
    },
    /// An option that is given twice.
    #[error("option `{0}=` is given twice: remove one")]
    RepeatedOption(&'static str),
    /// A module without the option that every module needs.
    #[error("does not say which VM it is for: add `vm=NAME`")]
    NoName,
    /// A value that is not a name.
    #[error(
        "`{0}` is not a name for a VM: use 1 to {MAX_NAME_LENGTH} of the characters \
         A-Z a-z 0-9 _ -, a letter or digit first"
    )]
    BadName(String),
    /// A value that is not a size, or one that no VM can have.
    #[error(
        "`mem={0}` is not a size that a VM can have: use a number with the suffix M or G, from \
         {min}M to {max}G, like `mem=256M`",
        min = MIN_MEMORY >> 20,
        max = MAX_MEMORY >> 30
    )]
    BadMemory(String),
    /// A value that is not a number, or out of its range.
    #[error("`{option}={value}` is not a number from {min} to {max}")]
    BadNumber {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The least that it can be.
        min: u32,
        /// The most that it can be.
        max: u32,
    },
    /// A value that is neither of what can become of a VM.
    #[error("`{option}={value}` is neither `restart` nor `stop`")]
    BadAction {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// A value that is not a list of CPUs.
    #[error(
        "`pin={0}` is not a list of CPU numbers: use numbers separated by commas, like `pin=0,1`"
    )]
    BadPins(String),
    /// A value that is not a policy of suppression.
    #[error("`suppress-policy={0}` is not a policy of suppression: use `bounded` or `paper`")]
    BadPolicy(String),
    /// A value that does not give the bounds of a lead.
    #[error(
        "`suppress-lead={0}` does not say how far the VM's clock may be ahead: use milliseconds from \
         {min} to {max}, like `suppress-lead=250`, or two numbers, the first for while another VM \
         wants the CPU, like `suppress-lead=250,1000`",
        min = Bounds::LEAST,
        max = Bounds::MOST
    )]
    BadLead(String),
    /// A value that is no rule.
    #[error(
        "`watch={0}` is no rule: use a pattern of up to 64 bytes without spaces, as text or as \
         hexadecimal digits behind 0x, and perhaps a factor of suppression, like `watch=EVIL-42,1000`"
    )]
    BadWatch(String),
    /// A value that is no rule.
    #[error(
        "`hog={0}` is no rule: use percent of one CPU, seconds, and perhaps a factor of suppression, \
         like `hog=90,30,1000`"
    )]
    BadHog(String),
    /// More patterns than can be looked for at once.
    #[error("too many patterns: a VM is watched for {MAX_PATTERNS} at most")]
    TooManyPatterns,
    /// A list of CPUs that does not fit the number of VCPUs.
    #[error("`pin=` names {pins} CPUs for {vcpus} VCPUs: name one for each VCPU, or one for all")]
    WrongPinCount {
        /// The number of CPUs named.
        pins: usize,
        /// The number of VCPUs.
        vcpus: u32,
    },
    /// Two kernels for one VM, or what else makes one.
    #[error("a second kernel or firmware for VM `{0}`: give each VM a name of its own")]
    DuplicateVm(String),
    /// Two initial RAM disks for one VM.
    #[error("a second initrd for VM `{0}`: a VM has one; concatenate the two files")]
    DuplicateInitrd(String),
    /// A file for a VM that does not exist.
    #[error(
        "there is no VM `{vm}` for this {role}: add a module `kernel vm={vm}`, or correct the name"
    )]
    UnknownVm {
        /// The name.
        vm: String,
        /// The role of the module.
        role: Role,
    },
    /// A file for a kernel, in a VM that starts in firmware.
    #[error(
        "VM `{vm}` starts in firmware, which loads all from the VM's disks: remove this {role}, or give \
         the VM a `kernel` instead of its `firmware`"
    )]
    NotForFirmware {
        /// The name of the VM.
        vm: String,
        /// The role of the module.
        role: Role,
    },
    /// A string for something that takes none.
    #[error("this {0} takes no string: remove what follows `--`")]
    UnwantedString(Role),
    /// A value that is no name for a disk.
    #[error("`id={0}` is not a name for a disk: use up to {ID_LENGTH} printable characters")]
    BadDiskId(String),
    /// A file that is no disk image that can be read.
    #[error("the qcow2 image {0}")]
    BadDiskImage(Qcow2Error),
    /// A value that does not say what becomes of what was written.
    #[error(
        "`snapshot={0}`: say `keep`, for what the guest writes to be there when the VM is started again; \
         without it, the disk begins anew"
    )]
    BadSnapshot(String),
    /// More disks and network devices than there are places on the bus.
    #[error("too many disks and networks for VM `{0}`: there is room for {MAX_DEVICES}")]
    TooManyDevices(String),
    /// A network device without a network.
    #[error("plugs VM `{0}` into no network: say `net=NETWORK`")]
    NoNetwork(String),
    /// A value that is no address that a network device can have.
    #[error("`mac={0}` is no address of a single device: write it as 02:00:5e:00:53:01")]
    BadMac(String),
    /// An address that another network device has.
    #[error("`mac={0}`: another device has this address")]
    DuplicateMac(Mac),
}

/// The role of a boot module for its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The image that is started.
    Kernel,
    /// The firmware that is started instead.
    Firmware,
    /// The initial RAM disk of a Linux guest.
    Initrd,
    /// A file for a multiboot guest.
    Module,
    /// The contents of a disk.
    Disk,
    /// A network device.
    Net,
}

impl Role {
    const fn options(self) -> &'static str {
        match self {
            Self::Kernel => {
                "vm=, mem=, vcpus=, pin=, weight=, cap=, rng, hvc, suppress-policy=, suppress-lead=, watch=, hog=, on-reset=, on-crash=, test-devices (guest's options follow ` -- `)"
            }
            Self::Firmware => {
                "vm=, mem=, vcpus=, pin=, weight=, cap=, rng, suppress-policy=, suppress-lead=, watch=, hog=, on-reset=, on-crash=, test-devices"
            }
            Self::Initrd | Self::Module => "vm= only",
            Self::Disk => "vm=, ro, id=, snapshot=",
            Self::Net => "vm=, net=, mac=, rate=",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "kernel" => Ok(Self::Kernel),
            "firmware" => Ok(Self::Firmware),
            "initrd" => Ok(Self::Initrd),
            "module" => Ok(Self::Module),
            "disk" => Ok(Self::Disk),
            "net" => Ok(Self::Net),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Firmware => "firmware",
            Self::Initrd => "initrd",
            Self::Module => "module",
            Self::Disk => "disk",
            Self::Net => "net",
        })
    }
}

/// The start of a command line, for messages.
struct Excerpt<'a>(&'a str);

impl fmt::Debug for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 60;
        match self.0.char_indices().nth(LONGEST) {
            Some((end, _)) => write!(f, "{:?}...", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// The contents of the boot modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed<'a> {
    /// The VMs, in the order of their kernels.
    pub vms: Vec<VmConfig<'a>>,
    /// The errors in modules. No VM that such a module is for is among the VMs: it would run
    /// without what the operator wants it to have.
    pub errors: Vec<ConfigError>,
}

/// Groups boot modules into VMs. None is a valid number of VMs.
#[must_use]
pub(crate) fn parse<'a>(modules: &[BootModule<'a>]) -> Parsed<'a> {
    let mut vms: Vec<VmConfig<'a>> = Vec::new();
    let mut files = Vec::new();
    let mut errors = Vec::new();
    let mut left_out = Vec::new();
    for (index, module) in modules.iter().enumerate() {
        let fail = move |cause| ConfigError {
            number: index + 1,
            command_line: module.command_line.to_owned(),
            cause,
        };
        let made = Description::parse(module.command_line).and_then(|description| {
            if !matches!(description.role, Role::Kernel | Role::Firmware) {
                files.push((fail, module.data, description));
                return Ok(());
            }
            if vms.iter().any(|vm| vm.name == description.vm) {
                return Err(Cause::DuplicateVm(description.vm));
            }
            vms.push(description.into_vm(module.data)?);
            Ok(())
        });
        if let Err(cause) = made {
            errors.push(fail(cause));
            left_out.extend(named_vm(module.command_line));
        }
    }
    for (fail, data, description) in files {
        let name = description.vm;
        let Some(number) = vms.iter().position(|vm| vm.name == name) else {
            if !left_out.contains(&name) {
                errors.push(fail(Cause::UnknownVm {
                    vm: name,
                    role: description.role,
                }));
            }
            continue;
        };
        let vm = &mut vms[number];
        match description.role {
            role @ (Role::Initrd | Role::Module) if vm.firmware.is_some() => {
                let vm = name.clone();
                errors.push(fail(Cause::NotForFirmware { vm, role }));
                left_out.push(name);
            }
            Role::Module => vm.modules.push(GuestModule {
                string: description.guest_string,
                data,
            }),
            Role::Disk | Role::Net if vm.disks.len() + vm.nics.len() == MAX_DEVICES => {
                errors.push(fail(Cause::TooManyDevices(name.clone())));
                left_out.push(name);
            }
            Role::Net => {
                let Some(network) = description.network else {
                    errors.push(fail(Cause::NoNetwork(name.clone())));
                    left_out.push(name);
                    continue;
                };
                let mac = description.mac.unwrap_or(own_mac(number, vm.nics.len()));
                let rate = description.rate;
                vm.nics.push(GuestNic { network, mac, rate });
                let same = vms
                    .iter()
                    .flat_map(|vm| &vm.nics)
                    .filter(|nic| nic.mac == mac);
                if same.count() > 1 {
                    errors.push(fail(Cause::DuplicateMac(mac)));
                    left_out.push(name);
                }
            }
            Role::Disk => match DiskImage::recognize(data) {
                Ok(image) => vm.disks.push(GuestDisk {
                    image,
                    read_only: description.read_only,
                    id: description.id.unwrap_or_default(),
                    keeps: description.keeps.is_some(),
                }),
                Err(error) => {
                    errors.push(fail(Cause::BadDiskImage(error)));
                    left_out.push(name);
                }
            },
            _ if vm.initrd.replace(data).is_some() => {
                errors.push(fail(Cause::DuplicateInitrd(name.clone())));
                left_out.push(name);
            }
            _ => {}
        }
    }
    vms.retain(|vm| !left_out.contains(&vm.name));
    Parsed { vms, errors }
}

/// Returns the VM that a module is for whose command line is wrong, if it says so all the same.
fn named_vm(command_line: &str) -> Option<String> {
    let (ours, _) = split_at_dashes(command_line);
    let mut values = ours
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("vm="));
    name(values.next()?).ok()
}

/// A module's command line, in parts.
struct Description {
    role: Role,
    vm: String,
    memory: Option<u64>,
    vcpus: Option<u32>,
    pins: Option<Vec<u32>>,
    weight: Option<u32>,
    cap: Option<u32>,
    suppression: Defaults,
    rules: Vec<Rule>,
    on_reset: Option<bool>,
    on_crash: Option<bool>,
    test_devices: bool,
    entropy: bool,
    console: bool,
    read_only: bool,
    id: Option<String>,
    keeps: Option<()>,
    network: Option<String>,
    mac: Option<Mac>,
    rate: Option<Bandwidth>,
    guest_string: String,
}

impl Description {
    fn parse(command_line: &str) -> Result<Self, Cause> {
        let (ours, guest_string) = split_at_dashes(command_line);
        let mut words = ours.split_ascii_whitespace();
        let first = words.next().ok_or(Cause::NoRole)?;
        // `kernel kernel vm=a` is a file called "kernel"; options are never bare words.
        let role = match words.clone().next().map(Role::from_str) {
            Some(Ok(role)) => {
                words.next();
                role
            }
            _ => first.parse().map_err(|()| Cause::NoRole)?,
        };

        let mut vm = None;
        let (mut memory, mut vcpus, mut pins, mut weight, mut cap) = (None, None, None, None, None);
        let (mut policy, mut lead) = (None, None);
        let mut rules = Vec::new();
        let (mut on_reset, mut on_crash) = (None, None);
        let (mut test_devices, mut entropy, mut console) = (false, false, false);
        let (mut read_only, mut id, mut keeps) = (false, None, None);
        let (mut network, mut address, mut rate) = (None, None, None);
        for word in words {
            let (option, value) = word.split_once('=').unwrap_or((word, ""));
            // Firmware takes what a kernel does.
            let kind = match role {
                Role::Firmware => Role::Kernel,
                _ => role,
            };
            match (kind, option) {
                (_, "vm") => set(&mut vm, "vm", name(value)?)?,
                (Role::Kernel, "mem") => set(&mut memory, "mem", memory_size(value)?)?,
                (Role::Kernel, "vcpus") => {
                    set(
                        &mut vcpus,
                        "vcpus",
                        number("vcpus", value, 1, MAX_VCPUS as u32)?,
                    )?;
                }
                (Role::Kernel, "pin") => set(&mut pins, "pin", cpu_list(value)?)?,
                (Role::Kernel, "weight") => {
                    set(
                        &mut weight,
                        "weight",
                        number("weight", value, 1, MAX_WEIGHT)?,
                    )?;
                }
                (Role::Kernel, "cap") => {
                    set(
                        &mut cap,
                        "cap",
                        number("cap", value, 1, 100 * MAX_VCPUS as u32)?,
                    )?;
                }
                (Role::Kernel, "suppress-policy") => {
                    set(&mut policy, "suppress-policy", suppression_policy(value)?)?;
                }
                (Role::Kernel, "suppress-lead") => {
                    set(&mut lead, "suppress-lead", lead_bounds(value)?)?;
                }
                (Role::Kernel, "watch") => {
                    let rule = Rule::watch(value);
                    rules.push(rule.map_err(|NoRule| Cause::BadWatch(value.to_owned()))?);
                    if rules.iter().filter(|rule| rule.pattern().is_some()).count() > MAX_PATTERNS {
                        return Err(Cause::TooManyPatterns);
                    }
                }
                (Role::Kernel, "hog") => {
                    let rule = Rule::hog(value);
                    rules.push(rule.map_err(|NoRule| Cause::BadHog(value.to_owned()))?);
                }
                (Role::Kernel, "on-reset") => {
                    set(&mut on_reset, "on-reset", restarts("on-reset", value)?)?;
                }
                (Role::Kernel, "on-crash") => {
                    set(&mut on_crash, "on-crash", restarts("on-crash", value)?)?;
                }
                (Role::Kernel, "test-devices") if word == option => test_devices = true,
                (Role::Kernel, "rng") if word == option => entropy = true,
                (Role::Kernel, "hvc") if word == option => console = true,
                (Role::Disk, "ro") if word == option => read_only = true,
                (Role::Disk, "id") => set(&mut id, "id", disk_id(value)?)?,
                (Role::Disk, "snapshot") => set(&mut keeps, "snapshot", keeps_snapshot(value)?)?,
                (Role::Net, "net") => set(&mut network, "net", name(value)?)?,
                (Role::Net, "mac") => set(&mut address, "mac", mac(value)?)?,
                (Role::Net, "rate") => set(&mut rate, "rate", bandwidth(value)?)?,
                _ => {
                    return Err(Cause::UnknownOption {
                        option: word.to_owned(),
                        role,
                    });
                }
            }
        }
        let takes_string = matches!(role, Role::Kernel | Role::Module);
        if !takes_string && !guest_string.is_empty() {
            return Err(Cause::UnwantedString(role));
        }
        Ok(Self {
            role,
            vm: vm.ok_or(Cause::NoName)?,
            memory,
            vcpus,
            pins,
            weight,
            cap,
            suppression: Defaults {
                policy: policy.unwrap_or_default(),
                bounds: lead.unwrap_or_default(),
            },
            rules,
            on_reset,
            on_crash,
            test_devices,
            entropy,
            console,
            read_only,
            id,
            keeps,
            network,
            mac: address,
            rate,
            guest_string: guest_string.to_owned(),
        })
    }

    fn into_vm(self, image: &[u8]) -> Result<VmConfig<'_>, Cause> {
        let (kernel, firmware) = match self.role {
            Role::Firmware => (&[][..], Some(image)),
            _ => (image, None),
        };
        let vcpus = self.vcpus.unwrap_or(1);
        let mut pins = self.pins.unwrap_or_default();
        if let [cpu] = pins[..] {
            pins = alloc::vec![cpu; vcpus as usize];
        }
        if !pins.is_empty() && pins.len() != vcpus as usize {
            return Err(Cause::WrongPinCount {
                pins: pins.len(),
                vcpus,
            });
        }
        let default = RestartPolicy::default();
        Ok(VmConfig {
            name: self.vm,
            memory: self.memory.unwrap_or(DEFAULT_MEMORY),
            vcpus,
            pins,
            weight: self.weight.unwrap_or(DEFAULT_WEIGHT),
            cap: self.cap,
            suppression: self.suppression,
            rules: self.rules,
            restart: RestartPolicy {
                after_reset: self.on_reset.unwrap_or(default.after_reset),
                after_crash: self.on_crash.unwrap_or(default.after_crash),
            },
            test_devices: self.test_devices,
            kernel,
            firmware,
            initrd: None,
            modules: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            entropy: self.entropy,
            console: self.console,
            command_line: self.guest_string,
        })
    }
}

/// Returns what is before, and what after, the first word `--`.
fn split_at_dashes(command_line: &str) -> (&str, &str) {
    let is_space = |c: Option<char>| c.is_none_or(|c| c.is_ascii_whitespace());
    command_line
        .match_indices("--")
        .map(|(at, dashes)| (&command_line[..at], &command_line[at + dashes.len()..]))
        .find(|(before, after)| {
            is_space(before.chars().next_back()) && is_space(after.chars().next())
        })
        .map_or((command_line, ""), |(before, after)| {
            (before, after.trim_ascii())
        })
}

fn set<T>(slot: &mut Option<T>, option: &'static str, value: T) -> Result<(), Cause> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Cause::RepeatedOption(option)),
    }
}

fn name(value: &str) -> Result<String, Cause> {
    let starts_well = value.starts_with(|c: char| c.is_ascii_alphanumeric());
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if starts_well && value.len() <= MAX_NAME_LENGTH && value.chars().all(is_allowed) {
        Ok(value.to_owned())
    } else {
        Err(Cause::BadName(value.to_owned()))
    }
}

fn disk_id(value: &str) -> Result<String, Cause> {
    if value.len() <= ID_LENGTH && value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(value.to_owned())
    } else {
        Err(Cause::BadDiskId(value.to_owned()))
    }
}

/// Reads what becomes of what was written to a disk.
fn keeps_snapshot(value: &str) -> Result<(), Cause> {
    match value {
        "keep" => Ok(()),
        _ => Err(Cause::BadSnapshot(value.to_owned())),
    }
}

fn mac(value: &str) -> Result<Mac, Cause> {
    let mut bytes = [0; 6];
    let mut parts = value.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2);
        let digits = part.filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let parsed = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        *byte = parsed.ok_or_else(|| Cause::BadMac(value.to_owned()))?;
    }
    let mac = Mac(bytes);
    if parts.next().is_some() || mac.is_group() || mac == Mac([0; 6]) {
        return Err(Cause::BadMac(value.to_owned()));
    }
    Ok(mac)
}

fn bandwidth(value: &str) -> Result<Bandwidth, Cause> {
    let parsed = decimal(value).and_then(Bandwidth::from_megabits);
    parsed.ok_or_else(|| Cause::BadNumber {
        option: "rate",
        value: value.to_owned(),
        min: 1,
        max: Bandwidth::MOST,
    })
}

/// Returns the address of network device `device` of VM `vm`, if it is given none: one that no maker of
/// hardware has.
const fn own_mac(vm: usize, device: usize) -> Mac {
    Mac([0x02, 0, 0, (vm >> 8) as u8, vm as u8, device as u8])
}

fn memory_size(value: &str) -> Result<u64, Cause> {
    let parse = || {
        let (digits, unit) = match value.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, MEMORY_UNIT),
            None => (value.strip_suffix(['G', 'g'])?, 1 << 30),
        };
        let bytes = decimal::<u64>(digits)?.checked_mul(unit)?;
        (MIN_MEMORY..=MAX_MEMORY).contains(&bytes).then_some(bytes)
    };
    parse().ok_or_else(|| Cause::BadMemory(value.to_owned()))
}

fn number(option: &'static str, value: &str, min: u32, max: u32) -> Result<u32, Cause> {
    decimal(value)
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| Cause::BadNumber {
            option,
            value: value.to_owned(),
            min,
            max,
        })
}

fn suppression_policy(value: &str) -> Result<Policy, Cause> {
    Policy::from_name(value).ok_or_else(|| Cause::BadPolicy(value.to_owned()))
}

fn lead_bounds(value: &str) -> Result<Bounds, Cause> {
    value.parse().map_err(|_| Cause::BadLead(value.to_owned()))
}

/// Returns what becomes of a VM: whether it is started again.
fn restarts(option: &'static str, value: &str) -> Result<bool, Cause> {
    match value {
        "restart" => Ok(true),
        "stop" => Ok(false),
        _ => Err(Cause::BadAction {
            option,
            value: value.to_owned(),
        }),
    }
}

fn cpu_list(value: &str) -> Result<Vec<u32>, Cause> {
    value
        .split(',')
        .map(decimal)
        .collect::<Option<Vec<u32>>>()
        .ok_or_else(|| Cause::BadPins(value.to_owned()))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
