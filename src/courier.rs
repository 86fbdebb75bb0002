//! The courier: carries finished files from the server's own folder to the site's inbox.
//!
//! Today that is a rename, or where the inbox lies on another file system, a copy under a temporary name that is fsynced and
//! renamed; for a site on another host it will be an upload. Files go in the order of their names, each for itself; one
//! that cannot go now stays, the others go, and all that waits is tried again. While the inbox cannot be reached, a newer full presence list makes the
//! older presence files pointless, and they are dropped, so that what waits stays bounded by the results.
//!
//! It also writes the server's own status messages into files, and carries those.
//!
//! [`Courier`] is the machine, driven by time and input; its thread is in [`crate::server`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bgb_daemon::clock::Now;
use bgb_daemon::disk::{Disk, ReplaceError};
use bgb_protocol::file::{FileBuilder, FileKind, HEADER_BYTES, Header};
use bgb_protocol::ids::UnixMillis;
use bgb_protocol::status::{StatusId, StatusMessage};

use crate::outgoing::Outgoing;

/// How long the inbox may be out of reach before it is said.
const UNREACHABLE_AFTER_MS: u64 = 10_000;

/// Most status messages that wait for a file; beyond them the oldest go.
const MESSAGES_MAX: usize = 1_000;

/// Files that may fail in one round before it ends: those behind them get their turn, and an inbox that refuses each file for itself
/// does not cost a round as many tries as files wait.
const FAILURES_PER_ROUND: usize = 64;

/// Bytes that are copied at a time to another file system.
const COPY_BYTES: usize = 1024 * 1024;

/// See the module.
pub struct Courier {
    outgoing: Outgoing,
    inbox: PathBuf,
    messages: Vec<StatusMessage>,
    sequence: u64,
    inbox_state: InboxState,
    inbox_names: InboxNames,
}

/// Whether the names of what was put into the inbox are durable there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InboxNames {
    Durable,
    /// A file was put there, and the folder could not be synced since: its name is in no folder for sure.
    SyncOwed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InboxState {
    Reachable,
    /// Since then, in milliseconds of monotonic time.
    FailingSince(u64),
    /// It was out of reach for so long that it was said.
    Unreachable,
}

/// What one round came to.
#[derive(Debug, Default)]
pub struct Round {
    /// Files that arrived.
    pub carried: usize,
    /// Why the others did not.
    pub failed: Option<io::Error>,
    /// A sync of the server's own disk failed: the process has to end.
    pub ended: Option<io::Error>,
}

impl Courier {
    /// A courier to `inbox`, the server's own sub-folder of the site's inbox.
    #[must_use]
    pub fn new(outgoing: Outgoing, inbox: PathBuf) -> Self {
        Self {
            outgoing,
            inbox,
            messages: Vec::new(),
            sequence: 0,
            inbox_state: InboxState::Reachable,
            inbox_names: InboxNames::Durable,
        }
    }

    /// Takes a status message for the next file.
    pub fn handle_message(&mut self, message: StatusMessage) {
        if self.messages.len() == MESSAGES_MAX {
            self.messages.remove(0);
        }
        self.messages.push(message);
    }

    /// Writes the messages that wait, and carries what is there.
    pub fn run(&mut self, now: Now) -> Round {
        let mut round = Round::default();
        let written = self.write_messages(now).and_then(|()| self.waiting().map_err(ReplaceError::Write));
        let names = match written {
            Ok(names) => names,
            Err(ReplaceError::Write(error)) => {
                round.failed = Some(error);
                return round;
            }
            Err(ReplaceError::Sync(error)) => {
                round.ended = Some(error);
                return round;
            }
        };
        let waiting = self.carry_all(names, &mut round);
        if round.failed.is_some() {
            self.drop_outdated_presence(&waiting);
        }
        self.note(now, round.failed.as_ref());
        round
    }

    /// Carries what can go now; gives the names of what stays.
    fn carry_all(&mut self, names: Vec<String>, round: &mut Round) -> Vec<String> {
        if self.inbox_names == InboxNames::SyncOwed
            && let Err(error) = self.sync_inbox()
        {
            round.failed = Some(error);
            return names;
        }
        let folder = self.outgoing.folder().to_owned();
        let mut waiting = Vec::new();
        let mut names = names.into_iter();
        for name in names.by_ref() {
            match self.carry(&folder.join(&name), &name) {
                Ok(()) => round.carried += 1,
                Err(error) => {
                    waiting.push(name);
                    let is_over = self.inbox_refuses(&error) || waiting.len() >= FAILURES_PER_ROUND;
                    round.failed.get_or_insert(error);
                    if is_over {
                        break;
                    }
                }
            }
        }
        waiting.extend(names);
        waiting
    }

