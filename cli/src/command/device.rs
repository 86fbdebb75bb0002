//! `bgb device`: add, list, show, block.
//!
//! A new device's private key is in the manager's answer and nowhere else: so the folder that takes it is made before
//! the manager is asked, and what was written stays when something fails behind it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bgb_daemon::secret;
use bgb_protocol::api::{
    AddDevice, AddDevices, Connectivity, DEVICES_PER_REQUEST_MAX, DeviceBundle, DeviceBundles, DeviceDetails,
    DeviceRow, Membership,
};
use bgb_protocol::message::RoadTaken;
use comfy_table::{Cell, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::arguments::{DeviceAdd, DeviceCommand, DeviceLs, WantedConnectivity};
use crate::figures::{Clock, counted};
use crate::manager::{ApiPath, Manager};
use crate::outcome::{Exit, Failure};
use crate::road::{road_in_words, taken_in_words};
use crate::terminal::{Terminal, Tone, lines_of, name_number, state, text};

/// A device's folder holds its key: it is its owner's alone.
const FOLDER_MODE: u32 = 0o700;
/// What else is in it may be read by whoever is let in, and written by its owner alone.
const READABLE_MODE: u32 = 0o644;

/// Does what was typed.
///
/// # Errors
/// As the manager's answer, or the file system's.
pub(crate) fn run(command: DeviceCommand, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    match command {
        DeviceCommand::Add(add) => match add.count {
            None => add_one(&add, manager, terminal),
            Some(count) => add_many(&add, count, manager, terminal),
        },
        DeviceCommand::Ls(ls) => list(&ls, manager, terminal),
        DeviceCommand::Show(name) => {
            let device: DeviceDetails = manager.fetch(&ApiPath::new(&["devices", &name.device]))?;
            terminal.answer(&device, || details(&device, terminal))?;
            Ok(Exit::Done)
        }
        DeviceCommand::Block(name) => set_blocked(&name.device, true, manager, terminal),
        DeviceCommand::Unblock(name) => set_blocked(&name.device, false, manager, terminal),
    }
}

/// What `device add --json` tells of a device; its key stays in its folder.
#[derive(Serialize)]
struct Added<'a> {
    number: u32,
    guid: String,
    name: &'a str,
    folder: &'a Path,
}

impl<'a> Added<'a> {
    fn new(bundle: &'a DeviceBundle, folder: &'a Path) -> Self {
        Self { number: bundle.number.0, guid: bundle.guid.to_string(), name: &bundle.name, folder }
    }
}

fn add_one(add: &DeviceAdd, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let folder = add.out.clone().unwrap_or_else(|| PathBuf::from(&add.name));
    let made = make_folder(&folder)?;
    let bundle: DeviceBundle =
        match manager.post(&ApiPath::new(&["devices"]), &AddDevice { name: add.name.clone() }) {
            Ok(bundle) => bundle,
            Err(failure) => {
                remove_empty(&folder, made);
                return Err(failure);
            }
        };
    write_bundle(&folder, &bundle)?;
    if terminal.json {
        terminal.put_json(&Added::new(&bundle, &folder))?;
    }
    terminal.say(format_args!(
        "Device {} has number {}. Its key is in {} and nowhere else: take the folder to the machine and run there\n  \
         bgb-agent --config {}",
        bundle.name,
        bundle.number,
        folder.display(),
        folder.join("agent.toml").display()
    ))?;
    Ok(Exit::Done)
}

