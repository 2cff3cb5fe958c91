//! What a fleet's monitoring wants to know of a tarpit: metrics in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use serde_json::Value;

use super::client::Client;

/// The media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

/// A metric: a name, its kind, its help, and the samples.
#[derive(Clone, Debug)]
struct Metric {
    kind: Kind,
    help: &'static str,
    samples: Vec<(String, f64)>,
}

/// The metrics of any number of hosts, put together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    metrics: BTreeMap<&'static str, Metric>,
}

/// A field of a record that is a metric.
struct Field {
    key: &'static str,
    /// The number of its units in one of those that Prometheus wants: seconds, bytes, shares of 1.
    unit: f64,
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

const fn gauge(key: &'static str, unit: f64, name: &'static str, help: &'static str) -> Field {
    Field {
        key,
        unit,
        name,
        kind: Kind::Gauge,
        help,
    }
}

const fn counter(key: &'static str, unit: f64, name: &'static str, help: &'static str) -> Field {
    Field {
        kind: Kind::Counter,
        ..gauge(key, unit, name, help)
    }
}

const MIB: f64 = 1.0 / 1_048_576.0;

/// The fields of `vms`.
const VM: &[Field] = &[
    gauge("memory_mib", MIB, "tarpit_vm_memory_bytes", "RAM of the VM"),
    gauge("vcpus", 1.0, "tarpit_vm_vcpus", "VCPUs of the VM"),
    gauge(
        "targets",
        1.0,
        "tarpit_vm_targets",
        "Suppressed processes of the VM",
    ),
    gauge(
        "lead_ms",
        1e3,
        "tarpit_vm_clock_lead_seconds",
        "Time that the VM's clock is ahead, to be given back",
    ),
    gauge(
        "drift_ms",
        1e3,
        "tarpit_vm_clock_drift_seconds",
        "Time that the VM's clock is ahead for good",
    ),
];

/// The fields of `targets`.
const TARGET: &[Field] = &[
    gauge(
        "clock",
        1.0,
        "tarpit_target_factor",
        "Factor by which the process is suppressed",
    ),
    counter(
        "cpu_us",
        1e6,
        "tarpit_target_cpu_seconds_total",
        "CPU time of the process as a target",
    ),
    gauge(
        "recent_ppm",
        1e6,
        "tarpit_target_cpu_ratio",
        "Share of one CPU in the last second",
    ),
    gauge(
        "budget_ppm",
        1e6,
        "tarpit_target_budget_ratio",
        "Share of one CPU that it may have",
    ),
    gauge(
        "stopped_permille",
        1e3,
        "tarpit_target_stopped_ratio",
        "Part of the time for which its VCPUs were kept from running it",
    ),
    counter(
        "switch_ins",
        1.0,
        "tarpit_target_switches_total",
        "Switches to it that were seen",
    ),
];

/// The fields of `rules`.
const RULE: &[Field] = &[
    counter(
        "matches",
        1.0,
        "tarpit_rule_matches_total",
        "Address spaces for which the rule held",
    ),
    counter(
        "misses",
        1.0,
        "tarpit_rule_misses_total",
        "Address spaces for which it did not",
    ),
];

/// The fields of `stats`.
const EXIT: &[Field] = &[
    counter("count", 1.0, "tarpit_vm_exits_total", "VM exits"),
    counter(
        "ticks",
        1.0,
        "tarpit_vm_exit_ticks_total",
        "Ticks of the host's TSC spent on them",
    ),
];

/// The rows of `stats` that are no reasons of exits.
const NO_EXITS: [&str; 4] = [
    "all-exits",
    "guest",
    "wait-when-woken",
    "longest-wait-when-woken",
];

impl Metrics {
    /// Adds what `client` tells of the host `name`; that it is down if there is none, or it does not
    /// answer. Returns whether it is up.
    pub fn add_host(&mut self, name: &str, client: Option<&mut Client>) -> bool {
        let answers = client.and_then(|client| Answers::fetch(client).ok());
        let up = answers.is_some();
        let host = [("host", name)];
        self.add(
            "tarpit_up",
            Kind::Gauge,
            "Whether the host answers",
            &host,
            f64::from(up),
        );
        if let Some(answers) = answers {
            self.add_answers(name, &answers);
        }
        up
    }

