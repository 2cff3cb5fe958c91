//! A machine with the VMs `web` and `db`, and a session at a serial line that is a buffer.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::ControlFlow;

use devices::lapic::LocalApic;
use devices::time::HostTicks;
use spin::Mutex;
use vmx::addr::GuestPhysAddr;

use crate::guest_memory::GuestMemory;
use crate::ids::VmId;
use crate::machine::host_time::host_now;
use crate::manager::VmManager;
use crate::manager::factory::{CreateError, Load, NewVm, VmFactory};
use crate::operator::host_facts::{Fact, HostFacts};
use crate::operator::session::{PowerOff, Session};
use crate::operator::terminal::{SerialLine, Terminal};
use crate::operator::{Door, GuestOutput, HostClock};
use crate::scheduler::idle_vcpu::IdleVcpu;
use crate::scheduler::{Runnable, Scheduler, Settings};
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::usage::Usage;
use crate::vm::ram::GuestRam;
use crate::vm::{Vm, VmDisk, test_vm};
use crate::vm_config::{RestartPolicy, VmConfig};
use crate::watch::rule::Rule;

pub(super) const WEB: VmId = VmId(0);
pub(super) const DB: VmId = VmId(1);

/// Ticks in a millisecond.
pub(super) const MS: u64 = test_vm::TSC.get() / 1000;

/// The time at which the console opens.
const OPENED: u64 = 1000 * 1000 * MS;

std::thread_local! {
    static NOW: Cell<u64> = const { Cell::new(OPENED) };
    /// The time that passes with each look at the clock.
    static TICK: Cell<u64> = const { Cell::new(0) };
}

fn read_clock() -> HostTicks {
    HostTicks(NOW.replace(NOW.get() + TICK.get()))
}

/// The serial line.
#[derive(Default)]
pub(super) struct Line {
    typed: Mutex<VecDeque<u8>>,
    screen: Mutex<Vec<u8>>,
    /// The number of bytes that do not get any further.
    pub stuck: Mutex<u64>,
}

impl SerialLine for Line {
    fn write(&self, bytes: &[u8]) {
        self.screen.lock().extend_from_slice(bytes);
    }

    fn read(&self) -> Option<u8> {
        self.typed.lock().pop_front()
    }

    fn capacity(&self) -> u64 {
        1 << 16
    }

    fn written(&self) -> u64 {
        1 << 32
    }

    fn sent(&self) -> u64 {
        self.written() - *self.stuck.lock()
    }

    fn poll(&self) {}
}

/// The line for detectors: takes what it has room for, like a serial line.
#[derive(Default)]
struct DetectorLine {
    said: Mutex<VecDeque<u8>>,
    heard: Mutex<Vec<u8>>,
    written: Mutex<u64>,
    sent: Mutex<u64>,
    stuck: Mutex<bool>,
}

/// The bytes that may wait in the line, and that it takes at a time.
const DETECTOR_ROOM: u64 = 4096;

impl SerialLine for DetectorLine {
    fn write(&self, bytes: &[u8]) {
        self.heard.lock().extend_from_slice(bytes);
        *self.written.lock() += bytes.len() as u64;
        let waiting = *self.written.lock() - *self.sent.lock();
        assert!(waiting <= DETECTOR_ROOM, "the line would be waited for");
    }

    fn read(&self) -> Option<u8> {
        self.said.lock().pop_front()
    }

    fn capacity(&self) -> u64 {
        DETECTOR_ROOM
    }

    fn written(&self) -> u64 {
        *self.written.lock()
    }

    fn sent(&self) -> u64 {
        *self.sent.lock()
    }

    fn poll(&self) {
        if !*self.stuck.lock() {
            *self.sent.lock() = *self.written.lock();
        }
    }
}

struct IdleFactory {
    scheduler: Arc<Scheduler>,
    terminal: Arc<Terminal>,
}

impl VmFactory for IdleFactory {
    fn ticks_per_second(&self) -> u64 {
        test_vm::TSC.get()
    }

