//! How it looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table, TableState};

use super::model::{Model, ProcessRow, RuleRow, VmRow};

/// The rows that a table takes around its own.
const FRAME: u16 = 3;

/// Draws all that is known.
pub fn show(model: &Model, frame: &mut Frame<'_>) {
    let rows = |count: usize| Constraint::Max(u16::try_from(count).unwrap_or(u16::MAX) + FRAME);
    let [vms, processes, rules, events, foot] = Layout::vertical([
        rows(model.vms.len()),
        Constraint::Min(FRAME + 1),
        rows(model.rules.len()),
        Constraint::Max(u16::try_from(model.events.len()).unwrap_or(0)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    show_vms(model, frame, vms);
    show_processes(model, frame, processes);
    show_rules(model, frame, rules);
    let lines = model.events.iter().map(|event| Line::from(event.as_str()));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), events);
    let keys = format!(
        "up/down choose  s suppress  r release  q quit   {}",
        model.message
    );
    frame.render_widget(Paragraph::new(keys).style(Modifier::REVERSED), foot);
}

fn table<'a, const N: usize>(
    title: &'a str,
    heading: [&'a str; N],
    widths: [u16; N],
    rows: Vec<Row<'a>>,
) -> Table<'a> {
    Table::new(rows, widths.map(Constraint::Length))
        .header(Row::new(heading).style(Modifier::BOLD))
        .block(Block::bordered().title(title))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
}

fn show_vms(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let row = |vm: &VmRow| {
        Row::new([
            vm.name.clone(),
            vm.state.clone(),
            format!("{:>6} MiB", vm.memory_mib),
            format!("{:>5}", vm.vcpus),
            format!("{:>7}", vm.targets),
            format!("{:>6} ms", vm.lead_ms),
            format!("{:>6} ms", vm.drift_ms),
        ])
    };
    let rows = model.vms.iter().map(row).collect();
    let heading = [
        "VM",
        "STATE",
        "    MEMORY",
        "VCPUS",
        "TARGETS",
        "     LEAD",
        "    DRIFT",
    ];
    frame.render_widget(table("VMs", heading, [16, 9, 10, 5, 7, 9, 9], rows), area);
}

fn show_processes(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let row = |process: &ProcessRow| {
        let share = format!(
            "{:>3}.{}",
            process.cpu_permille / 10,
            process.cpu_permille % 10
        );
        let target = process.target.as_ref();
        let or_any = |ppm: Option<u64>| ppm.map_or_else(|| "any".to_owned(), |ppm| ppm.to_string());
        Row::new([
            process.vm.clone(),
            process.cr3.clone(),
            share,
            format!("{:>10}", process.cpu_ms),
            target.map_or_else(String::new, |it| format!("1/{}", it.factor)),
            target.map_or_else(String::new, |it| it.limited_by.clone()),
            target.map_or_else(String::new, |it| {
                format!("{} of {} ppm", or_any(it.recent_ppm), or_any(it.budget_ppm))
            }),
        ])
    };
    let rows = model.processes.iter().map(row).collect();
    let heading = [
        "VM",
        "CR3",
        "CPU %",
        "   TIME ms",
        "SPEED",
        "LIMITED",
        "HAD OF ITS BUDGET",
    ];
    let widths = [16, 16, 5, 10, 7, 8, 24];
    let mut state = TableState::new().with_selected(model.chosen());
    frame.render_stateful_widget(table("Processes", heading, widths, rows), area, &mut state);
}

fn show_rules(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let row = |rule: &RuleRow| {
        Row::new([
            format!("{:>4}", rule.number),
            rule.vm.clone(),
            rule.what.clone(),
            rule.action.clone(),
            format!("{:>7}", rule.matches),
            format!("{:>8}", rule.misses),
        ])
    };
    let rows = model.rules.iter().map(row).collect();
    let heading = ["RULE", "VM", "WHAT", "ACTION", "MATCHES", "  MISSES"];
    frame.render_widget(table("Rules", heading, [4, 16, 34, 14, 7, 8], rows), area);
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::super::model::Key;
    use super::*;

    fn screen(model: &Model, width: u16, height: u16) -> Result<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height))?;
        terminal.draw(|frame| show(model, frame))?;
        Ok(terminal.backend().to_string())
    }

    fn model() -> Model {
        let mut model = Model::new(1000);
        model.update(
            &[
                json!({"vm": "web", "state": "running", "memory_mib": 512, "vcpus": 2, "targets": 1,
                "lead_ms": 12, "drift_ms": -3}),
            ],
            &[
                json!({"vm": "web", "cr3": "0x1a2b000", "cpu_permille": 987, "cpu_ms": 4321}),
                json!({"vm": "web", "cr3": "0x2b3c000", "cpu_permille": 1, "cpu_ms": 17}),
            ],
            &[
                json!({"vm": "web", "cr3": "0x2b3c000", "clock": 1000, "limited_by": "budget",
                "recent_ppm": 998, "budget_ppm": 1000}),
            ],
            &[
                json!({"rule": 3, "vm": "web", "what": "EVIL-42", "action": "suppress 1000",
                "matches": 1, "misses": 88}),
            ],
        );
        model.happened(&json!({"event": "rule_match", "us": 5, "cr3": "0x2b3c000"}));
        model.said("release web 0x2b3c000".to_owned());
        model
    }

    #[test]
    fn all_that_is_known_is_on_the_screen() -> Result<()> {
        let screen = screen(&model(), 100, 24)?;
        for words in [
            "web              running      512 MiB     2       1     12 ms     -3 ms",
            "web              0x2b3c000          0.1         17 1/1000  budget   998 of 1000 ppm",
            "web              0x1a2b000         98.7       4321",
            "   3 web              EVIL-42                            suppress 1000        1       88",
            "rule_match cr3=0x2b3c000",
            "q quit   release web 0x2b3c000",
        ] {
            assert!(screen.contains(words), "no `{words}` in\n{screen}");
        }
        Ok(())
    }

    #[test]
    fn the_process_that_is_chosen_stands_out() -> Result<()> {
        let mut model = model();
        model.press(Key::Down);
        let mut terminal = Terminal::new(TestBackend::new(100, 24))?;
        terminal.draw(|frame| show(&model, frame))?;
        let buffer = terminal.backend().buffer();
        let is_reversed = |y: u16| buffer[(1, y)].modifier.contains(Modifier::REVERSED);
        let row = (0..24).find(|y| {
            let line: String = (0..100).map(|x| buffer[(x, *y)].symbol()).collect();
            line.contains("0x1a2b000")
        });
        assert!(row.is_some_and(is_reversed));
        assert_eq!((0..23).filter(|y| is_reversed(*y)).count(), 1);
        Ok(())
    }

    #[test]
    fn a_small_terminal_is_no_failure() -> Result<()> {
        for (width, height) in [(1, 1), (10, 3), (40, 8), (500, 200)] {
            screen(&model(), width, height)?;
        }
        Ok(())
    }
}