fn add_many(add: &DeviceAdd, count: u32, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let parent = add.out.clone().unwrap_or_else(|| PathBuf::from("."));
    fs::create_dir_all(&parent).map_err(|error| cannot_make(&parent, &error))?;
    let names: Vec<String> = bulk_names(&add.name, count);
    let bar = bar(terminal, u64::from(count));
    let mut unwritten: Vec<(String, Failure)> = Vec::new();
    for chunk in names.chunks(DEVICES_PER_REQUEST_MAX) {
        let folders: Vec<PathBuf> = chunk.iter().map(|name| parent.join(name)).collect();
        for (index, folder) in folders.iter().enumerate() {
            if let Err(failure) = make_folder(folder) {
                folders[..index].iter().for_each(|folder| remove_empty(folder, true));
                return Err(failure);
            }
        }
        let answer = manager.post(&ApiPath::new(&["devices", "bulk"]), &AddDevices { names: chunk.to_vec() });
        let DeviceBundles { devices } = match answer {
            Ok(bundles) => bundles,
            Err(failure) => {
                folders.iter().for_each(|folder| remove_empty(folder, true));
                return Err(failure);
            }
        };
        for (folder, bundle) in folders.iter().zip(&devices) {
            // The site has the whole request's devices by now: one that cannot be written must not cost the others their keys.
            if let Err(failure) = write_bundle(folder, bundle) {
                unwritten.push((bundle.name.clone(), failure));
                continue;
            }
            if terminal.json {
                terminal.put_json(&Added::new(bundle, folder))?;
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if let Some((first, why)) = unwritten.first() {
        let names: Vec<&str> = unwritten.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Failure::failed(format!(
            "{first}: {why}; the site has these devices, and their keys are nowhere: {}. Block them and add them under other \
             names when that is mended",
            names.join(", ")
        )));
    }
    let added = counted(u64::from(count), "device has", "devices have");
    terminal.say(format_args!(
        "{added} been added. Each folder in {} is for one machine; run there: bgb-agent --config FOLDER/agent.toml",
        parent.display()
    ))?;
    Ok(Exit::Done)
}

/// `NAME-0001` and so on, as wide as the last number needs and four digits at least.
fn bulk_names(name: &str, count: u32) -> Vec<String> {
    let width = count.to_string().len().max(4);
    (1..=count).map(|number| format!("{name}-{number:0width$}")).collect()
}

/// Makes the folder, or takes an empty one; says whether it was made here.
///
/// # Errors
/// When it cannot be made, or is not empty.
pub(crate) fn make_folder(folder: &Path) -> Result<bool, Failure> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(FOLDER_MODE);
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(|error| cannot_make(parent, &error))?;
    }
    match builder.create(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let mut entries = fs::read_dir(folder).map_err(|error| cannot_make(folder, &error))?;
            match entries.next() {
                None => Ok(false),
                Some(_) => Err(Failure::new(
                    Exit::Conflict,
                    format!(
                        "{} is not empty, and keys are never overwritten; name another folder with --out",
                        folder.display()
                    ),
                )),
            }
        }
        Err(error) => Err(cannot_make(folder, &error)),
    }
}

fn cannot_make(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!(
        "{}: the folder cannot be made: {error}; name another with --out",
        folder.display()
    ))
}

fn remove_empty(folder: &Path, made_here: bool) {
    if made_here {
        // An empty folder that stays behind does no harm.
        let _ = fs::remove_dir(folder);
    }
}

/// Writes a file that nobody but its owner may write, whatever the umask: an agent refuses another's configuration.
fn write_readable(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(READABLE_MODE).open(path)?;
    file.write_all(content.as_bytes())
}

