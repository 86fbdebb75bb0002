//! `bgb status`: the site's components, what waits, and what they have to say; `--roads`, how its devices come.

mod roads;

use bgb_protocol::api::{MessageRow, SiteStatus};
use bgb_protocol::status::Severity;
use comfy_table::Table;
use serde::Serialize;

use crate::arguments::{StatusArguments, WantedSeverity};
use crate::figures::{Clock, counted, duration, number};
use crate::manager::{ApiPath, Manager};
use crate::outcome::{Exit, Failure};
use crate::terminal::{Terminal, Tone, figure, lines_of, printable, signed, state, text};

/// What `status --json` tells.
#[derive(Serialize)]
struct Shown<'a> {
    status: &'a SiteStatus,
    messages: &'a [MessageRow],
}

/// Does what was typed.
///
/// # Errors
/// As the manager's answer.
pub(crate) fn run(
    arguments: &StatusArguments,
    manager: &Manager,
    terminal: &Terminal,
) -> Result<Exit, Failure> {
    if arguments.roads {
        return roads::run(arguments.networks, manager, terminal);
    }
    let status: SiteStatus = manager.fetch(&ApiPath::new(&["status"]))?;
    let path = ApiPath::new(&["messages"]).with("severity", severity_name(arguments.severity));
    let messages = match arguments.messages {
        0 => Vec::new(),
        most => manager.list::<MessageRow>(&path, Some(most))?.rows,
    };
    terminal.answer(&Shown { status: &status, messages: &messages }, || {
        let mut parts = vec![summary(&status), lines_of(&components(&status, terminal))];
        if !messages.is_empty() {
            parts.push(messages_in_words(&messages, terminal));
        }
        parts.join("\n\n")
    })?;
    Ok(Exit::Done)
}

fn severity_name(wanted: WantedSeverity) -> &'static str {
    match wanted {
        WantedSeverity::Informational => "informational",
        WantedSeverity::Warning => "warning",
        WantedSeverity::Error => "error",
    }
}

/// The site in a sentence or two.
fn summary(status: &SiteStatus) -> String {
    let devices = &status.devices;
    let mut text = format!(
        "Site {}: {} of {} online",
        status.site,
        number(devices.online),
        counted(devices.all, "device", "devices")
    );
    if devices.unknown > 0 {
        text.push_str(&format!(", {} unknown", number(devices.unknown)));
    }
    if devices.blocked > 0 {
        text.push_str(&format!(", {} blocked", number(devices.blocked)));
    }
    text.push('.');
    if status.inbox.files > 0 {
        text.push_str(&format!(" {} in the inbox.", counted(status.inbox.files, "file waits", "files wait")));
    }
    if status.inbox.set_aside > 0 {
        let files = counted(status.inbox.set_aside, "file is", "files are");
        text.push_str(&format!(" {files} set aside in bgb.box/bad; the messages say why."));
    }
    text
}

fn components(status: &SiteStatus, terminal: &Terminal) -> Table {
    let clock = Clock { now: status.time, utc: terminal.utc };
    let mut table = terminal.table(&["Component", "State", "Online", "Last heard of", "More"]);
    let manager = &status.manager;
    let (tone, word) = match manager.database_writable {
        true => (Tone::Good, "answers"),
        false => (Tone::Bad, "cannot write its database"),
    };
    table.add_row([
        text("manager"),
        state(tone, word),
        text(""),
        text("now"),
        text(format!("{}, up {}", manager.version, duration(status.time.since(manager.started)))),
    ]);
    for server in &status.servers {
        let (tone, word) = match (server.silent, server.last_seen) {
            (true, _) => (Tone::Bad, "silent"),
            (false, None) => (Tone::Faint, "never heard of"),
            (false, Some(_)) => (Tone::Good, "writes"),
        };
        let full = server.last_full.map_or_else(
            || "no full online list yet".to_owned(),
            |time| format!("full online list {}", clock.show(time)),
        );
        table.add_row([
            text(format_args!("server {}", server.server)),
            state(tone, word),
            figure(server.online),
            text(clock.show_some(server.last_seen)),
            text(full),
        ]);
    }
    table
}

/// Messages, two lines each: who, when and about what; and below it the sentence, which may be long.
fn messages_in_words(rows: &[MessageRow], terminal: &Terminal) -> String {
    let clock = terminal.clock();
    let lines = rows.iter().map(|row| {
        let message = &row.message;
        let tone = match message.severity {
            Severity::Informational => Tone::Faint,
            Severity::Warning => Tone::Warn,
            Severity::Error => Tone::Bad,
        };
        let severity = terminal.paint(tone, signed(tone, message.severity));
        let about = if message.about.is_empty() { String::new() } else { format!(" · {}", message.about) };
        let (when, component, id) = (clock.show(message.time), message.component, message.id);
        printable(&format!("{severity} {id} {component} · {when}{about}\n    {}", message.text))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use bgb_protocol::api::{DeviceCounts, InboxStatus, ManagerStatus, ServerStatus};
    use bgb_protocol::ids::{ServerId, UnixMillis};
    use bgb_protocol::status::StatusId;

    use super::*;

    fn status() -> SiteStatus {
        SiteStatus {
            site: "LAB".parse().unwrap(),
            generation: "00".repeat(16),
            time: UnixMillis(1_000_000),
            manager: ManagerStatus {
                version: "0.1.0".to_owned(),
                started: UnixMillis(880_000),
                database_writable: true,
                head: None,
            },
            servers: vec![ServerStatus {
                server: ServerId(1),
                epoch: None,
                last_seen: Some(UnixMillis(958_000)),
                last_full: None,
                online: 987,
                silent: false,
            }],
            devices: DeviceCounts { all: 1_204, online: 987, unknown: 0, blocked: 2 },
            inbox: InboxStatus { files: 0, bytes: 0, set_aside: 1 },
        }
    }

    #[test]
    fn a_site_is_summed_up_in_a_sentence() {
        assert_eq!(
            summary(&status()),
            "Site LAB: 987 of 1,204 devices online, 2 blocked. 1 file is set aside in bgb.box/bad; the messages say why."
        );
    }

    #[test]
    fn each_component_has_its_state_and_since_when() {
        let shown = lines_of(&components(&status(), &Terminal::plain()));
        assert!(shown.contains("0.1.0, up 2 min"), "{shown}");
        assert!(shown.contains("server 1   ● writes      987  42 s ago"), "{shown}");
    }

    #[test]
    fn a_message_keeps_its_id_as_it_is_searched_for() {
        let message = StatusId::FileSetAside.message(UnixMillis(0), "1/x.BTS", "It is torn.");
        let rows = [MessageRow { number: 1, message }];
        let mut terminal = Terminal::plain();
        terminal.utc = true;
        assert_eq!(
            messages_in_words(&rows, &terminal),
            "✗ error 2020 SMS_NOTIFICATION_MANAGER · 1970-01-01T00:00:00Z · 1/x.BTS\n    It is torn."
        );
    }
}
