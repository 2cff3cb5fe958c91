//! The VMs that the operator can name, and their serial input.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::RwLock;

use crate::host_time::host_now;
use crate::vm::{BoardHost, State, Vm};

/// The most bytes that wait for a guest to take them; what comes on top is lost, as on a
/// real line.
const INPUT_CAPACITY: usize = 4096;

struct Known {
    vm: Arc<Vm>,
    input: spin::Mutex<VecDeque<u8>>,
}

static VMS: RwLock<Vec<Known>> = RwLock::new(Vec::new());

/// Adds a VM; its number is its place.
pub(super) fn add(vm: Arc<Vm>) {
    VMS.write().push(Known {
        vm,
        input: spin::Mutex::new(VecDeque::new()),
    });
}

/// The VM of this number.
#[must_use]
pub fn get(number: usize) -> Option<Arc<Vm>> {
    VMS.read().get(number).map(|known| known.vm.clone())
}

/// All VMs.
#[must_use]
pub fn all() -> Vec<Arc<Vm>> {
    VMS.read().iter().map(|known| known.vm.clone()).collect()
}

/// Puts `vm` in the place of the one with its number: after a restart.
pub fn replace(vm: Arc<Vm>) {
    if let Some(known) = VMS.write().get_mut(vm.id.0) {
        known.vm = vm;
    }
}

/// A byte for the serial input of VM `number`.
pub(super) fn type_to(number: usize, byte: u8) {
    if let Some(known) = VMS.read().get(number) {
        let mut input = known.input.lock();
        if input.len() < INPUT_CAPACITY {
            input.push_back(byte);
        }
    }
}

/// Gives guests as much of their input as their UARTs take now.
pub(super) fn pass_input_on() {
    for known in VMS.read().iter() {
        let mut input = known.input.lock();
        if input.is_empty() || known.vm.state() != State::Running {
            continue;
        }
        let mut board = known.vm.board.lock();
        let now = board.clock.now(host_now());
        let mut host = BoardHost::new(&known.vm);
        while board.chipset.serial_can_receive()
            && let Some(byte) = input.pop_front()
        {
            board.chipset.serial_receive(now, byte, &mut host);
        }
    }
}
