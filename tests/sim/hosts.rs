//! The machines of the site: their power, their disks, and the one inbox that all servers put files into.
//!
//! The first server shares the machine, the disk and so the inbox with the manager: there the courier renames. Every other server has a
//! machine of its own, from which the inbox is another file system: there the courier copies, and the inbox is out of reach while the
//! site's machine has no power.
//!
//! A disk that is told to fail from some write on is the end of its machine: whoever meets the error first, the power goes with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bgb_daemon::clock::Now;
use bgb_daemon::disk::{AppendFile, DirEntry, Disk, ReadAt, SimDisk, SimFaults, create_dir_durably};

use crate::servers::SERVERS;
use crate::tally::Kind;
use crate::world::{EPOCH_UNIX_MS, Event, World};

/// The machine that has manager, database and inbox, and the first server.
pub(crate) const SITE_HOST: usize = 0;
/// The inbox, as everybody calls it.
pub(crate) const INBOX: &str = "/inbox";
/// What a host's boot clock shows when the world begins.
const UP_MS: u64 = 1_000_000;

/// A machine.
pub(crate) struct Host {
    pub(crate) disk: SimDisk,
    /// One of its next writes is its end.
    pub(crate) is_dying: bool,
    /// Syncs that were told to fail so far, whether they have or not.
    pub(crate) syncs_to_fail: u64,
    /// What its disk had met when somebody looked last, and whether anybody has met that it is full.
    faults_seen: SimFaults,
    is_full_felt: bool,
    /// Writes that had failed when its power came back last.
    ops_failed_before: u64,
    /// Whether it has power, as others who use its disk see it.
    has_power: Arc<AtomicBool>,
    /// Counts orders to start: one that was replaced by a later one is void.
    starts: u64,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            disk: SimDisk::new(),
            is_dying: false,
            syncs_to_fail: 0,
            faults_seen: SimFaults::default(),
            is_full_felt: false,
            ops_failed_before: 0,
            has_power: Arc::new(AtomicBool::new(true)),
            starts: 0,
        }
    }

    pub(crate) fn has_power(&self) -> bool {
        self.has_power.load(Ordering::Relaxed)
    }

    /// Whether a fault was ordered of its disk that has not come yet.
    fn has_fault_ordered(&self) -> bool {
        self.is_dying || self.disk.faults().syncs_failed < self.syncs_to_fail
    }
}

/// A host's own disk, and the site's inbox in its place.
struct Mounts {
    own: SimDisk,
    inbox: SimDisk,
    inbox_is_there: Arc<AtomicBool>,
}

impl Mounts {
    fn at(&self, path: &Path) -> io::Result<&SimDisk> {
        if !path.starts_with(INBOX) {
            Ok(&self.own)
        } else if self.inbox_is_there.load(Ordering::Relaxed) {
            Ok(&self.inbox)
        } else {
            Err(io::Error::new(io::ErrorKind::HostUnreachable, "the inbox's machine does not answer"))
        }
    }
}

