//! The command line: what can be typed, and its help.
//!
//! It says how words become values and no more; what they do is in `command/`. A value that can be judged alone (a
//! duration, a site code, an action) is judged here, so that a slip ends with exit code 2 and nothing has happened.

use std::net::SocketAddr;
use std::path::PathBuf;

use bgb_protocol::action::Action;
use bgb_protocol::api::PAGE_MAX;
use bgb_protocol::ids::{SiteCode, TaskId};
use bgb_protocol::state::TaskState;
use bgb_protocol::task::{VALIDITY_MS_MAX, VALIDITY_MS_MIN};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::figures::parse_duration;
use crate::outcome::EXIT_CODES;

/// Rows that a list shows unless told otherwise: what scrolls by, and not what fills a disk.
pub(crate) const ROWS_DEFAULT: usize = 1_000;

/// Client notification for fleets: ask online machines for something now, and hear from each.
///
/// A site is a folder with a database, an authority for certificates and an inbox. `bgb site` makes, checks and restores
/// it; all other commands ask the site's manager over its API on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "bgb",
    version,
    propagate_version = true,
    after_help = EXIT_CODES,
    after_long_help = long_help(),
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

fn long_help() -> String {
    format!(
        "{EXIT_CODES}\n\nExamples:\n  bgb demo                                       a site with five agents on this \
         machine\n  bgb site init lab --code LAB --server-address bgb.example.org:10123\n  bgb --site lab device add \
         pc-17 --out pc-17\n  bgb --site lab task start quick-scan --collection \"Finance laptops\" --watch\n  bgb \
         --site lab task ls --json"
    )
}

/// What every command takes.
#[derive(Args, Debug)]
pub(crate) struct Globals {
    /// The site's folder; BGB_SITE names it too, else it is the present folder
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub(crate) site: Option<PathBuf>,
    /// The manager's API instead, such as http://127.0.0.1:10124
    #[arg(
        long,
        global = true,
        value_name = "URL",
        requires = "token_file",
        conflicts_with = "site",
        help_heading = "Everywhere"
    )]
    pub(crate) api: Option<String>,
    /// The file with the API's token, beside --api
    #[arg(long, global = true, value_name = "FILE", requires = "api", help_heading = "Everywhere")]
    pub(crate) token_file: Option<PathBuf>,
    /// JSON for programs: one document, or one a line where it goes on; errors too
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Exact times in UTC instead of "2 min ago"
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) utc: bool,
    /// Only what was asked for: no progress, no remarks
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a site, check it, copy and restore its database (works when nothing runs)
    #[command(subcommand)]
    Site(SiteCommand),
    /// Devices: add, list, block
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Collections of devices
    #[command(subcommand)]
    Collection(CollectionCommand),
    /// Policy documents: what the site sets for its devices
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Tasks: ask devices for something, and watch them answer
    #[command(subcommand)]
    Task(TaskCommand),
    /// The site's components, what waits, and what they have to say; which devices are not on TCP, and why
    #[command(after_help = "\
Examples:
  bgb status --severity warning
  bgb status --roads                 networks in which devices are not on TCP come first")]
    Status(StatusArguments),
    /// Files that servers write: online lists, results, status messages
    #[command(subcommand)]
    Files(FilesCommand),
    /// A whole site with agents on this machine, to see how it works
    Demo(DemoArguments),
    /// Start a program that ends when its parent does
    #[command(hide = true)]
    Launch(LaunchArguments),
}

/// `bgb site …`
#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Make a new site in a folder: authority, keys, database, inbox, configuration
    #[command(after_help = "Example:\n  bgb site init lab --code LAB --server-address bgb.example.org:10123")]
    Init(SiteInit),
    /// Add a notification server: its certificate and its configuration
    #[command(after_help = "Example:\n  bgb site server-add lab --server-address bgb2.example.org:10123")]
    ServerAdd(SiteServerAdd),
    /// Prove that the database, its counts and the folder's files are sound
    Check(SiteCheck),
    /// Copy the database to a file, also while the manager runs
    #[command(after_help = "\
