//! What the demo does with its site, in order: devices, a collection, who is online, a policy, tasks, their answers.
//!
//! All of it goes over the manager's API, by the functions that the commands use; what is printed names the commands
//! that do the same.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bgb_protocol::action::Action;
use bgb_protocol::api::{
    AddDevices, CollectionRow, Connectivity, CreateCollection, DeviceBundles, DeviceRow, PolicyRow,
    PreviewTask, PutPolicy, StartTask, Target, TaskPreview, TaskRow,
};
use bgb_protocol::ids::TaskId;
use bgb_protocol::policy::PolicySettings;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::command::collection::{Change, change};
use crate::command::{device, task};
use crate::demo::Interrupt;
use crate::demo::folder::DemoFolder;
use crate::demo::household::Household;
use crate::demo::scanner::Scanner;
use crate::endpoint::Endpoint;
use crate::manager::{ApiPath, Manager};
use crate::outcome::{Exit, Failure};
use crate::terminal::{Terminal, Tone, lines_of};
use crate::watch::watch;

/// The collection that the agents are put into.
const COLLECTION: &str = "Demo";

/// The policy document that they are given.
const POLICY: &str = "demo";

/// An agent signs in within a second, and its server writes who is new every 3 s; the rest is for a machine under load.
const ONLINE_DEADLINE: Duration = Duration::from_secs(60);

/// The short actions take two minutes at most.
const ANSWERS_DEADLINE: Duration = Duration::from_secs(150);

/// Loading ClamAV's signatures takes half a minute of a core, and here all agents do it on one machine.
const SCANS_DEADLINE: Duration = Duration::from_secs(20 * 60);

/// Between two looks at who is online.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The demo's course, and the site that it is about.
pub(crate) struct Story<'a> {
    folder: &'a DemoFolder,
    terminal: &'a Terminal,
    interrupt: &'a Interrupt,
    manager: Manager,
    tasks: Vec<TaskId>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Outcome {
    devices: u64,
    online: u64,
    tasks: u64,
    results: u64,
    succeeded: u64,
}

impl Outcome {
    /// [`Exit::Done`] only when every device was online and every answer was good.
    pub(crate) fn exit(&self) -> Exit {
        let all_good = self.online == self.devices && self.succeeded == self.results && self.tasks > 0;
        if all_good { Exit::Done } else { Exit::NotAllSucceeded }
    }

    /// Prints the closing line, which is the last one.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn conclude(&self, terminal: &Terminal) -> Result<Exit, Failure> {
        terminal.answer(self, || self)?;
        Ok(self.exit())
    }
}

impl fmt::Display for &Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { devices, online, tasks, results, succeeded } = self;
        let plural = if *tasks == 1 { "task" } else { "tasks" };
        write!(
            formatter,
            "demo: {online} of {devices} online, {tasks} {plural}, {succeeded} of {results} succeeded"
        )
    }
}

impl<'a> Story<'a> {
    /// The story of the site in `folder`, whose manager runs.
    ///
    /// # Errors
    /// When the site's folder does not lead to its manager.
    pub(crate) fn new(
        folder: &'a DemoFolder,
        terminal: &'a Terminal,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Failure> {
        let manager = Manager::new(Endpoint::of_site(&folder.site())?);
        Ok(Self { folder, terminal, interrupt, manager, tasks: Vec::new() })
    }

    /// Tells it: from the first device to the last answer.
    ///
    /// # Errors
    /// What did not work, with the log to look into.
    pub(crate) fn tell(&mut self, household: &mut Household, agents: u32) -> Result<Outcome, Failure> {
        let names: Vec<String> = (1..=agents).map(|number| format!("demo-{number:02}")).collect();
        self.step(format_args!(
            "A site with a manager, a notification server and {agents} agents, on this machine"
        ))?;
        self.add_devices(household, &names)?;
        self.make_collection(&names)?;
        let online = self.wait_online(household, &names)?;
        self.issue_policy()?;
        self.start_tasks(agents)?;
        let rows = self.watch_answers(household)?;
        self.say_used(household)?;
        let sum = |count: fn(&TaskRow) -> u64| rows.iter().map(count).sum();
        Ok(Outcome {
            devices: u64::from(agents),
            online,
            tasks: rows.len() as u64,
            results: sum(|row| row.counts.targets),
            succeeded: sum(|row| row.counts.succeeded),
        })
    }

