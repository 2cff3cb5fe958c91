//! Virtio devices on the PCI bus, as a driver meets them (virtio 1.2, 3.1 and 4.1).

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::virtio::block::Block;
use crate::virtio::chain::Chain;
use crate::virtio::device::{Progress, VirtioDevice};
use crate::virtio::disk::Disk;
use crate::virtio::disk::test_image::raw;
use crate::virtio::driver::{BUFFERS, Driver, Layout};
use crate::virtio::pci::VirtioPci;
use crate::virtio::rng::Rng;
use crate::virtio::scripted::Scripted;

const ACKNOWLEDGE: u64 = 1;
const DRIVER: u64 = 2;
const DRIVER_OK: u64 = 4;
pub(super) const FEATURES_OK: u64 = 8;
const NEEDS_RESET: u64 = 0x40;

/// The machine with the entropy device as its device 1, whose every 64 bits are the same.
pub(super) fn machine() -> Machine {
    machine_with(Rng::new(Box::new(|| 0x0807_0605_0403_0201)))
}

/// The machine with this device as its device 1.
fn machine_with(device: impl VirtioDevice + 'static) -> Machine {
    let function = VirtioPci::new(Box::new(device));
    let mut machine = Machine::with_functions(false, vec![Box::new(function)]);
    machine.ram = Rc::new(Ram::new(1 << 20));
    machine
}

/// Lets the devices do what there is to be done, up to some rounds.
pub(super) fn work_off(machine: &mut Machine) {
    for _ in 0..64 {
        if machine.chipset.next_deadline().is_none() {
            break;
        }
        machine.expire();
    }
}

/// Returns whether the device at `at`, whatever was done to it, serves a driver that resets it and behaves well, in
/// memory that is zero.
pub(super) fn serves_a_good_driver(machine: &mut Machine, at: Structures, ram: &Ram) -> bool {
    ram.put(0, &[0; 0x1_0000]);
    let mut driver = Driver::new(ram, 16, true);
    machine.initialize(at, FEATURES, &driver);
    driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    machine.notify(at, 0);
    driver.take_back().is_some()
}

/// The addresses of the structures of device 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Structures {
    pub(super) common: u64,
    pub(super) notify: u64,
    pub(super) notify_multiplier: u64,
    pub(super) isr: u64,
    pub(super) device: u64,
    pub(super) msix: u64,
}

impl Machine {
    pub(super) fn config_byte(&mut self, offset: u32) -> u8 {
        (self.pci_read(1, offset & !3) >> (8 * (offset & 3))) as u8
    }

    /// Finds the structures by the capabilities.
    pub(super) fn structures(&mut self) -> Structures {
        let mut found = [None; 6];
        let mut multiplier = 0;
        let mut offset = self.pci_read(1, 0x34) & 0xff;
        while offset != 0 {
            if self.config_byte(offset) == 0x09 {
                let kind = self.config_byte(offset + 3);
                let bar = self.config_byte(offset + 4);
                let base = self.bar(1, bar.into());
                found[usize::from(kind)] = Some(base + u64::from(self.pci_read(1, offset + 8)));
                if kind == 2 {
                    multiplier = self.pci_read(1, offset + 16).into();
                }
            }
            offset = self.config_byte(offset + 1).into();
        }
        Structures {
            common: found[1].unwrap(),
            notify: found[2].unwrap(),
            notify_multiplier: multiplier,
            isr: found[3].unwrap(),
            device: found[4].unwrap(),
            msix: self.bar(1, 1),
        }
    }

    pub(super) fn peek(&mut self, address: u64, size: u8) -> u64 {
        let value = self.mmio_read(address, size).unwrap();
        value & (u64::MAX >> (64 - 8 * u32::from(size)))
    }

    fn status(&mut self, at: Structures) -> u64 {
        self.peek(at.common + 0x14, 1)
    }