The copy is whole, checked and on disk when this is done; a file that is there is never overwritten. It holds no key: keep
the other files of the site's folder apart, once.

Example:
  bgb --site lab site backup /mnt/copies/lab-$(date +%F).db")]
    Backup(SiteCopy),
    /// Put a copy in the place of the database; the manager must be stopped
    #[command(after_help = "\
The former database is kept beside the new one, and the copy stays as it is. Servers may go on: they read everything anew.
Results that came after the copy was made are taken in again, as far back as done has them (48 h). Tasks, cancels, blocks,
devices, collections and policies that were ordered after it are gone: order them again.

Example:
  bgb --site lab site restore /mnt/copies/lab-2026-11-25.db")]
    Restore(SiteCopy),
}

/// `bgb site init`
#[derive(Args, Debug)]
pub(crate) struct SiteInit {
    /// The new site's folder; it must not exist, or be empty
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// The site's code: three characters of A-Z and 0-9
    #[arg(long, value_name = "CODE")]
    pub(crate) code: SiteCode,
    /// Where agents reach the notification server, host:port; may be repeated for further names of it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10123", value_parser = parse_address)]
    pub(crate) server_address: Vec<String>,
    /// Where the server listens; every address of its machine, with the port above, unless named
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) server_listen: Option<SocketAddr>,
    /// Where the server's metrics and health are answered: a loopback address
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10125")]
    pub(crate) server_admin: SocketAddr,
    /// Where the manager's API listens: a loopback address
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10124")]
    pub(crate) manager_listen: SocketAddr,
    /// Where the manager's metrics and health are answered: a loopback address
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10126")]
    pub(crate) manager_admin: SocketAddr,
}

/// `bgb site server-add`
#[derive(Args, Debug)]
pub(crate) struct SiteServerAdd {
    /// The site's folder; that of --site, BGB_SITE or the present one unless named
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Where agents reach the server, host:port; may be repeated for further names of it
    #[arg(long, value_name = "HOST:PORT", required = true, value_parser = parse_address)]
    pub(crate) server_address: Vec<String>,
    /// Where the server listens; every address of its machine, with the port above, unless named
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) server_listen: Option<SocketAddr>,
    /// Where the server's metrics and health are answered: a loopback address
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10125")]
    pub(crate) server_admin: SocketAddr,
}

/// `bgb site check`
#[derive(Args, Debug)]
pub(crate) struct SiteCheck {
    /// The site's folder; that of --site, BGB_SITE or the present one unless named
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}

/// `bgb site backup`, `bgb site restore`
#[derive(Args, Debug)]
pub(crate) struct SiteCopy {
    /// The copy
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// `bgb device …`
#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Add a device: writes the folder that its agent needs
    #[command(after_help = "\
The folder holds agent.toml, device.pem, device.key (keep it secret: it is nowhere else) and authority.pem. Take it to
the machine and run there: bgb-agent --config FOLDER/agent.toml

Examples:
  bgb device add pc-17 --out /media/stick/pc-17
  bgb device add pc --count 200 --out bundles        writes bundles/pc-0001 to bundles/pc-0200")]
    Add(DeviceAdd),
    /// List devices, by number
    Ls(DeviceLs),
    /// Show one device
    Show(DeviceName),
    /// Block a device: its session ends and it may not sign in
    Block(DeviceName),
    /// Let a blocked device sign in again
    Unblock(DeviceName),
}

/// `bgb device add`
#[derive(Args, Debug)]
pub(crate) struct DeviceAdd {
    /// The device's name; with --count, what its name begins with
    pub(crate) name: String,
    /// The folder to write; with --count, the folder of the folders
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Add so many: NAME-0001, NAME-0002 …
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: Option<u32>,
}