    fn add_answers(&mut self, host: &str, answers: &Answers) {
        let host = ("host", host);
        for vm in &answers.vms {
            let labels = [host, ("vm", text(vm, "vm"))];
            self.add_fields(VM, vm, &labels);
            let state = [labels[0], labels[1], ("state", text(vm, "state"))];
            self.add(
                "tarpit_vm_state",
                Kind::Gauge,
                "State of the VM",
                &state,
                1.0,
            );
        }
        for target in &answers.targets {
            let labels = [
                host,
                ("vm", text(target, "vm")),
                ("cr3", text(target, "cr3")),
            ];
            self.add_fields(TARGET, target, &labels);
        }
        for rule in &answers.rules {
            let number = rule["rule"].to_string();
            let labels = [host, ("vm", text(rule, "vm")), ("rule", number.as_str())];
            self.add_fields(RULE, rule, &labels);
        }
        for exit in &answers.exits {
            let what = text(exit, "what");
            if !NO_EXITS.contains(&what) && !what.starts_with("vcpu") {
                let labels = [host, ("vm", text(exit, "vm")), ("reason", what)];
                self.add_fields(EXIT, exit, &labels);
            }
        }
    }

    fn add_fields(&mut self, fields: &[Field], record: &Value, labels: &[(&str, &str)]) {
        for field in fields {
            if let Some(value) = record[field.key].as_f64() {
                self.add(
                    field.name,
                    field.kind,
                    field.help,
                    labels,
                    value / field.unit,
                );
            }
        }
    }

    fn add(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let metric = self.metrics.entry(name).or_insert_with(|| Metric {
            kind,
            help,
            samples: Vec::new(),
        });
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        metric.samples.push((labels.join(","), value));
    }

    /// Returns them in Prometheus's format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, metric) in &self.metrics {
            let kind = match metric.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            // A string takes everything.
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", metric.help);
            for (labels, value) in &metric.samples {
                let _ = writeln!(text, "{name}{{{labels}}} {value}");
            }
        }
        text
    }
}

/// The answers of a host.
#[derive(Clone, Debug, Default)]
struct Answers {
    vms: Vec<Value>,
    targets: Vec<Value>,
    rules: Vec<Value>,
    exits: Vec<Value>,
}

impl Answers {
    fn fetch(client: &mut Client) -> Result<Self> {
        let vms = client.command("vms")?;
        let mut exits = Vec::new();
        for vm in &vms {
            // One that has never run has none.
            if text(vm, "state") != "defined" {
                let stats = client.command(&format!("stats {}", text(vm, "vm")));
                exits.extend(stats.or_else(no_answer)?);
            }
        }
        Ok(Self {
            targets: client.command("targets")?,
            rules: client.command("rules").or_else(no_answer)?,
            vms,
            exits,
        })
    }
}

/// Returns nothing where a command is refused, and other errors.
fn no_answer(error: anyhow::Error) -> Result<Vec<Value>> {
    if error.is::<super::Refused>() {
        Ok(Vec::new())
    } else {
        Err(error)
    }
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_default()
}

