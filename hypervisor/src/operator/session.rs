//! The operator at the terminal: what is typed is carried out, command by command. Programs at the door
//! are looked after besides.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::ops::ControlFlow;

use super::command::{Job, Outcome, Progress};
use super::completion::candidates;
use super::context::{Context, Surroundings};
use super::dispatch::{dispatch, wanted_format};
use super::door::Door;
use super::events::{Changes, Crash, Event, Reporter};
use super::host_facts::HostFacts;
use super::terminal::{AnswerOutput, Terminal, Unshown};
use super::watcher::Watcher;
use crate::console::{Answer, Format, Input};
use crate::ids::VmId;
use crate::manager::VmManager;
use crate::watch::rule::Rule;

/// The most bytes that are kept of what is typed while a command goes on.
const TYPED_AHEAD_CAPACITY: usize = 1024;

/// Ctrl-C: ends the command that goes on.
const INTERRUPT: u8 = 3;

/// The length of a command's turn, as a divisor of a second: a quarter of the time between two
/// looks at the line.
pub(super) const TURNS_PER_SECOND: u64 = 4000;

/// A session of the operator's at a terminal.
pub(crate) struct Session {
    terminal: Arc<Terminal>,
    host: HostFacts,
    /// The command that goes on, if one does.
    running: Option<Running>,
    /// The part of its answer that has not been shown yet.
    unshown: Unshown,
    /// The bytes typed meanwhile.
    typed_ahead: VecDeque<u8>,
    /// The door for programs, if it is open.
    door: Option<Door>,
    /// The state of things as programs have been told it.
    changes: Changes,
    watcher: Watcher,
}

/// A command that goes on.
struct Running {
    /// The rest of it; none where its answer only has to be shown.
    job: Option<Box<dyn Job>>,
    format: Format,
}

/// The machine is to be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PowerOff;

impl Session {
    /// Opens a session at `terminal`, of a machine of which `host` is known: shows the prompt.
    #[must_use]
    pub(crate) fn open(terminal: Arc<Terminal>, host: HostFacts) -> Self {
        terminal.open();
        Self {
            watcher: Watcher::new(terminal.clock()),
            terminal,
            host,
            running: None,
            unshown: Unshown::default(),
            typed_ahead: VecDeque::new(),
            door: None,
            changes: Changes::default(),
        }
    }

    /// Watches VMs by rules from the beginning.
    #[must_use]
    pub(crate) fn with_rules(mut self, rules: impl IntoIterator<Item = (VmId, Rule)>) -> Self {
        for (vm, rule) in rules {
            if let Err(error) = self.watcher.add(vm, rule) {
                log::error!("{error}");
            }
        }
        self
    }

    /// Opens a door for programs as well.
    #[must_use]
    pub(crate) fn with_door(self, door: Door) -> Self {
        Self {
            door: Some(door),
            ..self
        }
    }

    /// Takes what the operator has typed, carries out what is to be, and keeps the line moving.
    /// To be called once in a millisecond, between two turns of a VCPU; where lines interrupt when something comes in, only if
    /// one has, and now and then, unless [it goes on](Session::goes_on).
    pub(crate) fn poll(&mut self, vms: &VmManager) -> ControlFlow<PowerOff> {
        self.report_stops(vms);
        self.report_notices(vms);
        self.continue_command(vms);
        while let Some(byte) = self.next_byte() {
            // The console is not held while a command runs: guests write meanwhile.
            match self.terminal.operator_byte(byte, vms) {
                Input::None => {}
                Input::Guest { channel, byte } => vms.type_to(VmId(channel), byte),
                Input::Complete => {
                    let words = candidates(&self.terminal.text(), vms.names());
                    self.terminal.complete(&words);
                }
                Input::Line => self.execute(vms)?,
            }
        }
        vms.pass_input_on();
        self.terminal.poll(vms);
        self.watcher.look(
            vms,
            self.terminal.clock(),
            &mut Reporter {
                terminal: &self.terminal,
                listener: self.door.as_mut(),
            },
        );
        self.look_after_programs(vms)
    }

    /// Returns whether there is something to be done soon, though nothing comes in: a command or a search goes on, or output
    /// waits for its line, or input for its guest.
    #[must_use]
    pub(crate) fn goes_on(&self, vms: &VmManager) -> bool {
        self.running.is_some()
            || !self.typed_ahead.is_empty()
            || self.terminal.line().has_backlog()
            || self.watcher.goes_on()
            || self.door.as_ref().is_some_and(Door::goes_on)
            || vms.has_input()
    }