/// Writes a device's folder: everything that its agent needs.
///
/// # Errors
/// When a file cannot be written; the device is in the site by then, which the message says.
pub(crate) fn write_bundle(folder: &Path, bundle: &DeviceBundle) -> Result<(), Failure> {
    let unwritten = |what: String| {
        Failure::failed(format!(
            "device {} (number {}) is in the site, but its folder could not be written: {what}; its key is lost: block \
             it with `bgb device block {}`, then add one with another name",
            bundle.name, bundle.number, bundle.number
        ))
    };
    secret::write_new(&folder.join("device.key"), bundle.key_pem.as_bytes())
        .map_err(|error| unwritten(error.to_string()))?;
    for (name, content) in [
        ("device.pem", &bundle.certificate_pem),
        ("authority.pem", &bundle.authority_pem),
        ("agent.toml", &bundle.agent_toml),
    ] {
        let path = folder.join(name);
        write_readable(&path, content).map_err(|error| unwritten(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

fn bar(terminal: &Terminal, length: u64) -> ProgressBar {
    let shown = terminal.watched && !terminal.quiet;
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("adding devices {bar:32} {human_pos}/{human_len} {eta}")
        .expect("the template is a constant that a test has drawn");
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}

fn list(ls: &DeviceLs, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut path = ApiPath::new(&["devices"]);
    if let Some(name) = &ls.name {
        path = path.with("name", name);
    }
    if let Some(wanted) = ls.connectivity {
        path = path.with("connectivity", connectivity_name(wanted));
    }
    let listed = manager.list::<DeviceRow>(&path, ls.rows.most())?;
    terminal.answer(&listed.rows, || {
        if listed.rows.is_empty() {
            "No devices. Add one with: bgb device add NAME".to_owned()
        } else {
            lines_of(&table(&listed.rows, terminal))
        }
    })?;
    if listed.more {
        terminal.remark("There are more; --limit N shows more of them, --all every one.");
    }
    Ok(Exit::Done)
}

fn connectivity_name(wanted: WantedConnectivity) -> &'static str {
    match wanted {
        WantedConnectivity::Online => "online",
        WantedConnectivity::Offline => "offline",
        WantedConnectivity::Unknown => "unknown",
        WantedConnectivity::Never => "never",
    }
}

/// Devices as a table.
pub(crate) fn table(rows: &[DeviceRow], terminal: &Terminal) -> Table {
    let clock = terminal.clock();
    let mut table =
        terminal.table(&["Number", "Name", "State", "Since", "Server", "Address", "Road", "Agent"]);
    for row in rows {
        table.add_row([
            name_number(row.number.0),
            text(&row.name),
            device_state(row.connectivity, row.membership),
            text(clock.show_some(row.since)),
            text(row.server.map_or_else(dash, |server| server.to_string())),
            text(row.address.clone().unwrap_or_else(dash)),
            text(row.road.as_ref().map_or_else(dash, road_of)),
            text(row.agent_version.clone().unwrap_or_else(dash)),
        ]);
    }
    table
}

/// The road alone: the reason is shown with the device, and its line is long.
fn road_of(taken: &RoadTaken) -> String {
    road_in_words(taken.road, taken.outer_tls, taken.proxied)
}

/// A device's state as a cell.
pub(crate) fn device_state(connectivity: Connectivity, membership: Membership) -> Cell {
    match (membership, connectivity) {
        (Membership::Blocked, _) => state(Tone::Bad, "blocked"),
        (Membership::Waiting, _) => state(Tone::Plain, "waits for approval"),
        (Membership::Active, Connectivity::Online) => state(Tone::Good, "online"),
        (Membership::Active, Connectivity::Unknown) => state(Tone::Warn, "unknown"),
        (Membership::Active, word) => state(Tone::Faint, word),
    }
}

fn dash() -> String {
    "–".to_owned()
}

/// One device, a line for each thing that is known of it.
fn details(device: &DeviceDetails, terminal: &Terminal) -> String {
    let clock = terminal.clock();
    let row = &device.row;
    let mut table = terminal.table(&["Device", &row.name]);
    let mut line = |head: &str, value: String| {
        table.add_row([text(head), text(value)]);
    };
    line("Number", row.number.to_string());
    line("GUID", row.guid.to_string());
    line("State", device_state(row.connectivity, row.membership).content());
    line("Last online", clock.show_some(device.last_online));
    line("Last offline", clock.show_some(device.last_offline));
    line("Server", row.server.map_or_else(dash, |server| server.to_string()));
    line("Address", row.address.clone().unwrap_or_else(dash));
    line("Road", row.road.as_ref().map_or_else(dash, taken_in_words));
    line("Agent", row.agent_version.clone().unwrap_or_else(dash));
    line("Platform", device.platform.clone().unwrap_or_else(dash));
    line("Host name", device.hostname.clone().unwrap_or_else(dash));
    line("Clock", device.clock_skew_ms.map_or_else(dash, clock_skew));
    line("Policy version", device.policy_version.map_or_else(dash, |version| version.to_string()));
    line("Collections", device.collections.join(", "));
    for certificate in &device.certificates {
        line("Certificate", certificate_line(certificate, &clock));
    }
    let inventory = if device.inventory.is_some() { "there: see --json" } else { "none yet" };
    line("Inventory", inventory.to_owned());
    lines_of(&table)
}

fn clock_skew(millis: i64) -> String {
    let off = crate::figures::duration(millis.unsigned_abs());
    match millis {
        -999..=999 => "right".to_owned(),
        1000.. => format!("{off} fast"),
        _ => format!("{off} slow"),
    }
}

fn certificate_line(certificate: &bgb_protocol::api::CertificateRow, clock: &Clock) -> String {
    let short: String = certificate.fingerprint.chars().take(16).collect();
    let ends = if certificate.revoked {
        "revoked".to_owned()
    } else {
        format!("ends {}", clock.show(certificate.valid_until))
    };
    format!("{short}… {ends}")
}

fn set_blocked(device: &str, blocked: bool, manager: &Manager, terminal: &Terminal) -> Result<Exit, Failure> {
    let verb = if blocked { "block" } else { "unblock" };
    let answer: serde_json::Value = manager.post_empty(&ApiPath::new(&["devices", device, verb]))?;
    if terminal.json {
        terminal.put_json(&answer)?;
    }
    terminal.say(match blocked {
        true => format!("{device} is blocked: its session ends within seconds, and it may not sign in."),
        false => format!("{device} may sign in again."),
    })?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use bgb_protocol::ids::{DeviceGuid, DeviceId, ServerId};

    use super::*;

    fn row(number: u32, connectivity: Connectivity, membership: Membership) -> DeviceRow {
        DeviceRow {
            number: DeviceId(number),
            guid: DeviceGuid::from_bytes([1; 16]),
            name: format!("pc-{number}"),
            membership,
            connectivity,
            since: None,
            server: Some(ServerId(1)),
            address: None,
            road: Some(RoadTaken::tcp()),
            agent_version: Some("0.1.0".to_owned()),
        }
    }

    fn bundle() -> DeviceBundle {
        DeviceBundle {
            number: DeviceId(3),
            guid: DeviceGuid::from_bytes([3; 16]),
            name: "pc-3".to_owned(),
            certificate_pem: "certificate".to_owned(),
            key_pem: "key".to_owned(),
            authority_pem: "authority".to_owned(),
            task_keys: Vec::new(),
            servers: Vec::new(),
            agent_toml: "site = \"LAB\"".to_owned(),
        }
    }

    #[test]
    fn a_devices_state_has_a_sign_and_a_word() {
        let rows = [
            row(1, Connectivity::Online, Membership::Active),
            row(1_000, Connectivity::Never, Membership::Active),
            row(3, Connectivity::Online, Membership::Blocked),
        ];
        let shown = lines_of(&table(&rows, &Terminal::plain()));
        for expected in [
            "     1  pc-1     ● online",
            "–        TCP   0.1.0",
            "  1000  pc-1000  ○ never seen",
            "✗ blocked",
        ] {
            assert!(shown.contains(expected), "{expected:?} in\n{shown}");
        }
    }

    #[test]
    fn names_in_bulk_sort_as_they_count() {
        assert_eq!(bulk_names("pc", 2), ["pc-0001", "pc-0002"]);
        assert_eq!(bulk_names("pc", 10_000).last().map(String::as_str), Some("pc-10000"));
        assert_eq!(bulk_names("pc", 10_000)[0], "pc-00001");
    }

    #[test]
    fn a_bundle_is_written_with_its_key_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("deep/pc-3");
        assert!(make_folder(&folder).unwrap());
        write_bundle(&folder, &bundle()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("device.key"))), (0o700, 0o600));
        assert_eq!(fs::read_to_string(folder.join("agent.toml")).unwrap(), "site = \"LAB\"");
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!make_folder(folder.path()).unwrap());
        fs::write(folder.path().join("device.key"), "old").unwrap();
        assert_eq!(make_folder(folder.path()).unwrap_err().exit(), Exit::Conflict);
    }

    #[test]
    fn a_key_that_could_not_be_kept_is_told_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("device.key"), "old").unwrap();
        let failure = write_bundle(folder.path(), &bundle()).unwrap_err();
        assert!(failure.to_string().contains("bgb device block 3"), "{failure}");
    }

    #[test]
    fn a_clock_is_right_fast_or_slow() {
        assert_eq!([0, 90_000, -7_200_000].map(clock_skew), ["right", "1 min fast", "2 h slow"]);
    }
}