    /// Makes the devices, writes their folders and starts their agents.
    fn add_devices(&self, household: &mut Household, names: &[String]) -> Result<(), Failure> {
        let body = AddDevices { names: names.to_vec() };
        let bundles: DeviceBundles = self.manager.post(&ApiPath::new(&["devices", "bulk"]), &body)?;
        for bundle in &bundles.devices {
            let folder = self.agent_folder(&bundle.name);
            device::make_folder(&folder)?;
            device::write_bundle(&folder, bundle)?;
            household.start_agent(self.folder, &bundle.name, &folder.join("agent.toml"))?;
        }
        household.wait_agents(self.interrupt)
    }

    fn agent_folder(&self, name: &str) -> PathBuf {
        self.folder.agents().join(name)
    }

    fn make_collection(&self, names: &[String]) -> Result<(), Failure> {
        let create = CreateCollection { name: COLLECTION.to_owned() };
        let _: CollectionRow = self.manager.post(&ApiPath::new(&["collections"]), &create)?;
        change(&self.manager, COLLECTION, names, Change::Add)?;
        Ok(())
    }

    /// Waits until all are online, and shows them.
    fn wait_online(&self, household: &mut Household, names: &[String]) -> Result<u64, Failure> {
        let deadline = Instant::now() + ONLINE_DEADLINE;
        let path = ApiPath::new(&["collections", COLLECTION, "members"]);
        let bar = self.online_bar(names.len() as u64);
        let rows = loop {
            let rows = self.manager.list::<DeviceRow>(&path, None)?.rows;
            let online = rows.iter().filter(|row| row.connectivity == Connectivity::Online).count();
            bar.set_position(online as u64);
            household.check()?;
            self.interrupt.check()?;
            if online == names.len() || Instant::now() >= deadline {
                break rows;
            }
            thread::sleep(LOOK_EVERY);
        };
        bar.finish_and_clear();
        self.step("Who is online")?;
        self.terminal.say(lines_of(&device::table(&rows, self.terminal)))?;
        let Some(missing) = rows.iter().find(|row| row.connectivity != Connectivity::Online) else {
            return Ok(rows.len() as u64);
        };
        let what = format!("was not online within {} s", ONLINE_DEADLINE.as_secs());
        Err(match household.agent(&missing.name) {
            Some(agent) => agent.failure(&what),
            None => Failure::failed(format!("{} {what}", missing.name)),
        })
    }

    fn online_bar(&self, agents: u64) -> ProgressBar {
        let shown = self.terminal.watched && !self.terminal.quiet;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("waiting for the agents {bar:24} {pos}/{len}")
            .expect("the template is a constant that a test has drawn")
            .progress_chars("▓▒░");
        ProgressBar::with_draw_target(Some(agents), target).with_style(style)
    }

    /// Issues a document with settings that can be seen to take effect.
    fn issue_policy(&self) -> Result<(), Failure> {
        let settings = PolicySettings {
            keepalive_seconds: Some(60),
            quick_scan_paths: Some(vec![self.folder.agents().display().to_string()]),
            ..PolicySettings::default()
        };
        let body = PutPolicy { priority: 10, collection: Some(COLLECTION.to_owned()), settings };
        let row: PolicyRow = self.manager.put(&ApiPath::new(&["policies", POLICY]), &body)?;
        self.step("A policy document, and tasks for the collection")?;
        self.terminal.say(format_args!(
            "policy {POLICY}: version {}, {}",
            row.version,
            row.settings.to_json()
        ))
    }

    fn start_tasks(&mut self, agents: u32) -> Result<(), Failure> {
        let mut actions = vec![Action::DownloadPolicy, Action::CollectInventory, Action::Ping];
        match Scanner::find(agents) {
            Scanner::Ready(engine) => {
                self.terminal.say(format_args!("{engine} can scan: quick-scan is among them"))?;
                actions.push(Action::QuickScan);
            }
            Scanner::Absent(why) => self.terminal.say(format_args!("no quick-scan: {why}"))?,
        }
        for action in actions {
            let target = Target::Collection(COLLECTION.to_owned());
            let preview = PreviewTask { action, target: target.clone(), validity_seconds: None };
            let preview: TaskPreview = self.manager.post(&ApiPath::new(&["tasks", "preview"]), &preview)?;
            self.terminal.say(&preview.sentence)?;
            let start = StartTask { action, target, validity_seconds: None, digest: Some(preview.digest) };
            let row: TaskRow = self.manager.post(&ApiPath::new(&["tasks"]), &start)?;
            self.tasks.push(row.task);
        }
        Ok(())
    }

