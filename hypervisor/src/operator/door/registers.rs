//! Reading a VCPU's registers for a client: its own CPU copies them when it is there next.

use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::time::HostTicks;
use serde::{Serialize, Serializer};

use super::request::RegistersRequest;
use crate::operator::command::{Job, Progress};
use crate::operator::context::Context;
use crate::operator::error::CommandError;
use crate::operator::records::Hex;
use crate::vm::Vm;
use crate::vm::registers::{GENERAL_NAMES, RegisterCopy};
use crate::vm::requests::Requests;

/// The longest wait, in seconds: a VCPU that waits for a CPU has one sooner.
const PATIENCE: u64 = 2;

/// Registers that are being waited for.
pub(super) struct Waiting {
    vm: Arc<Vm>,
    vcpu: u32,
    give_up_at: HostTicks,
}

impl Waiting {
    /// Begins what `request` asks for.
    ///
    /// # Errors
    /// If the VM or the VCPU is not there.
    pub(super) fn begin(
        request: &RegistersRequest,
        context: &Context<'_>,
    ) -> Result<Self, CommandError> {
        let vm = context.vm_named(&request.vm)?;
        let Some(place) = vm.registers.get(request.vcpu as usize) else {
            return Err(CommandError::new(
                "no_vcpu",
                format_args!("{} has no VCPU {}", vm.name, request.vcpu),
            ));
        };
        *place.lock() = None;
        vm.request(request.vcpu, Requests::REGISTERS);
        let patience = PATIENCE * context.clock.fraction_of_second(1);
        Ok(Self {
            vcpu: request.vcpu,
            give_up_at: context.clock.now().saturating_add(patience),
            vm,
        })
    }
}

impl Job for Waiting {
    fn step(&mut self, context: &mut Context<'_>, _: HostTicks) -> Progress {
        let place = self.vm.registers.get(self.vcpu as usize);
        if let Some(copy) = place.and_then(|place| *place.lock()) {
            context.answer.json(&Registers::new(self, &copy));
            return Progress::Done;
        }
        if context.clock.now() < self.give_up_at {
            return Progress::More;
        }
        context.answer.error(
            "no_answer",
            format_args!(
                "VCPU {} of {} has had no CPU for {PATIENCE} seconds: `vms` shows whether it runs",
                self.vcpu, self.vm.name
            ),
        );
        Progress::Done
    }
}

/// The registers of a VCPU.
#[derive(Serialize)]
struct Registers<'a> {
    vm: &'a str,
    vcpu: u32,
    #[serde(serialize_with = "named")]
    general: [u64; 16],
    rip: Hex,
    rflags: Hex,
    cpl: u8,
    cr0: Hex,
    cr3: Hex,
    cr4: Hex,
    efer: Hex,
    activity: &'static str,
    nmis_blocked: bool,
    segments: Vec<Segment>,
}

/// A segment register.
#[derive(Serialize)]
struct Segment {
    name: &'static str,
    selector: Hex,
    base: Hex,
    limit: Hex,
    rights: Hex,
}

fn named<S: Serializer>(values: &[u64; 16], serializer: S) -> Result<S::Ok, S::Error> {
    let names = GENERAL_NAMES.iter().zip(values);
    serializer.collect_map(names.map(|(name, value)| (name, Hex(*value))))
}

impl<'a> Registers<'a> {
    fn new(of: &'a Waiting, copy: &RegisterCopy) -> Self {
        let segments = copy.segments.iter().map(|segment| Segment {
            name: segment.name,
            selector: Hex(segment.selector.into()),
            base: Hex(segment.base),
            limit: Hex(segment.limit.into()),
            rights: Hex(segment.rights.into()),
        });
        Self {
            vm: &of.vm.name,
            vcpu: of.vcpu,
            general: copy.general,
            rip: Hex(copy.rip),
            rflags: Hex(copy.rflags),
            cpl: copy.cpl,
            cr0: Hex(copy.cr0),
            cr3: Hex(copy.cr3),
            cr4: Hex(copy.cr4),
            efer: Hex(copy.efer),
            activity: copy.activity,
            nmis_blocked: copy.nmis_blocked,
            segments: segments.collect(),
        }
    }
}