fn escaped(label: &str) -> String {
    let label = label.replace('\\', "\\\\").replace('"', "\\\"");
    label.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::client::tests::fake;
    use super::*;

    #[test]
    fn a_host_is_told_in_prometheus_words() -> Result<()> {
        let mut client = fake(|request| {
            let records = match request["command"].as_str() {
                Some("vms") => vec![json!({"vm": "web", "state": "running", "memory_mib": 2,
                    "vcpus": 1, "targets": 1, "lead_ms": 18, "drift_ms": 0})],
                Some("targets") => vec![json!({"vm": "web", "cr3": "0x1000", "clock": 1000,
                    "cpu_us": 2_500_000, "recent_ppm": null, "budget_ppm": 648})],
                Some("rules") => vec![json!({"rule": 1, "vm": "web", "matches": 2, "misses": 7})],
                Some("stats web") => vec![
                    json!({"vm": "web", "what": "HLT", "count": 5, "ticks": 50}),
                    json!({"vm": "web", "what": "all-exits", "count": 5, "ticks": 50}),
                    json!({"vm": "web", "what": "vcpu0-on-cpu0", "count": 5, "ticks": 50}),
                ],
                other => panic!("{other:?}"),
            };
            records
                .into_iter()
                .map(|it| json!({"record": it}))
                .collect()
        })?;
        let mut metrics = Metrics::default();
        assert!(metrics.add_host("a", Some(&mut client)));
        assert!(!metrics.add_host("b\"", None));
        let text = metrics.text();
        for line in [
            "# TYPE tarpit_target_cpu_seconds_total counter",
            "tarpit_up{host=\"a\"} 1",
            "tarpit_up{host=\"b\\\"\"} 0",
            "tarpit_vm_memory_bytes{host=\"a\",vm=\"web\"} 2097152",
            "tarpit_vm_clock_lead_seconds{host=\"a\",vm=\"web\"} 0.018",
            "tarpit_vm_state{host=\"a\",vm=\"web\",state=\"running\"} 1",
            "tarpit_target_cpu_seconds_total{host=\"a\",vm=\"web\",cr3=\"0x1000\"} 2.5",
            "tarpit_target_budget_ratio{host=\"a\",vm=\"web\",cr3=\"0x1000\"} 0.000648",
            "tarpit_rule_misses_total{host=\"a\",vm=\"web\",rule=\"1\"} 7",
            "tarpit_vm_exits_total{host=\"a\",vm=\"web\",reason=\"HLT\"} 5",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
        }
        assert!(
            !text.contains("all-exits") && !text.contains("vcpu0"),
            "{text}"
        );
        assert!(!text.contains("tarpit_target_cpu_ratio"), "not known");
        let heads = text.lines().filter(|it| it.contains("TYPE tarpit_up "));
        assert_eq!(heads.count(), 1);
        Ok(())
    }
}

#[cfg(test)]
mod fuzz {
    use serde_json::json;

    use super::*;

    /// Reads a sample `name{label="value",...} number` as Prometheus does; `None` if it is none.
    fn sample(line: &str) -> Option<(Vec<(String, String)>, f64)> {
        let (_, mut rest) = line.split_once('{')?;
        let mut labels = Vec::new();
        loop {
            let (label, quoted) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut characters = quoted.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match characters.next()?.1 {
                        'n' => '\n',
                        plain @ ('\\' | '"') => plain,
                        _ => return None,
                    }),
                    (_, plain) => value.push(plain),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &quoted[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        let number = rest.strip_prefix("} ")?.parse().ok()?;
        Some((labels, number))
    }

    #[test]
    fn samples_for_prometheus() {
        fuzzing::check!()
            .with_type::<(String, Vec<(String, String, u64)>)>()
            .for_each(|(host, records)| {
                let answers = Answers {
                    vms: Vec::new(),
                    targets: Vec::new(),
                    rules: Vec::new(),
                    exits: records
                        .iter()
                        .map(|(vm, what, count)| json!({"vm": vm, "what": what, "count": count}))
                        .collect(),
                };
                let mut metrics = Metrics::default();
                metrics.add_answers(host, &answers);
                let text = metrics.text();
                let samples: Vec<_> = text
                    .split('\n')
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .collect();
                let shown = records.iter().filter(|(_, what, _)| {
                    !NO_EXITS.contains(&what.as_str()) && !what.starts_with("vcpu")
                });
                for (line, (vm, what, count)) in samples.iter().zip(shown) {
                    let (labels, number) = sample(line).unwrap_or_else(|| panic!("{line}"));
                    let expected = [("host", host), ("vm", vm), ("reason", what)];
                    let expected = expected.map(|(label, value)| (label.to_owned(), value.clone()));
                    assert_eq!(labels, expected);
                    assert_eq!(number, *count as f64);
                }
            });
    }
}
