//! Drives virtio devices as no driver may: what it tells them is by chance, in their registers, their rings and
//! their buffers, and changes while they work.
//!
//! [`kernels::random_run`] has the command line and the lines that it prints; an action is a round, from a reset of
//! a device to the next. Each [`GOOD_EVERY`] rounds the entropy device is driven as it should be, and is to serve:
//! `random: FAILED` if it does not.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod rings;

use arch::apic::DEFAULT_ADDRESS;
use kernels::dice::Dice;
use kernels::interrupts::{Frame, catch, let_in, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::pci::{BAR_0, COMMAND, DECODE_AND_MASTER};
use kernels::random_run::RandomRun;
use kernels::virtio::device::{
    Device, ENTROPY, NETWORK, NO_VECTOR, OF_RINGS, VERSION_1, common, read, status, write,
};
use kernels::{Report, println};

/// So many rounds are between two in which a device is driven well.
const GOOD_EVERY: u64 = 64;
/// The most devices that are driven.
const MOST_DEVICES: usize = 8;
/// How often a device that has been told of a buffer is looked at before it has failed.
const PATIENCE: u32 = 100_000;

fn handle(_: &mut Frame) {
    Lapic::current().end();
}

/// Goes from a reset to the next one.
fn round(dice: &mut Dice, device: Device) {
    if !dice.once_in(16) {
        device.set_status(0);
    }
    set_up(dice, device);
    let queues = if device.kind == NETWORK { 2 } else { 1 };
    let mut sizes = [8; 4];
    for index in 0..queues {
        if !dice.once_in(12) {
            let at = rings::placement(dice, index);
            sizes[usize::from(index)] = at.size;
            device.enable_queue(index, at);
            device.set_queue_vector(index, dice.of(&[0, 1, NO_VECTOR, 77]));
        }
    }
    if !dice.once_in(12) {
        device.set_status(status::ALL);
    }
    for _ in 0..dice.below(6) {
        let index = dice.below(queues.into()) as u16;
        for _ in 0..dice.below(4) {
            rings::add(dice, device.kind, index, sizes[usize::from(index)]);
        }
        match dice.below(8) {
            0..5 => device.notify(index),
            5 => device.notify(dice.any() as u16 & 0xff),
            6 => meddle(dice, device),
            _ => let_in(),
        }
    }
    let needs_reset = device.status() & status::NEEDS_RESET != 0;
    if needs_reset && dice.once_in(2) {
        // It is to stay so whatever else is said.
        device.notify(0);
        device.set_status(status::ALL);
    }
}

/// Agrees with a device on features, or does not.
fn set_up(dice: &mut Dice, device: Device) {
    let steps = [
        status::ACKNOWLEDGE,
        status::ACKNOWLEDGE | status::DRIVER,
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
    ];
    device.set_status(steps[0]);
    device.set_status(steps[1]);
    device.write_common(common::DEVICE_FEATURE_SELECT, dice.below(4) as u32);
    let mut features = match dice.below(4) {
        0 => dice.any(),
        1 => 0,
        _ => dice.any() & OF_RINGS,
    };
    if !dice.once_in(16) {
        features |= VERSION_1;
    }
    device.accept(features);
    if !dice.once_in(16) {
        device.set_status(steps[2]);
    }
    if dice.once_in(32) {
        device.set_status(dice.any() as u8);
    }
}

/// Accesses something of the device that has nothing to do with a request.
fn meddle(dice: &mut Dice, device: Device) {
    let size = dice.of(&[1, 2, 4]);
    let value = dice.value();
    match dice.below(8) {
        0 => {
            let _ = read(device.isr, size);
        }
        1 => write(device.specific + dice.below(0x100), size, value),
        2 => {
            let _ = read(device.specific + dice.below(0x1000), size);
        }
        3 => write(device.common + dice.below(common::LENGTH), size, value),
        4 => {
            let _ = read(device.common + dice.below(0x1000), size);
        }
        5 => {
            // Messages that are interrupts, or go nowhere: none that resets this CPU.
            let entry = device.msix + 16 * dice.below(4);
            write(
                entry,
                8,
                dice.of(&[DEFAULT_ADDRESS, DEFAULT_ADDRESS, value]),
            );
            write(entry + 8, 4, value & 0xff | 0x20);
            write(entry + 12, 4, dice.below(2));
            device.use_messages(dice.below(2) != 0);
        }
        6 => {
            device.function.write(COMMAND, dice.below(8) as u32);
            device.notify(0);
            device.function.write(COMMAND, DECODE_AND_MASTER);
        }
        _ => {
            // Elsewhere for a moment.
            let old = device.function.read(BAR_0);
            device.function.write(BAR_0, value as u32);
            device.function.write(BAR_0, old);
        }
    }
}

/// Drives the entropy device as it should be. Returns whether it serves.
fn is_served(device: Device) -> bool {
    if !device.begin(VERSION_1) {
        return false;
    }
    device.enable_queue(0, rings::good_queue());
    device.go();
    device.notify(0);
    (0..PATIENCE).any(|_| rings::is_served())
}

fn run(report: &mut Report) {
    let mut devices = [None; MOST_DEVICES];
    let mut count = 0;
    for (slot, device) in devices.iter_mut().zip(Device::all()) {
        println!("a device of kind {}", device.kind);
        *slot = Some(device);
        count += 1;
    }
    let all = || devices.iter().flatten().copied();
    let Some(entropy) = all().find(|device| device.kind == ENTROPY) else {
        report.holds("there is an entropy device", false);
        return;
    };
    for vector in 32..=255 {
        set_handler(vector, handle);
    }
    let _ = Lapic::enable(Mode::XApic);
    let (mut run, mut dice) = RandomRun::begin();
    loop {
        let chosen = dice.below(count) as usize;
        if let Some(device) = all().nth(chosen)
            && catch(|| round(&mut dice, device)).is_err()
        {
            run.note_fault();
        }
        if run.actions().is_multiple_of(GOOD_EVERY) && !is_served(entropy) {
            println!(
                "random: FAILED: the entropy device serves no good driver after {} rounds",
                run.actions()
            );
        }
        run.note_action();
    }
}

kernels::kernel!(run);
