//! The console device (5.3): one port, without the features of several.
//!
//! What the driver writes goes to the other end of the line, and waits in the driver's own queue while
//! there is no room. What is typed waits in a [`ConsoleInput`], which whoever types fills.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use super::chain::Chain;
use super::device::{Budget, DeviceError, Progress, VirtioDevice};
use super::queue::Queue;
use crate::guest_memory::GuestMemory;
use crate::time::HostTicks;

/// The queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The bytes that are passed on at a time.
const PIECE: usize = 256;
/// The bytes of input that wait for the driver.
const INPUT: usize = 256;
/// The work of putting a byte on the line, as a number of bytes to copy.
const WORK: u64 = 16;

/// The other end of the line, to which the guest's output goes.
pub trait ConsoleLine: Send {
    /// Takes what the guest has written.
    fn write(&mut self, bytes: &[u8]);

    /// Returns when there may be room for more, if there is none now.
    fn wait(&mut self) -> Option<HostTicks>;
}

/// The input for a console device, and whether the guest uses the device.
#[derive(Debug)]
pub struct ConsoleInput {
    bytes: Mutex<VecDeque<u8>>,
    in_use: AtomicBool,
}

impl Default for ConsoleInput {
    fn default() -> Self {
        Self {
            bytes: Mutex::new(VecDeque::with_capacity(INPUT)),
            in_use: AtomicBool::new(false),
        }
    }
}

impl ConsoleInput {
    /// Gives the guest a byte. False if there is no room for it now.
    pub fn push(&self, byte: u8) -> bool {
        let mut bytes = self.bytes.lock();
        let has_room = bytes.len() < INPUT;
        if has_room {
            bytes.push_back(byte);
        }
        has_room
    }

    /// Tells whether there is room for a byte.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.lock().len() < INPUT
    }

    /// Tells whether it was here that the guest has written last, of all its consoles.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Notes that the guest has written here, or to another console.
    pub fn set_in_use(&self, is_here: bool) {
        self.in_use.store(is_here, Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.bytes.lock().is_empty()
    }

    fn clear(&self) {
        self.bytes.lock().clear();
    }

    /// Takes as many bytes as there are and `to` has room for. Returns how many.
    fn take(&self, to: &mut [u8]) -> usize {
        let mut bytes = self.bytes.lock();
        let count = bytes.len().min(to.len());
        for (to, byte) in to.iter_mut().zip(bytes.drain(..count)) {
            *to = byte;
        }
        count
    }
}

/// The console device.
pub struct Console {
    line: Box<dyn ConsoleLine>,
    input: Arc<ConsoleInput>,
    chain: Chain,
    /// The chain that is being written to the line, and how many of its bytes have been.
    output: Chain,
    written: Option<u32>,
    /// Whether input waits for buffers of the driver's.
    starved: bool,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("written", &self.written)
            .field("starved", &self.starved)
            .finish_non_exhaustive()
    }
}

impl Console {
    /// Makes a device at this end of `line`, which is given what is put into `input`.
    #[must_use]
    pub fn new(line: Box<dyn ConsoleLine>, input: Arc<ConsoleInput>) -> Self {
        Self {
            line,
            input,
            chain: Chain::new(),
            output: Chain::new(),
            written: None,
            starved: false,
        }
    }

    fn receive(
        &mut self,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        self.starved = false;
        let mut budget = Budget::new();
        while !self.input.is_empty() {
            if budget.is_spent() {
                return Ok(Progress::Busy);
            }
            if !queue.take(memory, &mut self.chain)? {
                self.starved = true;
                break;
            }
            budget.spend_on_request(&self.chain);
            let buffers = self.chain.writable();
            let mut bytes = [0; PIECE];
            let room = PIECE.min(buffers.len() as usize);
            let count = self.input.take(&mut bytes[..room]);
            buffers.write(memory, 0, &bytes[..count])?;
            queue.give_back(memory, self.chain.head(), count as u32)?;
        }
        Ok(Progress::Idle)
    }

    fn transmit(
        &mut self,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        let mut budget = Budget::new();
        while !budget.is_spent() {
            if self.written.is_none() {
                if !queue.take(memory, &mut self.output)? {
                    return Ok(Progress::Idle);
                }
                budget.spend_on_request(&self.output);
                self.written = Some(0);
            }
            let written = self.written.unwrap_or_default();
            let buffers = self.output.readable();
            let rest = buffers.len() - written;
            if rest == 0 {
                self.written = None;
                queue.give_back(memory, self.output.head(), 0)?;
                continue;
            }
            if let Some(at) = self.line.wait() {
                return Ok(Progress::Until(at));
            }
            let mut bytes = [0; PIECE];
            let bytes = &mut bytes[..PIECE.min(rest as usize)];
            buffers.read(memory, written, bytes)?;
            self.input.set_in_use(true);
            self.line.write(bytes);
            budget.spend(bytes.len() as u64 * WORK);
            self.written = Some(written + bytes.len() as u32);
        }
        Ok(Progress::Busy)
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        "virtio-console"
    }

    fn device_type(&self) -> u16 {
        3
    }

    fn pci_class(&self) -> (u8, u8, u8) {
        // A communication controller, of no other kind.
        (0x07, 0x80, 0)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        2
    }

    fn set_features(&mut self, _: u64) {
        // What was typed for another driver is not for this one.
        self.input.clear();
    }

    fn has_input(&self, index: usize) -> bool {
        index == RECEIVE && !self.starved && !self.input.is_empty()
    }

    fn work(
        &mut self,
        index: usize,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        match index {
            TRANSMIT => self.transmit(queue, memory),
            _ => self.receive(queue, memory),
        }
    }