    /// Watches until every device has answered every task, and shows what came of it.
    fn watch_answers(&self, household: &mut Household) -> Result<Vec<TaskRow>, Failure> {
        self.step("Their answers")?;
        let scans = self.tasks.len() > 3;
        let deadline = Instant::now() + if scans { SCANS_DEADLINE } else { ANSWERS_DEADLINE };
        // The closing document is the only JSON of the demo.
        let terminal = self.terminal.without_json();
        let (rows, _) = watch(&self.manager, &terminal, &self.tasks, Some(deadline), || {
            household.check()?;
            self.interrupt.check()?;
            Ok(false)
        })?;
        self.terminal.say(lines_of(&task::table(&rows, self.terminal)))?;
        for row in rows.iter().filter(|row| row.counts.succeeded < row.counts.targets) {
            self.terminal.remark(format_args!("{}: not every device succeeded:", row.action));
            task::show_attention(row, &self.manager, self.terminal)?;
            self.terminal.remark(format_args!(
                "see {} and the agents' logs below {}",
                self.folder.site().join("logs").display(),
                self.folder.agents().display()
            ));
        }
        Ok(rows)
    }

    /// What was used.
    fn say_used(&self, household: &Household) -> Result<(), Failure> {
        let addresses = &household.addresses;
        self.step("What this used")?;
        for (what, value) in [
            ("devices connect to", format!("{} (TLS)", addresses.devices)),
            ("manager's API", self.manager.address().to_owned()),
            ("server's metrics", format!("http://{}/metrics", addresses.admin)),
            ("manager's metrics", format!("http://{}/metrics", addresses.manager_admin)),
            ("folder", self.folder.root().display().to_string()),
        ] {
            self.terminal.say(format_args!("{what:<19}{value}"))?;
        }
        for (index, log) in self.logs().iter().enumerate() {
            let what = if index == 0 { "logs" } else { "" };
            self.terminal.say(format_args!("{what:<19}{}", log.display()))?;
        }
        Ok(())
    }

    /// The log files, those of the components first; of the agents one stands for all.
    fn logs(&self) -> Vec<PathBuf> {
        let mut logs = log_files(&self.folder.site().join("logs"));
        logs.extend(log_files(&self.agent_folder("demo-01")));
        logs.push(self.folder.logs());
        logs
    }

    /// What to type next, while the demo runs on.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(crate) fn say_what_next(&self, household: &Household) -> Result<(), Failure> {
        let bgb = std::env::args().next().unwrap_or_else(|| "bgb".to_owned());
        self.step("What to type next, in another terminal")?;
        self.terminal.say(format_args!("export BGB_SITE={}", quoted(&self.folder.site())))?;
        for words in [
            "status".to_owned(),
            "device ls".to_owned(),
            format!("task start ping --collection {COLLECTION} --watch"),
            format!("task show {} --output", self.tasks.first().map_or_else(String::new, TaskId::to_string)),
            format!("policy show {POLICY}"),
        ] {
            self.terminal.say(format_args!("{bgb} {words}"))?;
        }
        self.terminal.say(format_args!("curl http://{}/metrics", household.addresses.admin))?;
        self.terminal.say("\nThe demo runs until Ctrl-C.")
    }

    fn step(&self, title: impl fmt::Display) -> Result<(), Failure> {
        self.terminal.say(format_args!("\n{}", self.terminal.paint(Tone::Good, format_args!("== {title}"))))
    }
}

/// The files of a folder whose names end in `.log`, by name.
fn log_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let is_log = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "log");
    let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_log).collect();
    logs.sort();
    logs
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_has_the_real_numbers() {
        let outcome = Outcome { devices: 5, online: 5, tasks: 3, results: 15, succeeded: 15 };
        assert_eq!((&outcome).to_string(), "demo: 5 of 5 online, 3 tasks, 15 of 15 succeeded");
        assert_eq!(outcome.exit(), Exit::Done);
        for worse in
            [Outcome { succeeded: 14, ..outcome }, Outcome { online: 4, ..outcome }, Outcome::default()]
        {
            assert_eq!(worse.exit(), Exit::NotAllSucceeded, "{worse:?}");
        }
    }

    #[test]
    fn a_path_is_quoted_only_where_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("/tmp/demo/site")), "/tmp/demo/site");
        assert_eq!(quoted(Path::new("/tmp/it's a demo")), r"'/tmp/it'\''s a demo'");
    }

    #[test]
    fn logs_are_those_files_that_end_so() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bgbmgr.log", "BGBServer.log", "site.db"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> = log_files(folder.path())
            .into_iter()
            .filter_map(|path| path.file_name().map(ToOwned::to_owned))
            .collect();
        assert_eq!(names, ["BGBServer.log", "bgbmgr.log"]);
        assert!(log_files(Path::new("/nonexistent")).is_empty());
    }
}