    /// Initializes the device up to DRIVER_OK, with queue 0 at the place of the driver's, as
    /// section 3.1.1 has it. Returns the features that were offered.
    pub(super) fn initialize(&mut self, at: Structures, features: u64, queue: &Driver<'_>) -> u64 {
        self.mmio_write(at.common + 0x14, 1, 0);
        assert_eq!(self.status(at), 0);
        let mut status = ACKNOWLEDGE | DRIVER;
        self.mmio_write(at.common + 0x14, 1, status);
        let mut offered = 0;
        for word in 0..2 {
            self.mmio_write(at.common, 4, word);
            offered |= self.peek(at.common + 4, 4) << (32 * word);
            self.mmio_write(at.common + 8, 4, word);
            self.mmio_write(at.common + 0xc, 4, features >> (32 * word));
        }
        status |= FEATURES_OK;
        self.mmio_write(at.common + 0x14, 1, status);
        assert_eq!(self.status(at), status, "the features are taken");
        self.mmio_write(at.common + 0x16, 2, 0);
        assert!(self.peek(at.common + 0x18, 2) >= queue.at.size.into());
        self.mmio_write(at.common + 0x18, 2, queue.at.size.into());
        self.mmio_write(at.common + 0x20, 8, queue.at.descriptors.0);
        self.mmio_write(at.common + 0x28, 4, queue.at.available.0);
        self.mmio_write(at.common + 0x2c, 4, queue.at.available.0 >> 32);
        self.mmio_write(at.common + 0x30, 8, queue.at.used.0);
        self.mmio_write(at.common + 0x1c, 2, 1);
        assert_eq!(self.peek(at.common + 0x1c, 2), 1);
        self.mmio_write(at.common + 0x14, 1, status | DRIVER_OK);
        offered
    }

    pub(super) fn notify(&mut self, at: Structures, queue: u64) {
        let offset = self.peek(at.common + 0x1e, 2) * at.notify_multiplier;
        self.mmio_write(at.notify + offset, 2, queue);
    }
}

/// VIRTIO_F_VERSION_1, with indirect descriptors and the event index.
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29;

#[test]
fn a_driver_recognizes_a_modern_entropy_device() {
    let mut machine = machine();
    assert_eq!(machine.pci_read(1, 0), 0x1044_1af4);
    assert_eq!(
        machine.pci_read(1, 8),
        0x00ff_0001,
        "revision 1: not transitional"
    );
    let at = machine.structures();
    assert_eq!(machine.peek(at.common + 0x12, 2), 1, "one queue");
    machine.mmio_write(at.common + 0x16, 2, 1);
    assert_eq!(machine.peek(at.common + 0x18, 2), 0, "and no other");
    assert_eq!(machine.peek(at.device, 4), 0, "no configuration");
}

#[test]
fn a_request_is_answered_with_a_pin_interrupt() {
    let mut machine = machine();
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 16, true);
    let at = machine.structures();
    assert_eq!(machine.initialize(at, FEATURES, &driver), FEATURES);
    let pin = gsi::PCI + 1;
    machine.ioapic_write(0x10 + 2 * pin as u8, 1 << 15 | 1 << 13 | 0x60);
    let (head, notify) = driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    assert!(notify);
    assert_eq!(driver.take_back(), None);
    machine.notify(at, 0);
    assert_eq!(machine.take_vectors(), [0x60]);
    assert_eq!(driver.take_back(), Some((head, 8)));
    assert_eq!(ram.bytes(BUFFERS, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(machine.peek(at.isr, 1), 1);
    assert_eq!(machine.peek(at.isr, 1), 0, "reading clears it");
    machine.chipset.end_of_interrupt(0x60, &mut machine.board);
    assert_eq!(machine.take_vectors(), [], "and lets go of the pin");
}

#[test]
fn a_request_is_answered_with_the_message_of_its_queue() {
    let mut machine = machine();
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 16, false);
    let at = machine.structures();
    let capability = machine.capability(1, 0x11);
    machine.pci_write(1, capability + 2, 2, 0x8000);
    for vector in 0..2 {
        machine.mmio_write(at.msix + 16 * vector, 4, 0xfee0_0000);
        machine.mmio_write(at.msix + 16 * vector + 8, 4, 0x50 + vector);
        machine.mmio_write(at.msix + 16 * vector + 12, 4, 0);
    }
    machine.initialize(at, 1 << 32, &driver);
    for (vector, taken) in [(5, 0xffff), (1, 1)] {
        machine.mmio_write(at.common + 0x1a, 2, vector);
        assert_eq!(machine.peek(at.common + 0x1a, 2), taken);
    }
    driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    machine.notify(at, 0);
    assert_eq!(machine.take_vectors(), [0x51]);
    assert_eq!(machine.peek(at.isr, 1), 0, "no pin, no status");
    assert!(driver.take_back().is_some());
}

