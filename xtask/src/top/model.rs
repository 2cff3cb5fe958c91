//! What is known, and what the user has chosen.

use std::collections::VecDeque;

use serde_json::Value;

/// The number of events that are shown.
const EVENTS: usize = 5;

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The choice of the process above.
    Up,
    /// The choice of the process below.
    Down,
    /// The suppression of the process that is chosen.
    Suppress,
    /// The end of its suppression.
    Release,
    /// The end.
    Quit,
    /// A key without a meaning.
    Other,
}

/// The consequence of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing but another picture.
    None,
    /// A command for tarpit.
    Command(String),
    /// The end.
    Quit,
}

/// A VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VmRow {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) memory_mib: u64,
    pub(super) vcpus: u64,
    pub(super) targets: u64,
    pub(super) lead_ms: i64,
    pub(super) drift_ms: i64,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessRow {
    pub(super) vm: String,
    pub(super) cr3: String,
    pub(super) cpu_permille: u64,
    pub(super) cpu_ms: u64,
    /// The state of its suppression, if it is suppressed.
    pub(super) target: Option<TargetCells>,
}

/// The columns of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TargetCells {
    pub(super) factor: u64,
    pub(super) limited_by: String,
    pub(super) recent_ppm: Option<u64>,
    pub(super) budget_ppm: Option<u64>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RuleRow {
    pub(super) number: u64,
    pub(super) vm: String,
    pub(super) what: String,
    pub(super) action: String,
    pub(super) matches: u64,
    pub(super) misses: u64,
}

/// The state of the table: what is known, and what the user has chosen.
#[derive(Clone, Debug)]
pub struct Model {
    factor: u32,
    pub(super) vms: Vec<VmRow>,
    pub(super) processes: Vec<ProcessRow>,
    pub(super) rules: Vec<RuleRow>,
    /// The process that is chosen, by its VM and its CR3: rows move.
    chosen: Option<(String, String)>,
    /// The last command that was given, or why it was refused.
    pub(super) message: String,
    /// The last events, the latest first.
    pub(super) events: VecDeque<String>,
}

fn text(record: &Value, key: &str) -> String {
    record[key].as_str().unwrap_or_default().to_owned()
}

fn number(record: &Value, key: &str) -> u64 {
    record[key].as_u64().unwrap_or_default()
}

impl Model {
    /// Makes one that knows nothing yet. Processes are suppressed by `factor`.
    pub fn new(factor: u32) -> Self {
        Self {
            factor,
            vms: Vec::new(),
            processes: Vec::new(),
            rules: Vec::new(),
            chosen: None,
            message: String::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes the answers to `vms`, to `ps` of all VMs, to `targets` and to `rules`.
    pub fn update(
        &mut self,
        vms: &[Value],
        processes: &[Value],
        targets: &[Value],
        rules: &[Value],
    ) {
        self.vms = vms
            .iter()
            .map(|vm| VmRow {
                name: text(vm, "vm"),
                state: text(vm, "state"),
                memory_mib: number(vm, "memory_mib"),
                vcpus: number(vm, "vcpus"),
                targets: number(vm, "targets"),
                lead_ms: vm["lead_ms"].as_i64().unwrap_or_default(),
                drift_ms: vm["drift_ms"].as_i64().unwrap_or_default(),
            })
            .collect();
        self.processes = processes
            .iter()
            .map(|process| ProcessRow {
                vm: text(process, "vm"),
                cr3: text(process, "cr3"),
                cpu_permille: number(process, "cpu_permille"),
                cpu_ms: number(process, "cpu_ms"),
                target: targets
                    .iter()
                    .find(|target| is_of(target, process))
                    .map(|target| TargetCells {
                        factor: number(target, "clock"),
                        limited_by: text(target, "limited_by"),
                        recent_ppm: target["recent_ppm"].as_u64(),
                        budget_ppm: target["budget_ppm"].as_u64(),
                    }),
            })
            .collect();
        // Who runs most is first, and targets are not far below.
        self.processes
            .sort_by_key(|row| std::cmp::Reverse((row.target.is_some(), row.cpu_permille)));
        self.rules = rules
            .iter()
            .map(|rule| RuleRow {
                number: number(rule, "rule"),
                vm: text(rule, "vm"),
                what: text(rule, "what"),
                action: text(rule, "action"),
                matches: number(rule, "matches"),
                misses: number(rule, "misses"),
            })
            .collect();
    }

    /// Takes an event.
    pub fn happened(&mut self, event: &Value) {
        let Some(fields) = event.as_object() else {
            return;
        };
        let mut words = vec![text(event, "event")];
        let rest = fields
            .iter()
            .filter(|(key, _)| *key != "event" && *key != "us");
        words.extend(rest.map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        }));
        self.events.push_front(words.join(" "));
        self.events.truncate(EVENTS);
    }