    /// Returns less than is asked for: what the tests put into it.
    fn allocate_ram(&self, _: u64) -> Result<GuestRam, CreateError> {
        Ok(test_vm::ram(RAM))
    }

    fn make_vm(
        &self,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<NewVm, CreateError> {
        let waker = self.scheduler.clone();
        let output = Box::new(GuestOutput::new(self.terminal.clone(), id, 2));
        Ok(NewVm::for_test(id, config, ram, disks, waker, output))
    }

    fn make_vcpu(
        &self,
        _: &Arc<Vm>,
        _: u32,
        _: LocalApic,
        _: Load,
    ) -> Result<Box<dyn Runnable>, CreateError> {
        Ok(Box::new(IdleVcpu))
    }
}

/// The memory of a VM: up to the end of the text screen.
const RAM: u64 = 0xc_0000;

fn config(name: &str, vcpus: u32) -> VmConfig<'static> {
    VmConfig {
        name: name.into(),
        memory: 512 << 20,
        vcpus,
        pins: Vec::new(),
        weight: 100,
        cap: None,
        suppression: crate::suppression::order::Defaults::default(),
        rules: Vec::new(),
        restart: RestartPolicy::default(),
        test_devices: false,
        disks: Vec::new(),
        nics: Vec::new(),
        entropy: false,
        console: false,
        kernel: &[],
        firmware: None,
        initrd: None,
        modules: Vec::new(),
        command_line: String::new(),
    }
}

/// What is known of the machine.
fn facts() -> HostFacts {
    HostFacts {
        found: alloc::vec![
            Fact::new("cpus", "2 of 2"),
            Fact::new("meltdown", "not affected"),
        ],
        now: || alloc::vec![Fact::new("nmis", "7")],
        log: || "tarpit: one\ntarpit: two\n".into(),
        log_since: |position| {
            let log = "tarpit: one\ntarpit: warning: two\n";
            let new = log.get(position as usize..).unwrap_or_default();
            (new.into(), log.len() as u64)
        },
    }
}

/// Checks that a line from the door is of a kind that the documents of the protocol have.
fn assert_is_documented(line: &serde_json::Value) {
    const SCHEMA: &str = include_str!("../../../../docs/protocol.schema.json");
    const TEXT: &str = include_str!("../../../../docs/protocol.md");
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let fields = line.as_object().unwrap();
    if let Some(event) = fields.get("event") {
        let known = schema["$defs"]["event"]["properties"]["event"]["enum"].as_array();
        assert!(known.unwrap().contains(event), "{line}");
        let name = alloc::format!("| `{}` |", event.as_str().unwrap());
        assert!(TEXT.contains(&name), "{line}");
        return;
    }
    let kind = if fields.contains_key("hello") {
        "hello"
    } else {
        "answer"
    };
    let known = schema["$defs"][kind]["properties"].as_object().unwrap();
    assert!(
        fields.keys().all(|field| known.contains_key(field)),
        "{line}"
    );
}

/// The end of the machine: its VMs and their scheduler, which have each other, are let go of.
struct PowerCut(Arc<Scheduler>);

impl Drop for PowerCut {
    fn drop(&mut self) {
        for vm in [WEB, DB] {
            self.0.stop_vm(vm);
            self.0.remove_vm(vm);
        }
    }
}

/// The machine, and the operator's session.
pub(super) struct Host {
    pub line: Arc<Line>,
    pub vms: VmManager,
    pub terminal: Arc<Terminal>,
    session: Session,
    detector: Arc<DetectorLine>,
    _end: PowerCut,
}

impl Host {
    /// `web` with one VCPU and `db` with two, both running, on two CPUs. The prompt is on the
    /// screen.
    pub(super) fn new() -> Self {
        let host = Self::with_vms_defined();
        assert_eq!(host.vms.start_all(), []);
        host
    }