/// `bgb device ls`
#[derive(Args, Debug)]
pub(crate) struct DeviceLs {
    /// Only devices with this in their name
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// Only devices in this state
    #[arg(long, value_name = "STATE")]
    pub(crate) connectivity: Option<WantedConnectivity>,
    #[command(flatten)]
    pub(crate) rows: Rows,
}

/// A connectivity, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WantedConnectivity {
    /// It has a session
    Online,
    /// It has none
    Offline,
    /// It had one at a server that is silent now
    Unknown,
    /// It was never seen
    Never,
}

/// How much of a list.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// Rows at most
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT, value_parser = parse_rows)]
    limit: usize,
    /// Every row
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

impl Rows {
    /// The most rows that are wanted; `None` for all.
    pub(crate) fn most(self) -> Option<usize> {
        (!self.all).then_some(self.limit)
    }
}

/// A device, in commands that take just that.
#[derive(Args, Debug)]
pub(crate) struct DeviceName {
    /// The device's name, number or GUID
    pub(crate) device: String,
}

/// `bgb collection …`
#[derive(Debug, Subcommand)]
pub(crate) enum CollectionCommand {
    /// Make an empty collection
    Create(CollectionName),
    /// Put devices into a collection
    #[command(after_help = "Example:\n  bgb collection add \"Finance laptops\" pc-17 pc-18")]
    Add(CollectionMembers),
    /// Take devices out of a collection
    Rm(CollectionMembers),
    /// List collections, with how many are online
    Ls,
    /// Show a collection and its devices
    Show(CollectionShow),
}

/// A collection, in commands that take just that.
#[derive(Args, Debug)]
pub(crate) struct CollectionName {
    /// The collection's name
    pub(crate) collection: String,
}

/// `bgb collection add` and `rm`
#[derive(Args, Debug)]
pub(crate) struct CollectionMembers {
    /// The collection's name
    pub(crate) collection: String,
    /// Devices, each by name, number or GUID
    #[arg(required = true, value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
}

/// `bgb collection show`
#[derive(Args, Debug)]
pub(crate) struct CollectionShow {
    /// The collection's name
    pub(crate) collection: String,
    #[command(flatten)]
    pub(crate) rows: Rows,
}

/// `bgb policy …`
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Issue a document, or a new version of it
    #[command(after_help = "\
The file is a JSON object of settings; those that it leaves out are left to documents of lower priority:
  { \"keepalive_seconds\": 300, \"quick_scan_paths\": [\"/home\", \"/tmp\"] }

Example:
  bgb policy set laptops --file laptops.json --collection \"Finance laptops\" --priority 10")]
    Set(PolicySet),
    /// Show a document
    Show(PolicyName),
    /// List documents
    Ls,
}

/// `bgb policy set`
#[derive(Args, Debug)]
pub(crate) struct PolicySet {
    /// The document's name
    pub(crate) name: String,
    /// The file with its settings; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The collection that it is for, as it is now; every device, now and later, unless named
    #[arg(long, value_name = "COLLECTION")]
    pub(crate) collection: Option<String>,
    /// Higher wins, setting by setting
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true)]
    pub(crate) priority: i32,
}

/// A policy document, in commands that take just that.
#[derive(Args, Debug)]
pub(crate) struct PolicyName {
    /// The document's name
    pub(crate) name: String,
}

/// `bgb task …`
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Ask devices for something: shows who is meant, and asks before it sends
    #[command(after_help = "\
Examples:
  bgb task start ping --collection all
  bgb task start quick-scan --collection \"Finance laptops\" --validity 8h --watch
  bgb task start collect-inventory --device pc-17 pc-18 --yes --json")]
    Start(TaskStart),
    /// List tasks, the newest first
    Ls(TaskLs),
    /// Show a task and its devices, those that need attention first
    Show(TaskShow),
    /// Watch tasks until every device has answered
    Watch(TaskWatch),
    /// Cancel a task: what waits does not start, what runs is stopped
    Cancel(TaskName),
}