    /// Takes note of what came of a command.
    pub fn said(&mut self, message: String) {
        self.message = message;
    }

    /// Returns the row of the process that is chosen: the first, unless the user has chosen one that is
    /// still there.
    pub(super) fn chosen(&self) -> Option<usize> {
        let at = self.chosen.as_ref().and_then(|(vm, cr3)| {
            let mut rows = self.processes.iter();
            rows.position(|row| row.vm == *vm && row.cr3 == *cr3)
        });
        at.or((!self.processes.is_empty()).then_some(0))
    }

    /// Does what a key means, as far as that is done here.
    pub fn press(&mut self, key: Key) -> Action {
        let Some(chosen) = self.chosen() else {
            return match key {
                Key::Quit => Action::Quit,
                _ => Action::None,
            };
        };
        let row = &self.processes[chosen];
        let next = match key {
            Key::Quit => return Action::Quit,
            Key::Suppress => {
                let line = format!("suppress {} {} {}", row.vm, row.cr3, self.factor);
                return Action::Command(line);
            }
            Key::Release => return Action::Command(format!("release {} {}", row.vm, row.cr3)),
            Key::Up => chosen.saturating_sub(1),
            Key::Down => (chosen + 1).min(self.processes.len() - 1),
            Key::Other => chosen,
        };
        let row = &self.processes[next];
        self.chosen = Some((row.vm.clone(), row.cr3.clone()));
        Action::None
    }
}

/// Returns whether a target is the process: has one of its roots.
fn is_of(target: &Value, process: &Value) -> bool {
    let is_known = |root: &Value| {
        *root == process["cr3"]
            || process["aliases"]
                .as_array()
                .is_some_and(|aliases| aliases.contains(root))
    };
    target["vm"] == process["vm"] && is_known(&target["cr3"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model() -> Model {
        let mut model = Model::new(500);
        let process = |cr3: &str, permille: u64, alias: &str| json!({"vm": "web", "cr3": cr3, "cpu_permille": permille, "aliases": [alias]});
        model.update(
            &[json!({"vm": "web", "state": "running"})],
            &[
                process("0x1000", 10, "0xa000"),
                process("0x2000", 900, "0xb000"),
                process("0x3000", 1, "0xc000"),
            ],
            &[json!({"vm": "web", "cr3": "0xc000", "clock": 50, "limited_by": "budget"})],
            &[],
        );
        model
    }

    #[test]
    fn targets_and_the_busy_are_on_top() {
        let model = model();
        let order: Vec<_> = model.processes.iter().map(|row| row.cr3.as_str()).collect();
        assert_eq!(order, ["0x3000", "0x2000", "0x1000"]);
        assert_eq!(
            model.processes[0].target.as_ref().map(|it| it.factor),
            Some(50)
        );
    }

    #[test]
    fn keys_are_for_the_process_that_is_chosen_wherever_it_moves() {
        let mut model = model();
        assert_eq!(model.press(Key::Down), Action::None);
        let suppress = Action::Command("suppress web 0x2000 500".to_owned());
        assert_eq!(model.press(Key::Suppress), suppress);
        model.processes.reverse();
        assert_eq!(model.press(Key::Suppress), suppress);
        model.processes.retain(|row| row.cr3 != "0x2000");
        let release = Action::Command("release web 0x1000".to_owned());
        assert_eq!(model.press(Key::Release), release, "the first again");
        for _ in 0..9 {
            model.press(Key::Down);
        }
        assert_eq!(model.chosen(), Some(1));
        for _ in 0..9 {
            model.press(Key::Up);
        }
        assert_eq!(model.chosen(), Some(0));
        model.processes.clear();
        assert_eq!(model.press(Key::Suppress), Action::None);
        assert_eq!(model.press(Key::Quit), Action::Quit);
    }

    #[test]
    fn the_last_events_are_kept() {
        let mut model = model();
        for number in 0..20 {
            model.happened(&json!({"us": 1, "event": "rule_match", "rule": number}));
        }
        assert_eq!(model.events.len(), EVENTS);
        assert_eq!(model.events[0], "rule_match rule=19");
    }
}