    /// As [`Host::new`], with a door for programs.
    pub(super) fn with_door() -> Self {
        let mut host = Self::new();
        let door = Door::open(host.detector.clone());
        host.session = host.session.with_door(door);
        host
    }

    /// As [`Host::with_door`], with rules for `web` from the beginning.
    pub(super) fn with_rules(rules: &[Rule]) -> Self {
        let mut host = Self::with_door();
        let rules = rules.iter().map(|rule| (WEB, rule.clone()));
        host.session = host.session.with_rules(rules);
        host
    }

    /// As [`Host::new`], before the VMs are started.
    pub(super) fn with_vms_defined() -> Self {
        NOW.set(OPENED);
        TICK.set(0);
        let line = Arc::new(Line::default());
        let clock = HostClock::with(test_vm::TSC, read_clock);
        let configs = alloc::vec![config("web", 1), config("db", 2)];
        let terminal = Arc::new(Terminal::new(line.clone(), clock, configs.len()));
        let settings = Settings::for_tsc(test_vm::TSC);
        let scheduler = Arc::new(Scheduler::new(settings, 2, |_| {}));
        let factory = IdleFactory {
            scheduler: scheduler.clone(),
            terminal: terminal.clone(),
        };
        Self {
            line,
            _end: PowerCut(scheduler.clone()),
            vms: VmManager::new(Box::new(factory), scheduler, configs),
            session: Session::open(terminal.clone(), facts()),
            terminal,
            detector: Arc::default(),
        }
    }

    /// A program writes to the door.
    pub(super) fn client_says(&self, text: &str) {
        self.detector.said.lock().extend(text.bytes());
    }

    /// What has come out of the door since the last look: whole lines.
    pub(super) fn client_hears(&self) -> Vec<serde_json::Value> {
        let mut heard = self.detector.heard.lock();
        let end = heard.iter().rposition(|byte| *byte == b'\n');
        let lines: Vec<u8> = heard.drain(..end.map_or(0, |at| at + 1)).collect();
        let lines = String::from_utf8(lines).unwrap();
        let value = |line| {
            let value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            assert_is_documented(&value);
            value
        };
        lines.lines().map(value).collect()
    }

    /// How much has come out of it since the last look.
    pub(super) fn client_heard_bytes(&self) -> usize {
        self.detector.heard.lock().len()
    }

    /// From now on nobody reads what comes out of the door, or somebody does again.
    pub(super) fn detector_is_stuck(&self, stuck: bool) {
        *self.detector.stuck.lock() = stuck;
    }

    /// What the VCPUs of a VM share.
    pub(super) fn vm(&self, id: VmId) -> Arc<Vm> {
        self.vms.vm(id).unwrap()
    }

    /// Time passes.
    pub(super) fn wait(&self, milliseconds: u64) {
        NOW.set(NOW.get() + milliseconds * MS);
    }

    /// From now on a millisecond passes with each look at the clock.
    pub(super) fn let_time_pass(&self) {
        TICK.set(MS);
    }

    /// From now on so many ticks pass with each look at the clock.
    pub(super) fn let_ticks_pass(&self, ticks: u64) {
        TICK.set(ticks);
    }

    /// The host's time.
    pub(super) fn now(&self) -> HostTicks {
        HostTicks(NOW.get())
    }

    /// The session is looked after once.
    pub(super) fn poll(&mut self) -> ControlFlow<PowerOff> {
        self.session.poll(&self.vms)
    }

    /// Keys are pressed, and looked at.
    pub(super) fn types(&mut self, keys: &str) {
        self.keys(keys);
        assert_eq!(self.poll(), ControlFlow::Continue(()));
    }

    /// Keys are pressed.
    pub(super) fn keys(&self, keys: &str) {
        self.line.typed.lock().extend(keys.bytes());
    }

    /// What has been shown since the last look, with plain line ends.
    pub(super) fn screen(&self) -> String {
        let screen = core::mem::take(&mut *self.line.screen.lock());
        String::from_utf8(screen).unwrap().replace("\r\n", "\n")
    }