    /// Tells which VMs have come to their end.
    pub(crate) fn report_stops(&mut self, vms: &VmManager) {
        let mut reporter = Reporter {
            terminal: &self.terminal,
            listener: self.door.as_mut(),
        };
        for stop in vms.take_stops() {
            reporter.report(&Event::VmEnded {
                vm: vms.name(stop.vm).unwrap_or_default(),
                reason: alloc::format!("{}", stop.reason),
                crash: stop
                    .dump
                    .as_ref()
                    .map(|(vcpu, state)| Crash { vcpu: *vcpu, state }),
            });
            self.terminal.detach_from(stop.vm, vms);
        }
    }

    /// Tells programs what has changed, and serves them.
    fn look_after_programs(&mut self, vms: &VmManager) -> ControlFlow<PowerOff> {
        let Some(door) = &mut self.door else {
            return ControlFlow::Continue(());
        };
        let mut surroundings = Surroundings {
            vms,
            clock: self.terminal.clock(),
            host: &self.host,
            watcher: &mut self.watcher,
        };
        let mut reporter = Reporter {
            terminal: &self.terminal,
            listener: Some(&mut *door),
        };
        self.changes.look(&surroundings, &mut reporter);
        door.poll(&mut surroundings)
    }

    /// Tells what has become of targets.
    fn report_notices(&mut self, vms: &VmManager) {
        let mut reporter = Reporter {
            terminal: &self.terminal,
            listener: self.door.as_mut(),
        };
        for (vm, notice) in vms.take_notices() {
            let name = vms.name(vm).unwrap_or_default();
            reporter.report(&Event::of_target(name, &notice));
        }
    }

    /// Returns the next byte to be looked at; none while a command goes on.
    fn next_byte(&mut self) -> Option<u8> {
        if self.running.is_some() {
            return None;
        }
        let line = self.terminal.line();
        self.typed_ahead.pop_front().or_else(|| line.read())
    }

    /// Carries out the line that has been entered, or begins to.
    fn execute(&mut self, vms: &VmManager) -> ControlFlow<PowerOff> {
        let text = self.terminal.text();
        let format = wanted_format(&text);
        let outcome = self.with_context(vms, format, |context| dispatch(&text, context));
        let job = match outcome {
            Outcome::Done => None,
            Outcome::GoesOn(job) => Some(job),
            Outcome::Attach(vm) => {
                self.unshown.show_all(&self.terminal);
                self.terminal.attach(vm, vms);
                None
            }
            Outcome::PowerOff => {
                self.unshown.show_all(&self.terminal);
                return ControlFlow::Break(PowerOff);
            }
        };
        self.running = Some(Running { job, format });
        self.take_turn(vms);
        ControlFlow::Continue(())
    }

    /// Lets the command that goes on have a turn, if there is one, and keeps for later what is
    /// typed meanwhile.
    fn continue_command(&mut self, vms: &VmManager) {
        self.take_turn(vms);
        while self.running.is_some()
            && let Some(byte) = self.terminal.line().read()
        {
            if byte == INTERRUPT {
                self.typed_ahead.clear();
                self.unshown.clear();
                self.terminal.line().write(b"^C\r\n");
                self.end_command(vms);
            } else if self.typed_ahead.len() < TYPED_AHEAD_CAPACITY {
                self.typed_ahead.push_back(byte);
            }
        }
    }

    /// Lets the command that goes on work for a short time: its answer is shown as far as it goes, and then
    /// there is more of it.
    fn take_turn(&mut self, vms: &VmManager) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let turn = self.terminal.clock().fraction_of_second(TURNS_PER_SECOND);
        let until = self.terminal.clock().now().saturating_add(turn);
        loop {
            if !self
                .unshown
                .show_line(&self.terminal, running.job.is_none())
            {
                let Some(job) = &mut running.job else {
                    if self.unshown.is_empty() {
                        self.end_command(vms);
                        return;
                    }
                    break;
                };
                match self.with_context(vms, running.format, |context| job.step(context, until)) {
                    Progress::Done => running.job = None,
                    Progress::More => break,
                }
            }
            if self.terminal.clock().now() >= until {
                break;
            }
        }
        self.running = Some(running);
    }

    /// Has the next command typed.
    fn end_command(&mut self, vms: &VmManager) {
        self.running = None;
        self.report_stops(vms);
        self.terminal.done();
    }

    fn with_context<R>(
        &mut self,
        vms: &VmManager,
        format: Format,
        act: impl FnOnce(&mut Context<'_>) -> R,
    ) -> R {
        let mut out = AnswerOutput::new(&self.terminal, &mut self.unshown);
        let mut surroundings = Surroundings {
            vms,
            clock: self.terminal.clock(),
            host: &self.host,
            watcher: &mut self.watcher,
        };
        act(&mut surroundings.context(Answer::new(&mut out, format)))
    }
}
