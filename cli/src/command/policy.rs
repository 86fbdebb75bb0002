//! `bgb policy`: set, show, ls.
//!
//! A document is checked here before it is sent, by the same code that the devices use, so that a slip is told at once.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use bgb_protocol::api::{PolicyRow, PutPolicy};
use bgb_protocol::policy::{DOCUMENT_BYTES_MAX, PolicySettings};
use comfy_table::{Cell, CellAlignment, Table};

use crate::arguments::{PolicyCommand, PolicySet};
use crate::figures::{counted, number};
use crate::manager::{ApiPath, Manager};
use crate::outcome::{Exit, Failure};
use crate::terminal::{Terminal, figure, lines_of, text};

/// Does what was typed.
///
/// # Errors
/// As the manager's answer; when the file cannot be read or is no policy.
pub(crate) fn run(command: PolicyCommand, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    match command {
        PolicyCommand::Set(set) => {
            let row = issue(&set, manager)?;
            terminal.answer(&row, || issued_sentence(&row))?;
        }
        PolicyCommand::Show(name) => {
            let row: PolicyRow = manager.fetch(&ApiPath::new(&["policies", &name.name]))?;
            terminal.answer(&row, || {
                let settings =
                    serde_json::to_string_pretty(&row.settings).expect("settings are plain values");
                format!("{}\n{settings}", lines_of(&table(std::slice::from_ref(&row), terminal)))
            })?;
        }
        PolicyCommand::Ls => {
            let listed = manager.list::<PolicyRow>(&ApiPath::new(&["policies"]), None)?;
            terminal.answer(&listed.rows, || {
                if listed.rows.is_empty() {
                    "No policy documents: devices go by their defaults. Issue one with: bgb policy set NAME --file \
                     FILE.json"
                        .to_owned()
                } else {
                    lines_of(&table(&listed.rows, terminal))
                }
            })?;
        }
    }
    Ok(Exit::Done)
}

fn issue(set: &PolicySet, manager: &Manager) -> Result<PolicyRow, Failure> {
    let settings = read_settings(&set.file)?;
    let body = PutPolicy { priority: set.priority, collection: set.collection.clone(), settings };
    manager.put(&ApiPath::new(&["policies", &set.name]), &body)
}

fn read_settings(file: &Path) -> Result<PolicySettings, Failure> {
    let mut json = String::new();
    // One byte over the limit is enough to see that it is over it.
    let limit = DOCUMENT_BYTES_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_string(&mut json)
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_string(&mut json))
    };
    read.map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("{}: cannot be read: {error}", file.display()))
    })?;
    PolicySettings::parse(&json).map_err(|error| {
        Failure::usage(format!("{}: {error}; `bgb policy set --help` shows an example", file.display()))
    })
}

fn issued_sentence(row: &PolicyRow) -> String {
    format!(
        "{} is issued as version {}, for {}. Devices apply it when they next ask, within an hour; at once with: bgb task \
         start download-policy --collection {:?}",
        row.name,
        number(row.version),
        audience(row),
        row.collection.as_deref().unwrap_or("all")
    )
}

fn audience(row: &PolicyRow) -> String {
    match (&row.collection, row.devices) {
        (Some(collection), Some(devices)) => {
            format!("{} of {collection}", counted(devices, "device", "devices"))
        }
        _ => "every device".to_owned(),
    }
}

fn table(rows: &[PolicyRow], terminal: &Terminal) -> Table {
    let clock = terminal.clock();
    let mut table = terminal.table(&["Policy", "Version", "Priority", "For", "Issued"]);
    for row in rows {
        table.add_row([
            text(&row.name),
            figure(row.version),
            Cell::new(row.priority).set_alignment(CellAlignment::Right),
            text(audience(row)),
            text(clock.show(row.issued)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use bgb_protocol::ids::UnixMillis;

    use super::*;

    fn settings(text: &str) -> Result<PolicySettings, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        std::fs::write(&path, text).unwrap();
        read_settings(&path)
    }

    #[test]
    fn a_document_is_judged_before_it_is_sent() {
        assert_eq!(settings(r#"{"keepalive_seconds": 60}"#).unwrap().keepalive_seconds, Some(60));
        let failure = settings(r#"{"keepalive_seconds": 1}"#).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("keepalive_seconds"), "{failure}");
        let long = format!(r#"{{"servers": ["{}:1"]}}"#, "a".repeat(DOCUMENT_BYTES_MAX));
        assert!(settings(&long).unwrap_err().to_string().contains("the limit is"));
        assert_eq!(read_settings(Path::new("/nonexistent.json")).unwrap_err().exit(), Exit::NotFound);
    }

    #[test]
    fn a_document_without_a_collection_is_for_everyone() {
        let row = PolicyRow {
            name: "base".to_owned(),
            version: 7,
            priority: -3,
            collection: None,
            devices: None,
            issued: UnixMillis(0),
            settings: PolicySettings::default(),
        };
        assert!(issued_sentence(&row).contains("for every device"));
        let laptops = PolicyRow { collection: Some("Laptops".to_owned()), devices: Some(1), ..row };
        let shown = lines_of(&table(&[laptops], &Terminal::plain()));
        assert!(shown.contains("1 device of Laptops") && shown.contains("-3"), "{shown}");
    }
}
