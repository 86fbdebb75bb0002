//! `bgb collection`: create, add, rm, ls, show.

use bgb_protocol::api::{
    ChangeMembers, CollectionRow, CreateCollection, DeviceRow, MEMBERS_PER_REQUEST_MAX, MembersChanged,
};
use comfy_table::Table;

use crate::arguments::CollectionCommand;
use crate::command::device;
use crate::figures::{counted, number};
use crate::manager::{ApiPath, Manager};
use crate::outcome::{Exit, Failure};
use crate::terminal::{Terminal, figure, lines_of, text};

/// Does what was typed.
///
/// # Errors
/// As the manager's answer.
pub(crate) fn run(
    command: CollectionCommand,
    manager: &Manager,
    terminal: &Terminal,
) -> Result<Exit, Failure> {
    match command {
        CollectionCommand::Create(name) => {
            let made: CollectionRow =
                manager.post(&ApiPath::new(&["collections"]), &CreateCollection { name: name.collection })?;
            terminal.answer(&made, || {
                format!("Collection {} is there. Fill it with: bgb collection add {0:?} DEVICE…", made.name)
            })?;
        }
        CollectionCommand::Add(members) => {
            let changed = change(manager, &members.collection, &members.devices, Change::Add)?;
            terminal.answer(&changed, || changed_sentence(&changed))?;
        }
        CollectionCommand::Rm(members) => {
            let changed = change(manager, &members.collection, &members.devices, Change::Remove)?;
            terminal.answer(&changed, || changed_sentence(&changed))?;
        }
        CollectionCommand::Ls => {
            let listed = manager.list::<CollectionRow>(&ApiPath::new(&["collections"]), None)?;
            terminal.answer(&listed.rows, || lines_of(&table(&listed.rows, terminal)))?;
        }
        CollectionCommand::Show(show) => {
            let row: CollectionRow = manager.fetch(&ApiPath::new(&["collections", &show.collection]))?;
            let path = ApiPath::new(&["collections", &show.collection, "members"]);
            let listed = manager.list::<DeviceRow>(&path, show.rows.most())?;
            let value = serde_json::json!({ "collection": row, "members": listed.rows });
            terminal.answer(&value, || {
                let members = lines_of(&device::table(&listed.rows, terminal));
                format!(
                    "{}: {}, {} online\n\n{members}",
                    row.name,
                    counted(row.members, "device", "devices"),
                    number(row.online)
                )
            })?;
            if listed.more {
                terminal.remark("There are more; --limit N shows more of them, --all every one.");
            }
        }
    }
    Ok(Exit::Done)
}

/// Into a collection or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Into it.
    Add,
    /// Out of it.
    Remove,
}

/// Changes a collection's members, in as many requests as it takes.
///
/// # Errors
/// As the manager's answer; what earlier requests changed stays changed.
pub(crate) fn change(
    manager: &Manager,
    collection: &str,
    devices: &[String],
    change: Change,
) -> Result<MembersChanged, Failure> {
    let mut total: Option<MembersChanged> = None;
    for chunk in devices.chunks(MEMBERS_PER_REQUEST_MAX) {
        let body = match change {
            Change::Add => ChangeMembers { add: chunk.to_vec(), remove: Vec::new() },
            Change::Remove => ChangeMembers { add: Vec::new(), remove: chunk.to_vec() },
        };
        let mut answer: MembersChanged =
            manager.post(&ApiPath::new(&["collections", collection, "members"]), &body)?;
        if let Some(before) = total {
            answer.added += before.added;
            answer.removed += before.removed;
        }
        total = Some(answer);
    }
    total.ok_or_else(|| Failure::usage("name one device at least"))
}

fn changed_sentence(changed: &MembersChanged) -> String {
    format!(
        "{}: {} added, {} removed, {} in it now.",
        changed.collection.name,
        number(changed.added),
        number(changed.removed),
        counted(changed.collection.members, "device", "devices")
    )
}

fn table(rows: &[CollectionRow], terminal: &Terminal) -> Table {
    let mut table = terminal.table(&["Collection", "Devices", "Online", ""]);
    for row in rows {
        let remark = if row.built_in { "always there" } else { "" };
        table.add_row([text(&row.name), figure(row.members), figure(row.online), text(remark)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, members: u64, online: u64) -> CollectionRow {
        CollectionRow { name: name.to_owned(), members, online, built_in: name == "all" }
    }

    #[test]
    fn collections_are_shown_with_how_many_are_online() {
        let rows = [row("all", 1_204, 987), row("Finance laptops", 5, 4)];
        let shown = lines_of(&table(&rows, &Terminal::plain()));
        assert!(shown.contains("all                1,204     987  always there"), "{shown}");
        assert!(shown.ends_with("Finance laptops        5       4"), "{shown}");
    }

    #[test]
    fn a_change_is_told_in_a_sentence() {
        let changed = MembersChanged { added: 5, removed: 0, collection: row("Demo", 1, 0) };
        assert_eq!(changed_sentence(&changed), "Demo: 5 added, 0 removed, 1 device in it now.");
    }
}