#[test]
fn features_that_were_not_offered_are_not_taken() {
    for features in [0, 1 << 32 | 1, 1 << 32 | 1 << 34, u64::MAX] {
        let mut machine = machine();
        let at = machine.structures();
        machine.mmio_write(at.common + 0x14, 1, ACKNOWLEDGE | DRIVER);
        for word in 0..2 {
            machine.mmio_write(at.common + 8, 4, word);
            machine.mmio_write(at.common + 0xc, 4, features >> (32 * word));
        }
        machine.mmio_write(at.common + 0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(machine.status(at), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
}

#[test]
fn what_was_made_available_before_the_driver_is_ready_is_done_when_it_is() {
    let mut machine = machine();
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 16, false);
    let at = machine.structures();
    machine.initialize(at, 1 << 32, &driver);
    // Again, but with a request and a notification before DRIVER_OK.
    machine.mmio_write(at.common + 0x14, 1, 0);
    driver.add(&[(BUFFERS, 4, true)], Layout::Direct).unwrap();
    machine.mmio_write(at.common + 0x18, 2, 16);
    machine.mmio_write(at.common + 0x20, 8, driver.at.descriptors.0);
    machine.mmio_write(at.common + 0x28, 8, driver.at.available.0);
    machine.mmio_write(at.common + 0x30, 8, driver.at.used.0);
    machine.mmio_write(at.common + 0x1c, 2, 1);
    machine.notify(at, 0);
    assert_eq!(driver.take_back(), None);
    machine.mmio_write(at.common + 0x14, 1, DRIVER_OK);
    assert!(driver.take_back().is_some());
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_that_the_device_needs_a_reset() {
    let mut machine = machine();
    let ram = machine.ram.clone();
    let at = machine.structures();
    for round in 0..10 {
        let mut driver = Driver::new(&ram, 16, true);
        ram.put(driver.at.available.0, &[0; 64]);
        ram.put(driver.at.used.0, &[0; 256]);
        machine.initialize(at, FEATURES, &driver);
        let past_the_end = driver.add(&[(1 << 20, 8, true)], Layout::Direct).unwrap();
        machine.notify(at, 0);
        assert_eq!(machine.status(at) & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(machine.peek(at.isr, 1), 2, "a change of configuration");
        assert_eq!(driver.take_back(), None);
        // Nothing is done for it any more.
        driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
        machine.notify(at, 0);
        assert_eq!(driver.take_back(), None);
        assert_eq!(machine.chipset.next_deadline(), None);
        let _ = (round, past_the_end);
    }
    // Told at the first, second, fourth and eighth time.
    assert_eq!(machine.board.reports.len(), 4);
    assert_eq!(
        machine.board.reports[0],
        "virtio-rng needs a reset: gpa:0x100000 (+8 bytes) is not RAM of the guest"
    );
    // After the reset it works again.
    let mut driver = Driver::new(&ram, 16, true);
    ram.put(driver.at.available.0, &[0; 64]);
    ram.put(driver.at.used.0, &[0; 256]);
    machine.initialize(at, FEATURES, &driver);
    driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    machine.notify(at, 0);
    assert!(driver.take_back().is_some());
}

#[test]
fn much_work_is_done_in_pieces_between_which_others_come_in() {
    let mut machine = machine();
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 64, false);
    let at = machine.structures();
    machine.initialize(at, 1 << 32, &driver);
    for _ in 0..40 {
        driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    }
    machine.notify(at, 0);
    let mut done = 0;
    let mut take = || {
        while driver.take_back().is_some() {
            done += 1;
        }
        done
    };
    assert_eq!(take(), 16);
    let mut calls = 0;
    while machine.chipset.next_deadline().is_some() {
        machine.expire();
        calls += 1;
    }
    assert_eq!((take(), calls), (40, 2));
}

#[test]
fn a_device_goes_on_at_the_host_time_that_it_waits_for() {
    let now = Arc::new(AtomicU64::new(0));
    let clock = now.clone();
    let mut chain = Chain::new();
    let mut machine = machine_with(Scripted::new(1, move |_, queue, memory| {
        let from = HostTicks(500);
        if clock.load(Ordering::Relaxed) < from.0 {
            return Ok(Progress::Until(from));
        }
        while queue.take(memory, &mut chain)? {
            queue.give_back(memory, chain.head(), 0)?;
        }
        Ok(Progress::Idle)
    }));
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 16, true);
    let at = machine.structures();
    machine.initialize(at, FEATURES, &driver);
    driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    machine.notify(at, 0);
    let deadlines = |machine: &Machine| {
        let chipset = &machine.chipset;
        (chipset.next_deadline(), chipset.next_host_deadline().0)
    };
    let waits = (None, 500);
    assert_eq!(deadlines(&machine), waits);
    // Neither guest time, nor a notification, nor host time before it makes a difference.
    work_off(&mut machine);
    machine.notify(at, 0);
    machine.follow_host_time(499);
    assert_eq!(deadlines(&machine), waits);
    assert_eq!(driver.take_back(), None);
    now.store(500, Ordering::Relaxed);
    machine.follow_host_time(500);
    assert_eq!(machine.chipset.next_deadline(), Some(TimerTicks::ZERO));
    work_off(&mut machine);
    assert!(driver.take_back().is_some());
    let done = (None, u64::MAX);
    assert_eq!(deadlines(&machine), done);
    // A reset forgets that there was something to wait for.
    now.store(0, Ordering::Relaxed);
    driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    machine.notify(at, 0);
    assert_eq!(deadlines(&machine), waits);
    machine.mmio_write(at.common + 0x14, 1, 0);
    assert_eq!(deadlines(&machine), done);
}

/// A machine with a device whose driver is ready; what tells that it works, what lets a turn of it end, and the turns
/// that it has made.
fn machine_with_slow() -> (
    Machine,
    Structures,
    Receiver<()>,
    Sender<()>,
    Arc<AtomicU64>,
) {
    let (begun, begins) = channel();
    let (end, may_end) = channel();
    let turns = Arc::new(AtomicU64::new(0));
    let made = turns.clone();
    let mut machine = machine_with(Scripted::new(1, move |_, _, _| {
        begun.send(()).unwrap();
        may_end.recv().unwrap();
        made.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::Idle)
    }));
    let ram = machine.ram.clone();
    let driver = Driver::new(&ram, 16, true);
    let at = machine.structures();
    machine.initialize(at, FEATURES, &driver);
    (machine, at, begins, end, turns)
}

/// Notifies the device, as [`Machine::notify`] does, but leaves the work to another processor, which has begun when this
/// returns.
fn notify_from_another_processor(
    machine: &mut Machine,
    at: Structures,
    begins: &Receiver<()>,
) -> thread::JoinHandle<(PendingWork, bool)> {
    let (chipset, mut env) = machine.parts();
    chipset.mmio_write(at.notify, 2, 0, &mut env);
    let work = chipset.take_work().expect("work");
    let other = thread::spawn(move || {
        let has_news = work.run(&Ram::new(1 << 20));
        (work, has_news)
    });
    begins.recv().unwrap();
    other
}

#[test]
fn other_processors_use_the_chipset_while_a_device_works() {
    let (mut machine, at, begins, end, turns) = machine_with_slow();
    let other = notify_from_another_processor(&mut machine, at, &begins);
    assert_eq!(machine.status(at) & NEEDS_RESET, 0);
    machine.time += MILLISECOND;
    assert_ne!(machine.read(port::PM_TIMER, 4), 0);
    // Another request: it is the other processor's, too, or somebody's afterwards.
    machine.notify(at, 0);
    assert_eq!(machine.chipset.next_deadline(), None);
    assert_eq!(turns.load(Ordering::SeqCst), 0);
    end.send(()).unwrap();
    let (work, has_news) = other.join().unwrap();
    assert!(has_news);
    let (chipset, mut env) = machine.parts();
    chipset.finish_work(&work, &mut env);
    assert_eq!(turns.load(Ordering::SeqCst), 1);
    assert_eq!(machine.chipset.next_deadline(), Some(TimerTicks::ZERO));
    end.send(()).unwrap();
    machine.expire();
    assert_eq!(turns.load(Ordering::SeqCst), 2);
    assert_eq!(machine.chipset.next_deadline(), None);
}

#[test]
fn nothing_is_done_for_a_driver_that_has_reset_the_device_while_it_worked() {
    let (mut machine, at, begins, end, turns) = machine_with_slow();
    let other = notify_from_another_processor(&mut machine, at, &begins);
    machine.notify(at, 0);
    let later = thread::spawn(move || {
        thread::sleep(core::time::Duration::from_millis(20));
        end.send(()).unwrap();
        end
    });
    machine.mmio_write(at.common + 0x14, 1, 0);
    assert_eq!(
        turns.load(Ordering::SeqCst),
        1,
        "it has waited for the turn"
    );
    let (work, _) = other.join().unwrap();
    let (chipset, mut env) = machine.parts();
    chipset.finish_work(&work, &mut env);
    assert_eq!(machine.chipset.next_deadline(), None);
    machine.run_work();
    assert_eq!(machine.status(at), 0);
    assert_eq!(machine.peek(at.isr, 1), 0);
    let _end = later.join().unwrap();
    assert_eq!(turns.load(Ordering::SeqCst), 1);
}

#[test]
fn a_device_that_is_no_bus_master_does_nothing() {
    let mut machine = machine();
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 16, true);
    let at = machine.structures();
    machine.initialize(at, FEATURES, &driver);
    machine.pci_write(1, 0x04, 2, 0x0002);
    driver.add(&[(BUFFERS, 8, true)], Layout::Direct).unwrap();
    machine.notify(at, 0);
    assert_eq!(driver.take_back(), None);
    assert_eq!(machine.chipset.next_deadline(), None);
    machine.pci_write(1, 0x04, 2, 0x0006);
    machine.notify(at, 0);
    assert!(driver.take_back().is_some());
}

