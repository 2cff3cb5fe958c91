//! A stack in device memory.

use arch::ExceptionVector;
use arch::gpr::RBP;

use super::machine::{DEVICE, Machine, Seen, code};
use crate::emulate::{Completed, RSP};

const TOP: u64 = DEVICE + 0x100;
const TARGET: u64 = 0x7654_3210;

fn machine(code: &'static [u8]) -> Machine {
    let mut machine = Machine::long(code);
    machine.cpu.gprs[RSP] = TOP;
    machine.cpu.gprs[RBP] = 0xaa55;
    machine.device.set(0x100, TARGET);
    machine
}

#[test]
fn ret_goes_where_the_stack_says_and_drops_the_arguments() {
    for (code, dropped) in [(code!("ret"), 0), (code!("ret 0x18"), 0x18)] {
        let mut machine = machine(code);
        assert_eq!(machine.emulate(), Ok(Completed::Retired));
        assert_eq!(machine.cpu.rip, TARGET);
        assert_eq!(machine.cpu.gprs[RSP], TOP + 8 + dropped);
    }
}

#[test]
fn ret_to_a_non_canonical_address_faults_on_the_ret() {
    let mut machine = machine(code!("ret"));
    machine.device.set(0x100, 1 << 63);
    assert_eq!(machine.fault().vector, ExceptionVector::GeneralProtection);
    assert_eq!(machine.cpu.gprs[RSP], TOP);
}

#[test]
fn enter_makes_a_frame_and_leave_takes_it_down() {
    let mut enter = machine(code!("enter 0x1238, 0"));
    assert_eq!(enter.emulate(), Ok(Completed::Retired));
    assert_eq!(enter.device.seen, [Seen::Write(0xf8, 8, 0xaa55)]);
    assert_eq!(enter.cpu.gprs[RBP], TOP - 8);
    assert_eq!(enter.cpu.gprs[RSP], TOP - 8 - 0x1238);

    let mut leave = machine(code!("leave"));
    leave.cpu.gprs[RBP] = TOP;
    leave.cpu.gprs[RSP] = 0;
    assert_eq!(leave.emulate(), Ok(Completed::Retired));
    assert_eq!(leave.cpu.gprs[RBP], TARGET);
    assert_eq!(leave.cpu.gprs[RSP], TOP + 8);
}

#[test]
fn smsw_stores_a_word() {
    let mut machine = Machine::long(code!("smsw word ptr [rdi]"));
    machine.cpu.gprs[7] = DEVICE;
    let status = machine.cpu.cr0 & 0xffff;
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!(machine.device.seen, [Seen::Write(0, 2, status)]);
}
