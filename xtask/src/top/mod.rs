//! A live table of what runs under a tarpit, with keys to suppress and release: `cargo xtask top`.
//!
//! [`Model`] is what is known and what the user has chosen, [`show`] draws it, and [`run`] keeps it
//! fresh by asking a [`Client`].

mod model;
mod view;

use std::time::{Duration, Instant};

use anyhow::Result;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::Value;

use crate::detector::{Client, Refused};

pub use model::{Action, Key, Model};
pub use view::show;

/// The time between two looks at tarpit.
const REFRESH: Duration = Duration::from_secs(1);

/// Shows what `client` tells of on `terminal` until the user quits. Processes are suppressed by `factor`.
///
/// # Errors
/// When the connection or the terminal fails.
pub fn run(client: &mut Client, terminal: &mut DefaultTerminal, factor: u32) -> Result<()> {
    let mut model = Model::new(factor);
    loop {
        refresh(client, &mut model)?;
        let until = Instant::now() + REFRESH;
        loop {
            terminal.draw(|frame| show(&model, frame))?;
            let left = until.saturating_duration_since(Instant::now());
            if !event::poll(left)? {
                break;
            }
            match model.press(key(&event::read()?)) {
                Action::Quit => return Ok(()),
                Action::Command(line) => {
                    let answer = ask(client, &line)?;
                    let said = answer.map(|_| line.clone());
                    model.said(said.unwrap_or_else(|refused| refused.to_string()));
                    break;
                }
                Action::None => {}
            }
        }
    }
}

/// Asks for all that is shown.
///
/// # Errors
/// When the connection fails.
fn refresh(client: &mut Client, model: &mut Model) -> Result<()> {
    let vms = ask(client, "vms")?.unwrap_or_default();
    let mut processes = Vec::new();
    for vm in vms.iter().filter_map(|vm| vm["vm"].as_str()) {
        // Refused for one that has never run.
        processes.extend(ask(client, &format!("ps {vm}"))?.unwrap_or_default());
    }
    let targets = ask(client, "targets")?.unwrap_or_default();
    let rules = ask(client, "rules")?.unwrap_or_default();
    model.update(&vms, &processes, &targets, &rules);
    while let Some(event) = client.event(Duration::ZERO)? {
        model.happened(&event);
    }
    Ok(())
}

/// Has a command carried out. That it is refused is no error here.
fn ask(client: &mut Client, line: &str) -> Result<std::result::Result<Vec<Value>, Refused>> {
    match client.command(line) {
        Ok(answer) => Ok(Ok(answer)),
        Err(error) => Ok(Err(error.downcast::<Refused>()?)),
    }
}

fn key(event: &Event) -> Key {
    let Event::Key(key) = event else {
        return Key::Other;
    };
    if key.kind != KeyEventKind::Press {
        return Key::Other;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('s') => Key::Suppress,
        KeyCode::Char('r') => Key::Release,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;
    use crate::detector::tests::fake;

    #[test]
    fn what_is_shown_is_asked_for_and_refusals_are_no_failures() -> Result<()> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut client = fake({
            let asked = asked.clone();
            move |request| {
                let command = request["command"].as_str().unwrap_or_default().to_owned();
                let answer = match command.as_str() {
                    "vms" => vec![
                        json!({"record": {"vm": "web", "state": "running"}}),
                        json!({"record": {"vm": "db", "state": "defined"}}),
                    ],
                    "ps web" => vec![json!({"record": {"vm": "web", "cr3": "0x1000"}})],
                    "ps db" => vec![json!({"error": "wrong_state", "message": "no"})],
                    _ => Vec::new(),
                };
                if let Ok(mut asked) = asked.lock() {
                    asked.push(command);
                }
                answer
            }
        })?;
        let mut model = Model::new(1000);
        refresh(&mut client, &mut model)?;
        let asked = asked.lock().map(|it| it.clone()).unwrap_or_default();
        assert_eq!(asked, ["vms", "ps web", "ps db", "targets", "rules"]);
        assert_eq!(
            model.press(Key::Suppress),
            Action::Command("suppress web 0x1000 1000".to_owned())
        );
        Ok(())
    }
}
