//! A managed machine: its link, its disk, its clock, its agent, and a scanner that leaves a mark of each execution.
//!
//! The marks are what the product's own counts are held against. The scanner notes one when it begins and once more when it ends, in
//! files that no fault touches, and says it, so that a result tells which execution it is of.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::clock::Clock;
use crate::disk::SmallDisk;
use crate::link::Link;
use crate::process::{Process, Surroundings};
use crate::site::{Device, Site};

/// What stands before a mark in what the scanner says.
const WORD: &str = "mark ";

/// Room for a journal: that of a run's tasks, several times.
const JOURNAL_MIB: u32 = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) device: Device,
    pub(crate) link: Link,
    pub(crate) journal: Option<SmallDisk>,
    pub(crate) clock: Option<Clock>,
    pub(crate) agent: Process,
    /// How often its agent was killed.
    pub(crate) kills: u64,
    begun: PathBuf,
    ended: PathBuf,
}

impl Machine {
    /// A machine that bears this device's name, its agent running.
    pub(crate) fn new(
        site: &mut Site,
        device: Device,
        link: Link,
        has_small_disk: bool,
        clock: Option<Clock>,
    ) -> Self {
        let note = |what| site.path(&format!("{what}-{}", device.name));
        let (begun, ended) = (note("begun"), note("ended"));
        // Half of them are short; the others are long enough for whatever comes in between.
        let script = format!(
            "read mark < /proc/sys/kernel/random/uuid; echo $mark >> {}; echo {WORD}$mark; \
             case $mark in [0-7]*) sleep 0.1;; *) sleep 0.7;; esac; echo $mark >> {}",
            begun.display(),
            ended.display()
        );
        device.scan_by(&["/bin/sh", "-c", &script]);
        let state = device.folder.join("state");
        let journal = has_small_disk.then(|| {
            fs::create_dir(&state).unwrap();
            SmallDisk::under(&state, JOURNAL_MIB)
        });
        let surroundings = Surroundings {
            network: Some(link.namespace()),
            environment: clock.as_ref().map(Clock::environment).unwrap_or_default(),
            account: None,
        };
        site.surround(&format!("agent-{}", device.name), surroundings);
        let mut agent = site.start_agent(&device);
        agent.wait_ready();
        Self { device, link, journal, clock, agent, kills: 0, begun, ended }
    }

    /// Kills its agent.
    pub(crate) fn kill(&mut self) {
        self.agent.kill_now();
        self.kills += 1;
    }

    /// Starts its agent anew, and waits until it runs.
    pub(crate) fn start(&mut self, site: &Site) {
        self.agent = site.start_agent(&self.device);
        self.agent.wait_ready();
    }

    /// The marks of all executions that have begun.
    pub(crate) fn begun(&self) -> Vec<String> {
        lines(&self.begun)
    }

    /// The marks of all executions that have come to their end.
    pub(crate) fn ended(&self) -> BTreeSet<String> {
        lines(&self.ended).into_iter().collect()
    }
}

/// The mark in what a scan has said.
pub(crate) fn mark_in(output: &str) -> Option<&str> {
    output.lines().find_map(|line| line.strip_prefix(WORD))
}

fn lines(path: &PathBuf) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}