    #[track_caller]
    pub(super) fn shows(&self, expected: &str) {
        assert_eq!(self.screen(), expected);
    }

    /// The answer to a command, without its echo and the next prompt. The command may go on for
    /// some turns.
    #[track_caller]
    pub(super) fn answer(&mut self, line: &str) -> String {
        self.screen();
        self.types(line);
        self.types("\r");
        for _ in 0..10_000 {
            let screen = self.line.screen.lock().clone();
            if screen.ends_with(b"tarpit> ") {
                break;
            }
            self.types("");
        }
        let screen = self.screen();
        let answer = screen.strip_prefix(&alloc::format!("{line}\n"));
        let answer = answer.and_then(|answer| answer.strip_suffix("tarpit> "));
        answer
            .unwrap_or_else(|| panic!("no answer to {line}: {screen}"))
            .into()
    }

    /// The machine's boot CPU clears VMs away and makes them, in as many turns as that takes: a turn is a time
    /// of the host's, and a busy host does less in it. VMs that are still running stay.
    pub(super) fn work(&self) {
        const MOST_TURNS: usize = 1000;
        for _ in 0..MOST_TURNS {
            self.vms.work();
            if !self.vms.has_work() {
                break;
            }
        }
    }

    /// A guest writes to its serial port.
    pub(super) fn guest_writes(&self, id: VmId, text: &str) {
        let vm = self.vm(id);
        text.bytes()
            .for_each(|byte| vm.output.write(&vm.name, byte));
    }

    /// What a guest reads from its serial port.
    pub(super) fn received(&self, id: VmId) -> Vec<u8> {
        const DATA: u16 = 0x3f8;
        const LINE_STATUS: u16 = 0x3fd;
        let vm = self.vm(id);
        let mut bytes = Vec::new();
        loop {
            self.vms.pass_input_on();
            let read =
                |port| vm.with_chipset(host_now(), |chipset, env| chipset.port_read(port, 1, env));
            if read(LINE_STATUS) & 1 == 0 {
                return bytes;
            }
            bytes.push(read(DATA) as u8);
        }
    }

    /// A process of a guest, with a root at each of `roots`, whose code is in the page at `page`:
    /// tables are put behind that.
    pub(super) fn process(&self, id: VmId, roots: &[u64], page: u64) {
        let vm = self.vm(id);
        let write = |at, entry: u64| {
            vm.ram
                .write(GuestPhysAddr(at), &(entry | 0x67).to_le_bytes())
                .unwrap();
        };
        let tables = [page + 0x1000, page + 0x2000, page + 0x3000];
        for root in roots {
            write(*root, tables[0]);
        }
        write(tables[0], tables[1]);
        write(tables[1], tables[2]);
        // At the virtual address 0x1000.
        write(tables[2] + 8, page);
    }

    /// What has been seen to run in a VM with one VCPU: for each root how long, in the time of a
    /// window before now, and ever.
    pub(super) fn has_run(&self, id: VmId, window: u64, roots: &[(u64, u64, u64)]) {
        let now = self.now().0;
        let vm = self.vm(id);
        let mut usage = vm.usages[0].lock();
        *usage = Usage::new(HostTicks(now - 10 * window), window);
        for &(root, lately, ever) in roots {
            let root = Root::new(root, RootFormat::Long);
            usage.record(root, ever - lately, HostTicks(now - 9 * window));
        }
        for &(root, lately, _) in roots {
            let root = Root::new(root, RootFormat::Long);
            usage.record(root, lately, HostTicks(now - 2 * MS));
        }
    }

    /// Has a VM's VCPU run each of `roots` for a moment just now.
    pub(super) fn runs_on(&self, id: VmId, roots: impl Iterator<Item = u64>) {
        let now = self.now();
        let vm = self.vm(id);
        let mut usage = vm.usages[0].lock();
        for root in roots {
            usage.record(Root::new(root, RootFormat::Long), 1, now);
        }
    }
}