#[test]
fn the_structures_are_reached_through_the_configuration_space_too() {
    let mut machine = machine();
    let at = machine.structures();
    let mut access = 0;
    let mut offset = machine.pci_read(1, 0x34) & 0xff;
    while offset != 0 {
        if machine.config_byte(offset) == 0x09 && machine.config_byte(offset + 3) == 5 {
            access = offset;
        }
        offset = machine.config_byte(offset + 1).into();
    }
    let describe = |machine: &mut Machine, offset: u32, length: u32| {
        machine.pci_write(1, access + 4, 1, 0);
        machine.pci_write(1, access + 8, 4, offset);
        machine.pci_write(1, access + 12, 4, length);
    };
    describe(&mut machine, 0x12, 2);
    assert_eq!(machine.pci_read(1, access + 16) as u16, 1, "one queue");
    describe(&mut machine, 0x14, 1);
    machine.pci_write(1, access + 16, 1, 3);
    assert_eq!(machine.status(at), 3);
    // What may not be described does nothing.
    for (offset, length) in [(0x14, 3), (0x15, 2), (0x4000, 4), (u32::MAX, 1)] {
        describe(&mut machine, offset, length);
        machine.pci_write(1, access + 16, 4, 0);
        machine.pci_read(1, access + 16);
        assert_eq!(machine.status(at), 3);
    }
}