    /// Whether the error of one file means all of them.
    fn inbox_refuses(&self, error: &io::Error) -> bool {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull};
        matches!(error.kind(), QuotaExceeded | ReadOnlyFilesystem | StaleNetworkFileHandle | StorageFull)
            || self.inbox_names == InboxNames::SyncOwed
            || self.outgoing.disk().list(&self.inbox).is_err()
    }

    fn sync_inbox(&mut self) -> io::Result<()> {
        self.inbox_names = InboxNames::SyncOwed;
        self.outgoing.disk().sync_dir(&self.inbox)?;
        self.inbox_names = InboxNames::Durable;
        Ok(())
    }

    fn write_messages(&mut self, now: Now) -> Result<(), ReplaceError> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let mut builder = FileBuilder::new();
        self.messages.iter().for_each(|message| builder.push(message));
        self.outgoing.put(FileKind::Status, self.sequence + 1, UnixMillis(now.unix_ms), builder)?;
        self.sequence += 1;
        self.messages.clear();
        Ok(())
    }

    fn waiting(&self) -> io::Result<Vec<String>> {
        let entries = self.outgoing.disk().list(self.outgoing.folder())?;
        // Names that begin with a dot are not finished.
        Ok(entries
            .into_iter()
            .filter(|entry| !entry.is_dir && !entry.name.starts_with('.'))
            .map(|entry| entry.name)
            .collect())
    }

    fn carry(&mut self, from: &Path, name: &str) -> io::Result<()> {
        let disk = Arc::clone(self.outgoing.disk());
        let to = self.inbox.join(name);
        match disk.rename(from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                copy(&*disk, from, &self.inbox, name)?;
            }
            Err(error) => return Err(error),
        }
        self.sync_inbox()?;
        match disk.remove(from) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => disk.sync_dir(self.outgoing.folder()),
        }
    }

    /// Of the presence files that wait, only the newest full list and what came after it still say anything.
    fn drop_outdated_presence(&self, names: &[String]) {
        let presence = |name: &&String| name.ends_with(FileKind::PresenceFull.extension());
        let names: Vec<_> = names.iter().filter(presence).collect();
        let is_full = |name: &&String| self.kind_of(name) == Some(FileKind::PresenceFull);
        if let Some(newest_full) = names.iter().rposition(is_full) {
            for name in &names[..newest_full] {
                // One that stays is carried later, and changes nothing then.
                let _ = self.outgoing.disk().remove(&self.outgoing.folder().join(name));
            }
        }
    }

    fn kind_of(&self, name: &str) -> Option<FileKind> {
        let file = self.outgoing.disk().open_read(&self.outgoing.folder().join(name)).ok()?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0).ok()?;
        Header::decode(&head).ok().map(|header| header.kind)
    }

    fn note(&mut self, now: Now, failed: Option<&io::Error>) {
        self.inbox_state = match (self.inbox_state, failed) {
            (_, None) => InboxState::Reachable,
            (InboxState::Reachable, Some(_)) => InboxState::FailingSince(now.mono_ms),
            (InboxState::FailingSince(since_ms), Some(error))
                if now.mono_ms.saturating_sub(since_ms) >= UNREACHABLE_AFTER_MS =>
            {
                let text = format!(
                    "files cannot be put into {}: {error}; they wait in {} and go when the inbox can be written again",
                    self.inbox.display(),
                    self.outgoing.folder().display()
                );
                tracing::warn!("{text}");
                self.handle_message(StatusId::InboxUnreachable.message(
                    UnixMillis(now.unix_ms),
                    "inbox",
                    text,
                ));
                InboxState::Unreachable
            }
            (state, Some(_)) => state,
        };
    }
}

fn copy(disk: &dyn Disk, from: &Path, inbox: &Path, name: &str) -> io::Result<()> {
    let temporary = inbox.join(format!(".tmp-{name}"));
    let source = disk.open_read(from)?;
    let length = source.len()?;
    let mut target = disk.open_append(&temporary)?;
    // Left over from a crash in the middle.
    target.truncate(0)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < length {
        let bytes = buffer.len().min(usize::try_from(length - at).unwrap_or(COPY_BYTES));
        source.read_exact_at(&mut buffer[..bytes], at)?;
        target.append(&buffer[..bytes])?;
        at += bytes as u64;
    }
    target.sync()?;
    disk.rename(&temporary, &inbox.join(name))
}

/// A way to say a status message from any thread; the courier's thread receives it. When it is full, the message is in the log only.
#[derive(Clone, Debug)]
pub struct StatusLine(crossbeam_channel::Sender<StatusMessage>);

impl StatusLine {
    /// A line and its end.
    #[must_use]
    pub fn new() -> (Self, crossbeam_channel::Receiver<StatusMessage>) {
        let (sender, receiver) = crossbeam_channel::bounded(MESSAGES_MAX);
        (Self(sender), receiver)
    }

    /// Logs the message and sends it up.
    pub fn say(&self, id: StatusId, now: UnixMillis, about: &str, text: impl Into<String>) {
        use bgb_protocol::status::Severity;
        let message = id.message(now, about, text);
        match message.severity {
            Severity::Informational => tracing::info!(id = message.id, about, "{}", message.text),
            Severity::Warning => tracing::warn!(id = message.id, about, "{}", message.text),
            Severity::Error => tracing::error!(id = message.id, about, "{}", message.text),
        }
        // Full: a thousand messages wait already, and the log has this one.
        let _ = self.0.try_send(message);
    }
}

#[cfg(test)]
mod tests;