impl Disk for Mounts {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.at(path)?.read(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        self.at(path)?.open_read(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.at(path)?.open_append(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.at(path)?.create_new(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if from.starts_with(INBOX) != to.starts_with(INBOX) {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        self.at(from)?.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.at(path)?.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.at(dir)?.sync_dir(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.at(dir)?.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.at(dir)?.list(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.at(dir)?.free_bytes(dir)
    }
}

/// The folder of a server in the inbox.
pub(crate) fn inbox_of(server: usize) -> PathBuf {
    Path::new(INBOX).join((server + 1).to_string())
}

impl World {
    /// The disk as the programs of a host see it.
    pub(crate) fn disk_of(&self, host: usize) -> Arc<dyn Disk> {
        let own = self.hosts[host].disk.clone();
        if host == SITE_HOST {
            return Arc::new(own);
        }
        let site = &self.hosts[SITE_HOST];
        Arc::new(Mounts { own, inbox: site.disk.clone(), inbox_is_there: Arc::clone(&site.has_power) })
    }

    /// The inbox has a folder for each server, as `bgb site init` makes them.
    pub(crate) fn make_inbox(&mut self) {
        let disk = &self.hosts[SITE_HOST].disk;
        for server in 0..self.servers.len() {
            create_dir_durably(disk, &inbox_of(server)).expect("an empty disk takes a folder");
        }
    }

    /// The clocks of a program whose wall clock is wrong by so much.
    pub(crate) fn host_now(&self, off_ms: i64) -> Now {
        let mono_ms = UP_MS + self.now_ms;
        let unix_ms = (EPOCH_UNIX_MS + self.now_ms).saturating_add_signed(off_ms);
        Now { unix_ms, boot_ms: mono_ms, mono_ms }
    }

    /// A moment of a host's monotonic time, in virtual time.
    pub(crate) fn at_mono(&self, mono_ms: u64) -> u64 {
        mono_ms.saturating_sub(UP_MS).max(self.now_ms)
    }

    /// A host loses its power, and what was not synced on its disk; all that runs on it is gone.
    pub(crate) fn cut_host(&mut self, host: usize, off_ms: u64) {
        self.say(format_args!("host {} loses power for {off_ms} ms", host + 1));
        self.kill_server(host, true);
        if host == SITE_HOST {
            self.drop_manager();
        }
        let seed = self.dice.next();
        let machine = &mut self.hosts[host];
        let before = machine.disk.faults();
        machine.disk.crash(seed);
        let after = machine.disk.faults();
        machine.is_dying = false;
        machine.syncs_to_fail = after.syncs_failed;
        machine.ops_failed_before = after.ops_failed;
        machine.has_power.store(false, Ordering::Relaxed);
        machine.starts += 1;
        let starts = machine.starts;
        if (after.bytes_lost, after.changes_undone) != (before.bytes_lost, before.changes_undone) {
            self.tally.count(Kind::HostUnsyncedLost);
        }
        self.after(off_ms, Event::HostStarts { host, starts });
    }

    pub(crate) fn on_host_starts(&mut self, host: usize, starts: u64) {
        if self.hosts[host].starts != starts {
            return;
        }
        self.hosts[host].has_power.store(true, Ordering::Relaxed);
        self.say(format_args!("host {} has power", host + 1));
        let after_ms = self.dice.between(1, 3_000);
        self.start_server_after(host, after_ms);
        if host == SITE_HOST {
            let after_ms = self.dice.between(1, 3_000);
            self.start_manager_after(after_ms);
        }
        self.retransmit();
    }

    /// What all hosts' disks have met so far. Whoever fails while this does not change fails for no reason.
    pub(crate) fn disk_faults(&self) -> [SimFaults; SERVERS] {
        std::array::from_fn(|host| self.hosts[host].disk.faults())
    }

    /// Somebody has failed: something was done to a disk since `before`, or to `other`.
    pub(crate) fn expect_reason(
        &mut self,
        who: &str,
        before: [SimFaults; SERVERS],
        has_other: bool,
        why: &str,
    ) {
        if self.disk_faults() == before && !has_other {
            self.violated(format!("{who} fails, and nothing was done to any disk: {why}"));
        }
    }

    /// Something was written: if the disk of one of the hosts has died of it, its machine is gone.
    pub(crate) fn check_hosts(&mut self) {
        for host in 0..self.hosts.len() {
            self.count_disk_faults(host);
            let machine = &self.hosts[host];
            if machine.is_dying && machine.disk.faults().ops_failed > machine.ops_failed_before {
                self.tally.count(Kind::HostDiesMidStep);
                let off_ms = self.dice.between(1_000, 60_000);
                self.cut_host(host, off_ms);
            }
        }
    }

    /// Counts what the host's disk has met since this was done last.
    fn count_disk_faults(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        let faults = machine.disk.faults();
        let before = std::mem::replace(&mut machine.faults_seen, faults);
        if faults.syncs_failed > before.syncs_failed {
            self.tally.count(Kind::HostSyncFails);
        }
        if faults.full > before.full && !std::mem::replace(&mut machine.is_full_felt, true) {
            self.tally.count(Kind::HostDiskFull);
        }
    }

    /// The host's machine dies at one of its next writes.
    pub(crate) fn doom_host(&mut self, host: usize) {
        let operations = self.dice.below(40);
        let machine = &mut self.hosts[host];
        if machine.has_power() && !machine.is_dying {
            machine.is_dying = true;
            machine.disk.fail_after_ops(operations);
            self.say(format_args!("host {} will die after {operations} more writes", host + 1));
        }
    }

    pub(crate) fn fail_host_sync(&mut self, host: usize) {
        let machine = &mut self.hosts[host];
        if machine.has_power() && machine.disk.faults().syncs_failed >= machine.syncs_to_fail {
            machine.syncs_to_fail = machine.disk.faults().syncs_failed + 1;
            machine.disk.fail_next_sync();
            self.say(format_args!("host {}: the next fsync fails", host + 1));
        }
    }

    pub(crate) fn fill_host(&mut self, host: usize, for_ms: u64) {
        self.hosts[host].is_full_felt = false;
        self.hosts[host].disk.set_full(true);
        self.say(format_args!("host {}: disk full for {for_ms} ms", host + 1));
        self.after(for_ms, Event::HostHasRoom { host });
    }

    pub(crate) fn on_host_has_room(&mut self, host: usize) {
        self.hosts[host].disk.set_full(false);
    }

    /// Faults of a host end: what was ordered of its disk can be called off in one way only.
    pub(crate) fn heal_host(&mut self, host: usize, within_ms: u64) {
        self.hosts[host].disk.set_full(false);
        if self.hosts[host].has_fault_ordered() || !self.hosts[host].has_power() {
            self.cut_host(host, within_ms);
        }
    }
}