#[test]
fn errors_that_are_none_of_the_drivers_making_are_told_to_the_operator() {
    // A write to a machine without memory for a copy.
    let disk = Disk::new(raw(vec![0; 0x4000]), false, || false).unwrap();
    let disk = Arc::new(spin::Mutex::new(disk));
    let mut machine = machine_with(Block::new(disk, "root".into()));
    let ram = machine.ram.clone();
    let mut driver = Driver::new(&ram, 16, true);
    let at = machine.structures();
    machine.initialize(at, FEATURES, &driver);
    ram.put(BUFFERS, &[1, 0, 0, 0]);
    let [header, data, status] = [
        (BUFFERS, 16, false),
        (BUFFERS + 0x1000, 512, false),
        (BUFFERS + 16, 1, true),
    ];
    for _ in 0..5 {
        ram.put(BUFFERS + 16, &[0xff]);
        driver.add(&[header, data, status], Layout::Direct).unwrap();
        machine.notify(at, 0);
        assert!(driver.take_back().is_some());
        assert_eq!(ram.bytes(BUFFERS + 16, 1), [1], "an I/O error");
    }
    // At the first, second and fourth time.
    let told = "virtio-blk root: I/O errors: the machine has no memory left for what is written";
    assert_eq!(machine.board.reports, [told; 3]);
    // What is the driver's own fault is between the two.
    ram.put(BUFFERS + 8, &[0xff; 8]);
    driver.add(&[header, data, status], Layout::Direct).unwrap();
    machine.notify(at, 0);
    assert_eq!(ram.bytes(BUFFERS + 16, 1), [1]);
    assert_eq!(machine.board.reports.len(), 3);
}

proptest! {
    /// Whatever is written to the structures and to the rings, nothing panics, the work ends, and
    /// after a reset a good driver is served.
    #[test]
    fn a_hostile_driver_breaks_nothing(
        writes in proptest::collection::vec(
            (any::<u64>(), prop_oneof![Just(1u8), Just(2), Just(4), Just(8)], any::<u64>()),
            0..200,
        ),
        garbage in proptest::collection::vec(any::<u8>(), 512),
    ) {
        let mut machine = machine();
        let ram = machine.ram.clone();
        for start in (0..0x1_0000).step_by(512) {
            ram.put(start, &garbage);
        }
        let at = machine.structures();
        for (place, size, value) in writes {
            let address = match place % 4 {
                0 | 1 => at.common + (place >> 2) % 0x40,
                2 => at.notify + (place >> 2) % 8,
                _ => at.common + (place >> 2) % 0x4000,
            };
            // Mostly small values, as addresses within RAM.
            let value = if place & 1 << 40 == 0 { value } else { value & 0xffff };
            machine.mmio_write(address, size, value);
            work_off(&mut machine);
        }
        prop_assert!(serves_a_good_driver(&mut machine, at, &ram));
    }
}