/// `bgb task start`
#[derive(Args, Debug)]
pub(crate) struct TaskStart {
    /// What is asked for: ping, download-policy, collect-inventory, update-definitions, quick-scan or full-scan
    pub(crate) action: Action,
    /// The collection that is meant, as it is now; "all" is every device
    #[arg(long, value_name = "COLLECTION", conflicts_with = "device", required_unless_present = "device")]
    pub(crate) collection: Option<String>,
    /// Devices that are meant, each by name, number or GUID
    #[arg(long, value_name = "DEVICE", num_args = 1..)]
    pub(crate) device: Vec<String>,
    /// How long it goes to devices that come online: 1m to 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_validity)]
    pub(crate) validity: u64,
    /// Send without a question
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Watch until every device has answered
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// With --watch: stop watching after this time; the task goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "watch")]
    pub(crate) timeout: Option<u64>,
}

/// `bgb task ls`
#[derive(Args, Debug)]
pub(crate) struct TaskLs {
    #[command(flatten)]
    pub(crate) rows: Rows,
}

/// `bgb task show`
#[derive(Args, Debug)]
pub(crate) struct TaskShow {
    /// The task's id
    pub(crate) task: TaskId,
    /// Only devices in this state: received, running, succeeded, failed, interrupted, refused, cancelled, no-answer
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    pub(crate) state: Option<TaskState>,
    /// Everything that each device said, not only its first line
    #[arg(long)]
    pub(crate) output: bool,
    #[command(flatten)]
    pub(crate) rows: Rows,
}

/// `bgb task watch`
#[derive(Args, Debug)]
pub(crate) struct TaskWatch {
    /// The tasks' ids
    #[arg(required = true, value_name = "TASK")]
    pub(crate) tasks: Vec<TaskId>,
    /// Stop watching after this time; the tasks go on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<u64>,
}

/// A task, in commands that take just that.
#[derive(Args, Debug)]
pub(crate) struct TaskName {
    /// The task's id
    pub(crate) task: TaskId,
}

/// `bgb status`
#[derive(Args, Debug)]
pub(crate) struct StatusArguments {
    /// The least severity of the messages that are shown
    #[arg(long, value_name = "SEVERITY", default_value = "informational")]
    pub(crate) severity: WantedSeverity,
    /// How many messages, the newest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) messages: usize,
    /// Instead: the roads of the devices that are online and why they are not on TCP, network by network
    #[arg(long, conflicts_with_all = ["severity", "messages"])]
    pub(crate) roads: bool,
    /// With --roads: how many networks, those with most devices that are not on TCP first
    #[arg(
        long,
        value_name = "N",
        requires = "roads",
        default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_MAX))
    )]
    pub(crate) networks: u32,
}

/// A severity, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WantedSeverity {
    /// Everything
    Informational,
    /// Something is not as it should be
    Warning,
    /// Something does not work
    Error,
}

/// `bgb files …`
#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// Print a .BOS, .BTS or .SVF file as JSON lines; what is damaged as lines with an error
    #[command(after_help = "\
Each line has a \"line\": header, row, error, and at the end: end. Exit code 1 when anything was damaged.

Example:
  bgb files show 0000000001-9c1f20b8a4d3e675-0000000007.BTS | jq 'select(.line == \"row\")'")]
    Show(FilesShow),
}

/// `bgb files show`
#[derive(Args, Debug)]
pub(crate) struct FilesShow {
    /// The file
    pub(crate) file: PathBuf,
}

/// `bgb demo`
#[derive(Args, Debug)]
#[command(after_help = "\
It makes a throw-away site in a folder of its own, starts manager, notification server and agents as processes of this
machine, on loopback only, asks the agents for a few things and shows their answers. Then it goes on running, so that
other commands can be tried, until Ctrl-C. The folder stays, with its logs, and is made anew by the next demo in it.")]
pub(crate) struct DemoArguments {
    /// The folder to make the site in
    #[arg(long, value_name = "DIR", default_value = "demo")]
    pub(crate) dir: PathBuf,
    /// End when every answer is in; exit code 0 only when all of them are good
    #[arg(long)]
    pub(crate) exit: bool,
    /// How many agents
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) agents: u32,
}

