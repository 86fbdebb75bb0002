//! `bgb site backup` and `bgb site restore`: the database's copies.

use std::path::Path;

use bgb_site::backup::{BackupReport, backup};
use bgb_site::restore::{Former, Lost, RestoreOptions, RestoreReport, restore};
use bgb_site::{NamedFiles, SiteFolder, server_numbers};
use serde::Serialize;

use super::{failure, set_up_log};
use crate::figures::{Clock, counted, exact};
use crate::outcome::{Exit, Failure};
use crate::terminal::Terminal;

/// Names that a line shows; the former database has them all.
const NAMES_SHOWN: usize = 20;

/// What `site backup --json` tells.
#[derive(Serialize)]
struct Copied<'a> {
    file: &'a Path,
    bytes: u64,
    site: String,
    generation: String,
    head: Option<u64>,
}

/// What `site restore --json` tells.
#[derive(Serialize)]
struct Restored<'a> {
    site: String,
    generation: String,
    copy: &'a Path,
    head: Option<u64>,
    retake_since: u64,
    former: &'static str,
    former_unreadable: Option<&'a str>,
    kept: Option<&'a Path>,
    servers_added: Vec<u32>,
    lost: Option<LostOrders<'a>>,
}

/// What the former database had and the copy has not.
#[derive(Serialize)]
struct LostOrders<'a> {
    blocks: &'a [String],
    cancels: Vec<String>,
    tasks: u64,
    devices: u64,
}

pub(super) fn make(folder: &SiteFolder, to: &Path, terminal: &Terminal) -> Result<Exit, Failure> {
    // A log that cannot be written is no reason to go without a copy.
    let _log = set_up_log(folder).ok();
    let files = NamedFiles::of(folder).map_err(|error| failure(&error))?;
    let report = backup(&files.database, to).map_err(|error| failure(&error))?;
    let copied = Copied {
        file: &report.file,
        bytes: report.bytes,
        site: report.site.to_string(),
        generation: report.generation.to_string(),
        head: report.head.map(|head| head.0),
    };
    terminal.answer(&copied, || copied_in_words(&report))?;
    Ok(Exit::Done)
}

fn copied_in_words(report: &BackupReport) -> String {
    format!(
        "{} is a copy of the database of site {} ({}), whole and checked.\nKeep it on another machine. It holds no key: keep authority/, \
         keys/, manager/, servers/ and manager.toml of the site's folder as well, once, where nobody else can read them.",
        report.file.display(),
        report.site,
        counted(report.bytes, "byte", "bytes"),
    )
}

pub(super) fn put_back(folder: &SiteFolder, copy: &Path, terminal: &Terminal) -> Result<Exit, Failure> {
    if !copy.exists() {
        let why = "there is no such file; name a copy that `bgb site backup` made";
        return Err(Failure::new(Exit::NotFound, format!("{}: {why}", copy.display())));
    }
    let _log = set_up_log(folder).ok();
    let files = NamedFiles::of(folder).map_err(|error| failure(&error))?;
    let options = RestoreOptions {
        site: files.site,
        servers: server_numbers::configured(folder).map_err(|error| failure(&error))?,
        now: Clock::of_this_machine(true).now,
    };
    let report = restore(&files.database, copy, &options).map_err(|error| failure(&error))?;
    let (former, former_unreadable) = match &report.former {
        Former::Readable => ("readable", None),
        Former::Unreadable(why) => ("unreadable", Some(why.as_str())),
        Former::Missing => ("missing", None),
    };
    let restored = Restored {
        site: report.site.to_string(),
        generation: report.generation.to_string(),
        copy,
        head: report.head.map(|head| head.0),
        retake_since: report.retake_since.0,
        former,
        former_unreadable,
        kept: report.kept.as_deref(),
        servers_added: report.servers_added.iter().map(|server| server.0).collect(),
        lost: report.lost.as_ref().map(|lost| LostOrders {
            blocks: &lost.blocks,
            cancels: lost.cancels.iter().map(ToString::to_string).collect(),
            tasks: lost.tasks,
            devices: lost.devices,
        }),
    };
    terminal.answer(&restored, || restored_in_words(&report, folder, copy))?;
    Ok(Exit::Done)
}

/// A line for each kind of order that is lost.
fn lost_in_words(lost: &Lost) -> Vec<String> {
    let mut lines = Vec::new();
    if !lost.blocks.is_empty() {
        lines.push(format!("Blocked since: {}. `bgb device block` blocks each again.", names(&lost.blocks)));
    }
    if !lost.cancels.is_empty() {
        let tasks: Vec<_> = lost.cancels.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "Cancelled since, and active again: {}. `bgb task cancel` cancels each.",
            names(&tasks)
        ));
    }
    if lost.tasks > 0 || lost.devices > 0 {
        let (tasks, devices) =
            (counted(lost.tasks, "task", "tasks"), counted(lost.devices, "device", "devices"));
        lines.push(format!("Started since: {tasks}. Added since: {devices}."));
    }
    lines
}

/// Some of many.
fn names(all: &[String]) -> String {
    let shown = all.len().min(NAMES_SHOWN);
    let more =
        if all.len() > shown { format!(" and {} more (--json)", all.len() - shown) } else { String::new() };
    format!("{}{more}", all[..shown].join(", "))
}

fn restored_in_words(report: &RestoreReport, folder: &SiteFolder, copy: &Path) -> String {
    let as_of = report.head.map_or_else(String::new, |head| format!(", as of {}", exact(head)));
    let mut lines = vec![format!(
        "The database of site {} is restored from {}{as_of}; its generation is {} now.",
        report.site,
        copy.display(),
        report.generation
    )];
    match (&report.former, &report.kept) {
        (Former::Unreadable(why), Some(kept)) => {
            lines.push(format!("The former one could not be read ({why}); it lies in {}.", kept.display()));
        }
        (_, Some(kept)) => {
            lines.push(format!("The former one lies in {}; remove it when nobody needs it.", kept.display()));
        }
        (_, None) => lines.push("There was no database before.".to_owned()),
    }
    if !report.servers_added.is_empty() {
        let servers: Vec<_> = report.servers_added.iter().map(ToString::to_string).collect();
        lines.push(format!("Servers that were added since are known again: {}.", servers.join(", ")));
    }
    lines.push(format!(
        "\nStart the manager; servers and agents need nothing:\n  bgb-manager --config {}\nIt takes in again the results that came since \
         and lie in done, which keeps them for 48 h.\n\nTasks, cancels, blocks, devices, collections and policies that were ordered after \
         the copy was made are gone.\nOrder them again, blocks first: until then a device that was blocked since may sign in.",
        folder.manager_config().display()
    ));
    if let Some(lost) = &report.lost {
        lines.extend(lost_in_words(lost));
    }
    lines.join("\n")
}