    fn reset(&mut self) {
        self.written = None;
        self.starved = false;
        self.input.clear();
        self.input.set_in_use(false);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::virtio::driver::{BUFFERS, Driver, Layout, Ram};
    use crate::virtio::hostile::{self, Random};
    use crate::virtio::queue::QueueFeatures;

    /// What was written, and how many bytes there is room for.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<(Vec<u8>, usize)>>);

    impl ConsoleLine for Written {
        fn write(&mut self, bytes: &[u8]) {
            let mut state = self.0.lock();
            state.0.extend(bytes);
            state.1 = state.1.saturating_sub(bytes.len());
        }

        fn wait(&mut self) -> Option<HostTicks> {
            (self.0.lock().1 == 0).then_some(HostTicks(77))
        }
    }

    fn device(room: usize) -> (Console, Written, Arc<ConsoleInput>) {
        let written = Written(Arc::new(Mutex::new((vec![], room))));
        let input = Arc::new(ConsoleInput::default());
        let console = Console::new(Box::new(written.clone()), input.clone());
        (console, written, input)
    }

    fn queue(driver: &Driver<'_>) -> Queue {
        let features = QueueFeatures {
            indirect: true,
            event_index: true,
        };
        Queue::new(driver.at, features).unwrap()
    }

    #[test]
    fn what_is_written_comes_out_and_waits_for_room() {
        let (mut console, line, input) = device(300);
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        let text: Vec<u8> = (0..1000).map(|n| n as u8).collect();
        ram.put(BUFFERS, &text);
        let halves = [(BUFFERS, 500, false), (BUFFERS + 500, 500, false)];
        let (head, _) = driver.add(&halves, Layout::Indirect).unwrap();
        driver.add(&[(BUFFERS, 0, false)], Layout::Direct).unwrap();
        let waits = Ok(Progress::Until(HostTicks(77)));
        assert_eq!(console.work(TRANSMIT, &mut queue, &ram), waits);
        assert_eq!(console.work(TRANSMIT, &mut queue, &ram), waits);
        assert_eq!(line.0.lock().0, text[..512]);
        assert!(input.is_in_use() && driver.take_back().is_none());
        line.0.lock().1 = 1000;
        assert_eq!(console.work(TRANSMIT, &mut queue, &ram), Ok(Progress::Idle));
        assert_eq!(line.0.lock().0, text);
        assert_eq!(driver.take_back(), Some((head, 0)));
        assert!(driver.take_back().is_some());
        // Nothing of what was not written comes out for another driver.
        line.0.lock().1 = 0;
        driver.add(&halves, Layout::Direct).unwrap();
        assert_eq!(console.work(TRANSMIT, &mut queue, &ram), waits);
        console.reset();
        line.0.lock().1 = 1000;
        assert_eq!(console.work(TRANSMIT, &mut queue, &ram), Ok(Progress::Idle));
        assert!(!input.is_in_use());
    }

    #[test]
    fn much_output_leaves_time_for_others() {
        let (mut console, line, _) = device(1 << 20);
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        let length = 100 << 10;
        driver
            .add(&[(BUFFERS, length, false)], Layout::Direct)
            .unwrap();
        let mut rounds = 1;
        while console.work(TRANSMIT, &mut queue, &ram) == Ok(Progress::Busy) {
            rounds += 1;
        }
        assert_eq!(line.0.lock().0.len(), length as usize);
        assert!((6..9).contains(&rounds), "{rounds}");
    }

    #[test]
    fn what_is_typed_waits_for_buffers() {
        let (mut console, _, input) = device(0);
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        console.set_features(0);
        for n in 0..INPUT + 1 {
            assert_eq!(input.push(n as u8), n < INPUT);
        }
        assert!(console.has_input(RECEIVE) && !console.has_input(TRANSMIT));
        assert_eq!(console.work(RECEIVE, &mut queue, &ram), Ok(Progress::Idle));
        assert!(!console.has_input(RECEIVE), "no buffers");
        let (_, notify) = driver.add(&[(BUFFERS, 100, true)], Layout::Direct).unwrap();
        assert!(notify);
        driver
            .add(&[(BUFFERS + 100, 4096, true)], Layout::Direct)
            .unwrap();
        assert_eq!(console.work(RECEIVE, &mut queue, &ram), Ok(Progress::Idle));
        let lengths = [(); 2].map(|()| driver.take_back().unwrap().1);
        assert_eq!(lengths, [100, 156]);
        let typed: Vec<u8> = (0..=255).collect();
        assert_eq!(ram.bytes(BUFFERS, 256), typed);
        assert!(!console.has_input(RECEIVE) && input.has_room());
        assert!(input.push(1));
        console.set_features(0);
        assert!(!console.has_input(RECEIVE), "typed for another driver");
    }

    proptest! {
        #[test]
        fn a_driver_that_means_harm_gets_its_bytes_or_a_reset(seed: u64) {
            let (mut console, line, input) = device(1000);
            let fill = |random: &mut Random| [random.next() as u8; 16];
            hostile::torment(&mut console, seed, fill, &mut || {
                line.0.lock().1 += 100;
                while input.push(b'x') {}
            });
        }
    }

    mod fuzz {
        use super::*;

        #[test]
        fn rings_of_a_console() {
            fuzzing::check!()
                .with_type::<Vec<u32>>()
                .for_each(|numbers| {
                    let (mut console, line, input) = device(1000);
                    let random = Random::beginning_with(numbers);
                    let fill = |random: &mut Random| [random.next() as u8; 16];
                    hostile::torment_by(&mut console, random, fill, &mut || {
                        line.0.lock().1 += 100;
                        input.push(b'x');
                    });
                });
        }
    }
}