/// `bgb launch`: see `demo::launch`.
#[derive(Args, Debug)]
pub(crate) struct LaunchArguments {
    /// The process that must be the parent
    #[arg(long, value_name = "PID")]
    pub(crate) parent: u32,
    /// The program and its arguments
    #[arg(required = true, last = true)]
    pub(crate) program: Vec<std::ffi::OsString>,
}

fn parse_rows(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rows) if rows > 0 => Ok(rows),
        _ => Err("it is a number of rows, 1 at least; --all shows every row".to_owned()),
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    let sound = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if sound { Ok(text.to_owned()) } else { Err("write it like bgb.example.org:10123".to_owned()) }
}

fn parse_validity(text: &str) -> Result<u64, String> {
    let seconds = parse_duration(text)?;
    if (VALIDITY_MS_MIN / 1000..=VALIDITY_MS_MAX / 1000).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("a task is valid for 1 minute to 7 days".to_owned())
    }
}

fn parse_state(text: &str) -> Result<TaskState, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        "the states are received, running, succeeded, failed, interrupted, refused, cancelled and no-answer".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound_in_itself() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_task_needs_somebody_to_go_to_and_not_two_kinds_of_them() {
        assert_eq!(parse("bgb task start ping").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
        let both = parse("bgb task start ping --collection all --device pc-1").unwrap_err();
        assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
        let Command::Task(TaskCommand::Start(start)) =
            parse("bgb task start ping --device pc-1 pc-2 --device 7 --yes").unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!((start.device.len(), start.validity, start.yes), (3, 3_600, true));
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_what_they_may_be() {
        for (line, hint) in [
            ("bgb task start reboot --collection all", "quick-scan"),
            ("bgb task start ping --collection all --validity 8d", "7 days"),
            ("bgb task start ping --collection all --validity soon", "like 90s"),
            ("bgb task show 17", "UUID"),
            ("bgb site init lab --code lab", "three characters"),
            ("bgb site init lab --code LAB --server-address nowhere", "bgb.example.org:10123"),
            ("bgb device ls --limit 0", "--all"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn an_api_needs_its_token_and_excludes_a_site() {
        assert!(parse("bgb --api http://127.0.0.1:1 status").is_err());
        assert!(parse("bgb --api http://127.0.0.1:1 --token-file t --site lab status").is_err());
        let arguments = parse("bgb status --api http://127.0.0.1:1 --token-file t --json").unwrap();
        assert!(arguments.globals.json && arguments.globals.api.is_some());
    }

    #[test]
    fn roads_are_asked_for_instead_of_messages() {
        let Command::Status(status) = parse("bgb status --roads --networks 7").unwrap().command else {
            panic!("another command");
        };
        assert!(status.roads && status.networks == 7);
        assert!(parse("bgb status --networks 7").is_err());
        assert!(parse("bgb status --roads --messages 7").is_err());
        for wrong in ["0", "1001", "-1"] {
            assert!(parse(&format!("bgb status --roads --networks {wrong}")).is_err(), "{wrong}");
        }
        assert!(parse("bgb status --messages 7").is_ok());
    }

    #[test]
    fn a_list_has_a_limit_unless_all_of_it_is_wanted() {
        let rows = |line: &str| match parse(line).unwrap().command {
            Command::Task(TaskCommand::Ls(ls)) => ls.rows.most(),
            _ => panic!("another command"),
        };
        assert_eq!(rows("bgb task ls"), Some(ROWS_DEFAULT));
        assert_eq!(rows("bgb task ls --limit 3"), Some(3));
        assert_eq!(rows("bgb task ls --all"), None);
    }
}
